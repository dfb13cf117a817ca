"""Why a picture is refused: a code, and one line that shows no address and no path."""

from __future__ import annotations

_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
REFUSALS = {
    "missing": "the picture file does not exist or cannot be opened: give a file that can be read",
    "remote": "the picture is given as an address, which is not fetched: download it and give its "
    "path or its bytes",
    "not_base64": "the picture's base64 text is not valid: give the standard alphabet with its "
    "padding, without spaces or line breaks",
    "cut_base64": "the picture's base64 text is cut short: give the whole text",
    "unknown_source": "a picture is given as {kind}, which is not supported: give a path, the "
    "bytes of a file, an open binary file, a PIL image, an array of height x width (x 1, 3 or 4), "
    "a data URL, or a dict with bytes, path or url",
    "bad_array": "a picture is given as an array of {kind}, which is not supported: give real "
    "numbers of shape height x width, or height x width x 1, 3 or 4",
    "bad_tensor": "a picture is given as a {kind} tensor, which is not supported: give a dense "
    "tensor that holds real numbers, such as x.to_dense() or x.dequantize()",
    "text_file": "the picture's file is open as text: open it in binary mode",
    "too_many_bytes": "the picture file has more than {limit:,} bytes: send a smaller one, or "
    "raise max_bytes",
    "pdf": "the file is a PDF and no picture: save its pages as PNG, or send it to vl2 serve as a "
    'part of type "file"',
    "unsupported": f"unsupported file type: use {_KINDS}",
    "too_many_pixels": "the picture has {pixels:,} pixels and at most {limit:,} are decoded: scale "
    "it down first, or raise max_pixels",
    "too_many_for_pillow": "the picture has {pixels:,} pixels and Pillow decodes at most "
    "{limit:,} of this file type: scale it down first, or save it as PNG or JPEG",
    "no_memory": "there is not enough memory to decode the picture: scale it down first",
    "unreadable": f"the picture is damaged or incomplete: send a whole {_KINDS} file",
    "not_finite": "the picture holds values that are not finite numbers: replace NaN and infinity",
    "animated": "the picture has several frames or pages: send one",
    "too_thin": "the picture is thinner than one pixel once fitted into the model's view: crop it",
}
"""Every `ImageError.code` and its text, with the places of its values."""


class ImageError(ValueError):
    """A refused picture: a stable `code`, and the code's text with its `values`."""

    def __init__(self, code: str, **values: int | str) -> None:
        super().__init__(REFUSALS[code].format(**values))
        self.code = code
        self.values = values

    def __reduce__(self) -> tuple[object, tuple[str, dict[str, int | str]]]:
        """Travels from a worker process by its code."""
        return _again, (self.code, self.values)


def _again(code: str, values: dict[str, int | str]) -> ImageError:
    return ImageError(code, **values)
