"""The one gate for pictures: bytes, files and PIL images become RGB, or one fixed refusal.

Nothing about the source (address, path, decoder message) ever stands in an error, so a message may be
shown to whoever sent the picture. Formats are allow-listed, pixels are counted before they are
decoded, one frame at most is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vl2.geometry import Resolution

Source = str | Path | bytes | Image.Image
"""A path, the bytes of a file, or a PIL image. A string is always a path, never an address."""

MAX_PIXELS = 40_000_000
MAX_BYTES = 20 * 2**20

_PLUGINS = {  # imported, so that PIL need not load every plugin it has (EPS, for one, starts programs)
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FORMATS = tuple(_PLUGINS)
"""What is opened. A JPEG with further pictures behind it (MPO, phones write them) counts as JPEG."""

_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_MESSAGES = {
    "missing": "the picture file does not exist or cannot be opened: give a file that can be read",
    "too_many_bytes": "the picture file is too large: send a smaller file",
    "unsupported": f"this is not a picture of a kind that is read: send {_KINDS}",
    "too_many_pixels": "the picture has too many pixels: scale it down first",
    "unreadable": f"the picture is damaged or incomplete: send a whole {_KINDS} file",
    "animated": "the picture has several frames or pages: send one",
    "not_finite": "the picture holds values that are not finite numbers: save it with 8 or 16 bits",
    "too_thin": "the picture is thinner than one pixel once fitted into the model's view: crop it",
}


class ImageError(ValueError):
    """A refused picture. `code` is stable (a key of the table above); the text is fixed per code."""

    def __init__(self, code: str) -> None:
        super().__init__(_MESSAGES[code])
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePolicy:
    """How pictures are admitted."""

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES  # of `bytes` sources
    exif: bool = True  # turn the picture as its EXIF orientation says
    alpha: Literal["white", "drop"] = "white"  # put it on white, or forget its transparency
    strict: bool = False  # refuse several frames instead of taking the first


MESSAGES = ImagePolicy()
"""For pictures that people send."""

REFERENCE = ImagePolicy(exif=False, alpha="drop")
"""As the official code reads files: no EXIF, hidden colours behind transparency show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A picture behind the gate."""

    image: Image.Image  # mode RGB
    notes: tuple[str, ...] = ()  # what a user should know, for instance that frames were left out


def open_image(source: Source, policy: ImagePolicy = MESSAGES) -> Image.Image:
    """Any picture as a decoded RGB image, see `admit`.

    Raises:
        ImageError: the picture is refused.
    """
    return admit(source, policy).image


def admit(source: Source, policy: ImagePolicy = MESSAGES) -> Admitted:
    """Check, decode and convert one picture to RGB.

    Raises:
        ImageError: the picture is refused; `code` says why.
    """
    with _opened(source, policy) as image, _fixed_message():
        notes = []
        if _frames_follow(image):
            if policy.strict:
                raise ImageError("animated")
            notes.append("the picture has several frames or pages: only the first was used")
        image.load()
        _check_pixels(image.size, policy)
        turned = _upright(image) if policy.exif else image
        deep = _to_eight_bits(turned)
        rgb = _to_rgb(deep, policy.alpha)
        return Admitted(image=rgb if rgb is not source else rgb.copy(), notes=tuple(notes))


def probe(source: Source, policy: ImagePolicy = MESSAGES) -> Resolution:
    """(width, height) that the admitted picture will have; reads only the header.

    Raises:
        ImageError: the picture is refused already by its header.
    """
    with _opened(source, policy) as image, _fixed_message():
        wide, high = image.size
        sideways = policy.exif and image.format != "TIFF" and _orientation(image) >= 5
        return (high, wide) if sideways else (wide, high)


@contextmanager
def _opened(source: Source, policy: ImagePolicy) -> Iterator[Image.Image]:
    """The picture with its header read and checked; a file that we opened is closed at the end."""
    if isinstance(source, Image.Image):
        if isinstance(source, ImageFile.ImageFile) and source.format not in (*FORMATS, "MPO"):
            raise ImageError("unsupported")
        _check_pixels(source.size, policy)
        yield source
        return
    if isinstance(source, bytes) and len(source) > policy.max_bytes:
        raise ImageError("too_many_bytes")
    with _stream(source) as file:
        image = _open_header(file)
        _check_pixels(image.size, policy)
        _check_tiff_tiles(image, policy)
        yield image


def _stream(source: str | Path | bytes) -> io.BufferedIOBase:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        path = Path(source)
        if path.is_file():  # not a folder, a pipe or a device, which would block
            return path.open("rb")
    except (OSError, ValueError):
        pass
    raise ImageError("missing")


def _open_header(file: io.BufferedIOBase) -> Image.Image:
    name = _sniff(file.read(16))
    file.seek(0)
    if name is None:
        raise ImageError("unsupported")
    try:
        return Image.open(file, formats=(name,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels") from None
    except Exception:  # decoders raise anything; its text may hold addresses
        raise ImageError("unreadable") from None


def _sniff(head: bytes) -> str | None:
    signs = (
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("JPEG", b"\xff\xd8\xff"),
        ("GIF", (b"GIF87a", b"GIF89a")),
        ("BMP", b"BM"),
        ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for name, sign in signs if head.startswith(sign)), None)


@contextmanager
def _fixed_message() -> Iterator[None]:
    """Whatever a decoder raises becomes one fixed message."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels") from None
    except Exception:  # decoders raise anything; its text may hold addresses
        raise ImageError("unreadable") from None


def _check_pixels(size: Resolution, policy: ImagePolicy) -> None:
    if min(size) < 1:
        raise ImageError("unreadable")
    if size[0] * size[1] > policy.max_pixels:
        raise ImageError("too_many_pixels")


def _check_tiff_tiles(image: Image.Image, policy: ImagePolicy) -> None:
    """A TIFF may declare a tile far larger than the picture, and the decoder allocates it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        wide, high = (image.tag_v2.get(tag, 1) for tag in (322, 323))  # TileWidth, TileLength
        if wide * high > policy.max_pixels:
            raise ImageError("too_many_pixels")


def _frames_follow(image: Image.Image) -> bool:
    """Whether a second frame exists; no frame is decoded to learn it."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to refuse the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits per value as 8 bits; PIL's own conversion saturates them."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("not_finite")
    low, high = _white_and_black(image.mode, float(values.min()), float(values.max()))
    scaled = (values - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _white_and_black(mode: str, low: float, high: float) -> tuple[float, float]:
    """Which values mean black and white.

    16 bits: 0 and 65535 (a scale of 1/257). 32-bit integers: of 8 or 16 bits if they fit there. Floats:
    0 and 1 if they fit there. Anything else is stretched from its least to its greatest value.
    """
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    usual = (255.0, 65535.0) if mode == "I" else (1.0,)
    for white in usual:
        if low >= 0 and high <= white:
            return 0.0, white
    return low, max(high, low + 1)


def _to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    if alpha == "drop":
        return clear.convert("RGB")
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, clear).convert("RGB")
