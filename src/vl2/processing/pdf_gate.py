"""The one gate for PDFs: a path or bytes become pages as RGB pictures, and their text layer.

Nothing about the source (an address, a path) ever stands in an error. pdfium does the work; it
must not be entered by two threads at a time, so that every call holds one lock of the process. No
script of a PDF is run, and nothing that it links to is opened. What stands in the fields of a form
is drawn, but it is no part of the text layer.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from PIL import Image

from vl2.geometry import Resolution
from vl2.processing.image_gate import MAX_PIXELS
from vl2.processing.pdf_error import PdfError
from vl2.processing.pdf_text import Glyph, TextLine, lines_of

try:
    import pypdfium2
    from pypdfium2 import raw
except ImportError:
    raise ValueError('PDFs need a package: pip install "vl2[pdf]"') from None

POINTS_PER_INCH = 72
DPI = 144.0
MAX_PAGES = 1000
MAX_BYTES = 256 * 2**20
MAX_SIDE = 30_000
"""Most pixels of a page's longer side, however thin the page is."""
HEADER_WITHIN = 1024
"""The sign of a PDF stands somewhere in so many bytes."""
_LOCK = threading.RLock()
_PASSWORD_ERRORS = (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
_HYPHEN = 2  # how pdfium writes the hyphen at the end of a line


@dataclass(frozen=True, kw_only=True, slots=True)
class PdfPolicy:
    """How PDFs are admitted."""

    max_pixels: int = MAX_PIXELS  # of a page's picture; a larger one is drawn at a lower scale
    max_pages: int = MAX_PAGES  # chosen at once
    max_bytes: int = MAX_BYTES  # of a PDF that is given as bytes; files are read where needed


PDFS = PdfPolicy()
"""The policy for PDFs that people send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageView:
    """How a page becomes pixels. The origin is its top left corner as a reader holds the page."""

    number: int  # from 1
    points: tuple[float, float]  # width and height in points of 1/72 inch, turned as it is shown
    size: Resolution  # width and height in pixels
    scale: float  # pixels per point; less than was asked for where the page is very large


class Pdf:
    """An open PDF, for a `with` block. One page is loaded at a time, when it is asked for."""

    def __init__(self, source: str | Path | bytes, policy: PdfPolicy = PDFS) -> None:
        """Open a PDF.

        Args:
            source: the path of a file, or its bytes.
            policy: how it is admitted.

        Raises:
            PdfError: the PDF is refused; its `code` says why.
        """
        self.policy = policy
        checked = _checked(source, policy)
        with _LOCK:
            self._document: pypdfium2.PdfDocument | None = _opened(checked)
            self._held = checked  # pdfium reads the bytes as long as the PDF is open
            self._document.init_forms()
            self._count = len(self._document)
            self._loaded: tuple[int, pypdfium2.PdfPage] | None = None

    def __len__(self) -> int:
        """How many pages it has."""
        return self._count

    def __enter__(self) -> Pdf:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what pdfium holds; a second time does nothing."""
        with _LOCK:
            self._unload()
            if self._document is not None:
                self._document.close()
            self._document = None

    def pages(self, chosen: str | None = None) -> list[int]:
        """Numbers of pages, from 1, in the order in which they are named, each once.

        Args:
            chosen: such as "1-3,5" or "7-" (to the last page); None is every page.

        Raises:
            PdfError: this is no such text, there is no such page, or there are too many.
        """
        numbers = page_numbers(chosen, self._count)
        if len(numbers) > self.policy.max_pages:
            limit = self.policy.max_pages
            raise PdfError("too_many_pages", chosen=len(numbers), limit=limit)
        return numbers

    def view(self, number: int, dpi: float = DPI) -> PageView:
        """Size and scale of page `number`; nothing is drawn.

        Raises:
            PdfError: there is no such page, or it is damaged.
        """
        with self._page(number) as page:
            return self._view(page, number, dpi)

    def render(
        self, number: int, dpi: float = DPI, box: tuple[int, int, int, int] | None = None
    ) -> Image.Image:
        """Page `number` as an RGB picture on white, or the part of it inside `box`.

        Args:
            number: from 1.
            dpi: pixels per inch; see `PageView.scale` for very large pages.
            box: x1, y1, x2, y2 in pixels of the whole page's picture; white outside of it.

        Raises:
            PdfError: there is no such page, or it is damaged.
        """
        with self._page(number) as page:
            view = self._view(page, number, dpi)
            x1, y1, x2, y2 = box or (0, 0, *view.size)
            assert min(x2 - x1, y2 - y1) > 0, box
            bitmap = pypdfium2.PdfBitmap.new_native(
                x2 - x1, y2 - y1, raw.FPDFBitmap_BGR, rev_byteorder=True
            )
            try:
                bitmap.fill_rect((255, 255, 255, 255), 0, 0, x2 - x1, y2 - y1)
                flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER
                place = (bitmap, page, -x1, -y1, *view.size, 0, flags)
                raw.FPDF_RenderPageBitmap(*place)
                if page.formenv is not None:
                    raw.FPDF_FFLDraw(page.formenv, *place)
                return bitmap.to_pil().copy()  # in its own memory, since the bitmap is closed
            finally:
                bitmap.close()

    def text(self, number: int, dpi: float = DPI) -> tuple[TextLine, ...]:
        """The lines of the text layer of page `number` in reading order; empty for a scan.

        Boxes are pixels of `render(number, dpi)`. The layer is what the PDF says, not what can be
        seen: it may be invisible, wrong, or the work of an OCR.

        Raises:
            PdfError: there is no such page, or it is damaged.
        """
        with self._page(number) as page:
            view = self._view(page, number, dpi)
            layer = page.get_textpage()
            try:
                return lines_of(_glyphs(page, layer, view))
            finally:
                layer.close()

    def plain_text(self, number: int) -> str:
        """The text layer in the PDF's own order, without places: much faster than `text`.

        Raises:
            PdfError: there is no such page, or it is damaged.
        """
        with self._page(number) as page:
            layer = page.get_textpage()
            try:
                return layer.get_text_range()
            finally:
                layer.close()

    def fonts(self, number: int, step: int = 25) -> set[str]:
        """Names of the fonts of the text layer, looked up at every `step`-th character.

        Raises:
            PdfError: there is no such page, or it is damaged.
        """
        name, flags = ctypes.create_string_buffer(256), ctypes.c_int()
        found = set()
        with self._page(number) as page:
            layer = page.get_textpage()
            try:
                for index in range(0, layer.count_chars(), step):
                    raw.FPDFText_GetFontInfo(layer.raw, index, name, len(name), flags)
                    found.add(name.value.decode("utf-8", "replace"))
            finally:
                layer.close()
        return {re.sub(r"^[A-Z]{6}\+", "", font) for font in found} - {""}  # a part of a font

    @contextmanager
    def _page(self, number: int) -> Iterator[pypdfium2.PdfPage]:
        """A loaded page; what pdfium cannot do with it is one fixed refusal."""
        with _LOCK:
            if self._document is None:
                raise PdfError("closed")
            if not 1 <= number <= self._count:
                raise PdfError("no_such_page", value=str(number), count=self._count)
            try:
                if self._loaded is None or self._loaded[0] != number:
                    self._unload()
                    self._loaded = number, self._document[number - 1]
                yield self._loaded[1]
            except (pypdfium2.PdfiumError, ctypes.ArgumentError, MemoryError):
                self._unload()
                raise PdfError("bad_page", number=number) from None

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None

    def _view(self, page: pypdfium2.PdfPage, number: int, dpi: float) -> PageView:
        if not (math.isfinite(dpi) and dpi > 0):
            raise PdfError("bad_dpi", value=dpi)
        width, height = page.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise PdfError("bad_page", number=number)
        scale = min(
            dpi / POINTS_PER_INCH,
            math.sqrt(self.policy.max_pixels / (width * height)),
            MAX_SIDE / max(width, height),
        )
        size = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
        return PageView(number=number, points=(width, height), size=size, scale=scale)


def page_numbers(chosen: str | None, count: int) -> list[int]:
    """The numbers that a text such as "1-3,5" names, each once; None names all `count` pages.

    Raises:
        PdfError: this is no such text, or there is no such page.
    """
    if chosen is None:
        return list(range(1, count + 1))
    numbers: dict[int, None] = {}
    for part in chosen.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{1,9})?\s*)?", part, re.ASCII)
        if found is None:
            raise PdfError("bad_range", value=chosen)
        first = int(found[1])
        last = int(found[3]) if found[3] else count if found[2] else first
        if max(first, last) > count:
            raise PdfError("no_such_page", value=chosen, count=count)
        if not 1 <= first <= last:
            raise PdfError("bad_range", value=chosen)
        numbers.update(dict.fromkeys(range(first, last + 1)))
    return list(numbers)


def _checked(source: str | Path | bytes, policy: PdfPolicy) -> Path | bytes:
    """The source, which begins as a PDF does."""
    if isinstance(source, bytes):
        if len(source) > policy.max_bytes:
            raise PdfError("too_many_bytes", bytes=len(source), limit=policy.max_bytes)
        head, checked = source[:HEADER_WITHIN], source
    else:
        checked = Path(source).absolute()
        try:
            if not checked.is_file():  # no folder, and no pipe or device, which would block
                raise PdfError("missing")
            with checked.open("rb") as file:
                head = file.read(HEADER_WITHIN)
        except OSError:
            raise PdfError("missing") from None
    if b"%PDF-" not in head:
        raise PdfError("not_a_pdf")
    return checked


def _opened(source: Path | bytes) -> pypdfium2.PdfDocument:
    """The document that pdfium opens, with at least one page."""
    if isinstance(source, bytes):
        handle = raw.FPDF_LoadMemDocument64(source, len(source), None)
    else:
        handle = raw.FPDF_LoadDocument(os.fsencode(source) + b"\0", None)
    if not handle:
        encrypted = raw.FPDF_GetLastError() in _PASSWORD_ERRORS
        raise PdfError("encrypted" if encrypted else "damaged")
    document = pypdfium2.PdfDocument(handle)
    if len(document) < 1:
        document.close()
        raise PdfError("no_pages")
    return document


def _glyphs(
    page: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, view: PageView
) -> Iterator[Glyph]:
    """Glyphs in the order of pdfium, with boxes in pixels of the view."""
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    turned, corner, handle = page.get_rotation() // 90, page.get_bbox(), layer.raw
    for index in range(layer.count_chars()):
        code = raw.FPDFText_GetUnicode(handle, index)
        raw.FPDFText_GetCharBox(handle, index, left, right, bottom, top)
        place = left.value, bottom.value, right.value, top.value
        angle = math.degrees(raw.FPDFText_GetCharAngle(handle, index))
        hyphen = code == _HYPHEN and raw.FPDFText_IsHyphen(handle, index) == 1
        yield Glyph(
            code=ord("-") if hyphen else code,
            box=_on_picture(place, corner, turned, view),
            sure=raw.FPDFText_HasUnicodeMapError(handle, index) != 1,
            angle=round(90 * turned - angle) % 360,
        )


def _on_picture(
    box: tuple[float, float, float, float],
    corner: tuple[float, float, float, float],
    turned: int,
    view: PageView,
) -> tuple[float, float, float, float]:
    """A box of the PDF's own space (left, bottom, right, top; y goes up) in pixels of the view.

    `corner` is the part of that space that is shown; `turned` counts clockwise quarters.
    """
    x1, y1, x2, y2 = box
    left, bottom, right, top = corner
    x1, x2, y1, y2 = x1 - left, x2 - left, top - y2, top - y1  # origin at the top left
    wide, high = right - left, top - bottom
    for _ in range(turned):
        x1, y1, x2, y2 = high - y2, x1, high - y1, x2
        wide, high = high, wide
    across, down = view.size[0] / wide, view.size[1] / high
    return x1 * across, y1 * down, x2 * across, y2 * down
