"""Why a PDF or a page is refused: a code, and one line that shows no address and no path."""

from __future__ import annotations

REFUSALS = {
    "missing": "the PDF file does not exist or cannot be opened: give a file that can be read",
    "too_many_bytes": "the PDF has {bytes:,} bytes and at most {limit:,} are taken: split it first",
    "not_a_pdf": "the file is no PDF: expected %PDF- at its start; give one, or send a picture as "
    'a part of type "image_url"',
    "encrypted": "the PDF is encrypted and needs a password: save a copy without a password first",
    "damaged": "the PDF is damaged or incomplete: send the whole file, or print it to a new PDF",
    "no_pages": "the PDF has no pages: give one with at least one page",
    "bad_range": "pages are {value!r}: expected numbers and ranges from 1 such as 1-3,5",
    "no_such_page": "pages are {value!r}, but the PDF has {count:,} pages: choose from 1 to "
    "{count:,}",
    "too_many_pages": "{chosen:,} pages are too many, at most {limit:,} are read at once: choose "
    "some, such as 1-{limit}",
    "bad_page": "page {number:,} of the PDF is damaged: leave it out, or print it to a new PDF",
    "bad_dpi": "dpi is {value}: expected a number above 0, such as 144",
    "closed": "the PDF is closed: open it again",
}
"""Every `PdfError.code` and its text, with the places of its values."""


class PdfError(ValueError):
    """A refused PDF or page: a stable `code`, and the code's text with its `values`."""

    def __init__(self, code: str, **values: int | float | str) -> None:
        super().__init__(REFUSALS[code].format(**values))
        self.code = code
        self.values = values

    def __reduce__(self) -> tuple[object, tuple[str, dict[str, int | float | str]]]:
        """Travels from a worker process by its code."""
        return _again, (self.code, self.values)


def _again(code: str, values: dict[str, int | float | str]) -> PdfError:
    return PdfError(code, **values)
