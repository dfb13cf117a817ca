"""Crops of real PDF pages with their text layer: a line, a block of lines, a whole page.

The layer is not believed blindly: every character must have ink in its box, and lines must have
no ink outside of the boxes of their characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageOps

from vl2.data.make.chance import between, chance, integer, log_between, phrase, pick, some
from vl2.data.make.pages import FIRST, LAST
from vl2.data.make.paper import finish, light_colour
from vl2.data.make.pdf_pages import Document, is_prose, shown_text
from vl2.data.make.reading import LINE_NAME, LINES, line_asks, locate_asks, read_asks
from vl2.data.make.sample import Ask, Made, Mark, Spot, ask, union
from vl2.data.make.sheet import Sheet
from vl2.data.make.world import World
from vl2.geometry import PixelBox
from vl2.processing.pdf_gate import POINTS_PER_INCH, Pdf
from vl2.processing.pdf_text import PageBox, TextLine, TextWord, around

TRIES, PARTS = 200, 6
"""Pages that are tried for a picture, and parts of each."""
LONGEST, SHORTEST = 60, 3
"""Characters of a line that is shown alone, and its letters and digits."""
MOST_WORDS = 70
"""Of a block."""
PAGE_LINES = range(5, 71)
INK = 60
"""Least difference in grey from the ground."""
STRAY, FIGURES = 0.01, 0.03
"""Most ink between the characters of a line, in squares of its height; most ink beside lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """Words of one line that are shown, in points of the page."""

    texts: tuple[str, ...]
    words: tuple[TextWord, ...]

    @property
    def box(self) -> PageBox:
        return around([word.box for word in self.words])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What of a page is shown."""

    skill: str
    lines: tuple[_Shown, ...]
    others: tuple[PageBox, ...]  # what stands around it and should stay outside
    height: float  # of a line in points
    pixels: tuple[float, float]  # smallest and largest height of a line on the picture
    widest: int  # pixels of the picture


def make(rng: np.random.Generator, world: World) -> Made:
    """A part of a page of the split's documents; larger documents are a little more frequent.

    Raises:
        OSError: none of many pages has a part whose text can be trusted.
    """
    documents = world.documents()
    weights = np.sqrt([len(document.pages) for document in documents])
    for _ in range(TRIES):
        document = documents[int(rng.choice(len(documents), p=weights / weights.sum()))]
        number = pick(rng, document.pages)
        with Pdf(document.source) as pdf:
            found = _sheet(rng, pdf, number)
        if found is not None:
            return _made(rng, *found, document, number)
    raise OSError(f"none of {TRIES} pages shows what its text says: fetch the packages again")


def _made(
    rng: np.random.Generator, sheet: Sheet, skill: str, document: Document, number: int
) -> Made:
    image, marks = finish(rng, sheet, strength=0.7 if skill == "pdf_page" else 1.0)
    lines = [mark for mark in marks if mark.kind == "line"]
    words = [mark for mark in marks if mark.kind == "word" and len(mark.text) > 2]
    if skill == "pdf_page":
        asks = _page_asks(rng, lines, words)
    else:
        asks = read_asks(rng, lines, skill)
        asks += line_asks(rng, lines, skill) if len(lines) > 1 else []
        asks += locate_asks(rng, words, skill, most=1)
    facts = {"document": document.name, "page": number}
    return Made(image=image, marks=marks, asks=tuple(asks), facts=facts)


def _page_asks(rng: np.random.Generator, lines: list[Mark], words: list[Mark]) -> list[Ask]:
    spot = Spot(label=LINE_NAME, boxes=tuple(line.box for line in lines))
    asks = [
        ask("pdf_page.lines", phrase(rng, pick(rng, LINES)), (spot,)),
        ask("pdf_page.first", phrase(rng, pick(rng, FIRST)), lines[0].text),
        ask("pdf_page.last", phrase(rng, pick(rng, LAST)), lines[-1].text),
        *line_asks(rng, lines, "pdf_page"),
        *locate_asks(rng, words, "pdf_page", most=2),
    ]
    return some(rng, asks, 6)


def _sheet(rng: np.random.Generator, pdf: Pdf, number: int) -> tuple[Sheet, str] | None:
    """A picture of a part of the page with its marks; None if no part shows what its text says."""
    lines = pdf.text(number, POINTS_PER_INCH)
    texts = [shown_text(line) for line in lines]
    points = pdf.view(number, POINTS_PER_INCH).size
    for _ in range(PARTS):
        part = pick(rng, (_line, _line, _block, _page, _page))(rng, lines, texts)
        if part is None:
            continue
        crop = _page_crop(rng, part, points) if part.skill == "pdf_page" else _crop(rng, part)
        if crop is None:
            continue
        wanted = log_between(rng, *part.pixels) / part.height
        dpi = POINTS_PER_INCH * min(wanted, part.widest / (crop[2] - crop[0]))
        size = pdf.view(number, dpi).size
        scale = size[0] / points[0], size[1] / points[1]
        window = _pixels(crop, scale)
        image, marks = pdf.render(number, dpi, window), _marks(part, scale, window)
        if marks and _says_what_it_shows(image, marks):
            sheet = Sheet(_coloured(rng, image))
            sheet.marks += marks
            return sheet, part.skill
    return None


_Texts = Sequence[list[str] | None]


def _pick_line(rng: np.random.Generator, texts: _Texts) -> int | None:
    """A line that can be trusted, three times of four one of prose."""
    usable = [n for n, words in enumerate(texts) if words]
    prose = [n for n in usable if is_prose(texts[n] or [])]
    if not usable:
        return None
    return pick(rng, prose if prose and chance(rng, 0.75) else usable)


def _line(rng: np.random.Generator, lines: Sequence[TextLine], texts: _Texts) -> _Part | None:
    """Words of one line, up to 60 characters."""
    at = _pick_line(rng, texts)
    if at is None:
        return None
    words, line = texts[at] or [], lines[at]
    whole = len(" ".join(words)) <= LONGEST and chance(rng, 0.5)
    start, end = _run(rng, words, LONGEST if whole else integer(rng, 8, LONGEST))
    if sum(char.isalnum() for word in words[start:end] for char in word) < SHORTEST:
        return None
    shown = _Shown(texts=tuple(words[start:end]), words=line.words[start:end])
    beside = (*line.words[:start], *line.words[end:])
    around_it = (*(word.box for word in beside), *(o.box for o in lines if o is not line))
    return _Part(
        skill="pdf_line",
        lines=(shown,),
        others=around_it,
        height=_height(line),
        pixels=(9, 44),
        widest=1400,
    )


def _run(rng: np.random.Generator, words: Sequence[str], longest: int) -> tuple[int, int]:
    """Start and end of words that take up to `longest` characters; none if the first is longer."""
    start = end = integer(rng, 0, len(words) - 1)
    while end < len(words) and len(" ".join(words[start : end + 1])) <= longest:
        end += 1
    while end > start > 0 and len(" ".join(words[start - 1 : end])) <= longest:
        start -= 1
    return start, end


def _block(rng: np.random.Generator, lines: Sequence[TextLine], texts: _Texts) -> _Part | None:
    """Two to nine lines of a block, one below the other."""
    start = _pick_line(rng, texts)
    if start is None:
        return None
    end, most, count = start, integer(rng, 2, 9), 0
    while end < min(len(lines), start + most) and (words := texts[end]):
        count += len(words)
        if count > MOST_WORDS or (end > start and not _below(lines[end - 1], lines[end])):
            break
        end += 1
    if end - start < 2:
        return None
    inside, outside = lines[start:end], (*lines[:start], *lines[end:])
    shown = tuple(
        _Shown(texts=tuple(text or ()), words=line.words)
        for line, text in zip(inside, texts[start:end], strict=True)
    )
    return _Part(
        skill="pdf_block",
        lines=shown,
        others=tuple(line.box for line in outside),
        height=max(_height(line) for line in inside),
        pixels=(9, 26),
        widest=1200,
    )


def _page(rng: np.random.Generator, lines: Sequence[TextLine], texts: _Texts) -> _Part | None:
    """All lines of a page, if each can be trusted; else a block."""
    if len(lines) not in PAGE_LINES or not all(texts):
        return _block(rng, lines, texts)
    shown = tuple(
        _Shown(texts=tuple(text or ()), words=line.words)
        for line, text in zip(lines, texts, strict=True)
    )
    heights = sorted(_height(line) for line in lines)
    return _Part(
        skill="pdf_page",
        lines=shown,
        others=(),
        height=heights[len(heights) // 2],
        pixels=(10, 18),
        widest=1100,
    )


def _height(line: TextLine) -> float:
    """The height of a line's highest character in points; at least that of very small print."""
    return max(4.0, *(char.box[3] - char.box[1] for char in line.chars))


def _below(above: TextLine, below: TextLine) -> bool:
    """Whether two lines of one block follow each other downwards."""
    return above.block == below.block and below.box[1] >= above.box[3] - 0.2 * _height(above)


def _crop(rng: np.random.Generator, part: _Part) -> PageBox | None:
    """The lines with a margin that leaves their neighbours out, sometimes not quite.

    None if something lies across the lines.
    """
    x1, y1, x2, y2 = around([line.box for line in part.lines])
    loose, height = chance(rng, 0.3), part.height
    low, high, cut = (-0.04, 1.2, 0.2) if loose else (0.05, 0.5, -0.03)
    near = [o for o in part.others if o[0] < x2 + height and o[2] > x1 - height]
    above = min((y1 - o[3] for o in near if o[1] + o[3] < 2 * y1), default=1e3)
    below = min((o[1] - y2 for o in near if o[1] + o[3] > 2 * y2), default=1e3)
    top = min(between(rng, low, high) * height, above + cut * height)
    bottom = min(between(rng, low, high) * height, below + cut * height)
    level = [o for o in part.others if y1 < (o[1] + o[3]) / 2 < y2]
    before = min((x1 - o[2] for o in level if o[0] < x1), default=1e3)
    after = min((o[0] - x2 for o in level if o[0] >= x1), default=1e3)
    left = min(between(rng, 0.05, max(high, 0.5)) * height, 0.9 * before)
    right = min(between(rng, 0.05, max(high, 0.5)) * height, 0.9 * after)
    if min(left, top, right, bottom) < -0.1 * height:
        return None
    return x1 - left, y1 - top, x2 + right, y2 + bottom


def _page_crop(rng: np.random.Generator, part: _Part, points: tuple[int, int]) -> PageBox:
    """Everything written, and some or all of the page's margins."""
    x1, y1, x2, y2 = around([line.box for line in part.lines])
    share = 1.0 if chance(rng, 0.4) else between(rng, 0.1, 1.0)
    x1, y1 = max(x1, 0.0), max(y1, 0.0)
    right, bottom = max(points[0] - x2, 0.0), max(points[1] - y2, 0.0)
    return x1 - share * x1, y1 - share * y1, x2 + share * right, y2 + share * bottom


def _pixels(box: PageBox, scale: tuple[float, float]) -> PixelBox:
    """A place on the page in whole pixels of its picture, all of it inside."""
    x1, y1, x2, y2 = box
    across, down = scale
    left, top = int(np.floor(x1 * across)), int(np.floor(y1 * down))
    return left, top, int(np.ceil(x2 * across)), int(np.ceil(y2 * down))


def _marks(part: _Part, scale: tuple[float, float], window: PixelBox) -> list[Mark] | None:
    """Marks of lines, words and characters on the picture; None if a character is cut away."""
    size = window[2] - window[0], window[3] - window[1]
    marks: list[Mark] = []
    for line in part.lines:
        words, chars = [], []
        for text, word in zip(line.texts, line.words, strict=True):
            places = []
            for char, letter in zip(word.chars, text, strict=True):
                x1, y1, x2, y2 = _pixels(char.box, scale)
                x1, x2 = (min(max(x - window[0], 0), size[0]) for x in (x1, x2))
                y1, y2 = (min(max(y - window[1], 0), size[1]) for y in (y1, y2))
                if x1 >= x2 or y1 >= y2:
                    return None
                places.append(Mark(kind="char", text=letter, box=(x1, y1, x2, y2)))
            words.append(Mark(kind="word", text=text, box=union([m.box for m in places])))
            chars += places
        whole = union([word.box for word in words])
        marks += [Mark(kind="line", text=" ".join(line.texts), box=whole), *words, *chars]
    return marks


def _says_what_it_shows(image: Image.Image, marks: Sequence[Mark]) -> bool:
    """Whether ink and characters belong together, in the lines and all but a little around them."""
    grey = np.asarray(image.convert("L"), np.int16)
    ink = np.abs(grey - np.median(grey)) > INK
    free, beside = ink.copy(), ink.copy()
    for x1, y1, x2, y2 in (mark.box for mark in marks if mark.kind == "char"):
        if not ink[y1:y2, x1:x2].any():
            return False
        free[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    for x1, y1, x2, y2 in (mark.box for mark in marks if mark.kind == "line"):
        reach = round(0.3 * (y2 - y1))  # an underscore may be a rule below the line
        if free[y1 : y2 + reach, x1:x2].sum() > 1 + STRAY * (y2 - y1) ** 2:
            return False
        beside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    return bool(beside.mean() <= FIGURES)


def _coloured(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """As it is, on tinted paper, or light on dark."""
    if chance(rng, 0.25):
        return ImageChops.multiply(image, Image.new("RGB", image.size, light_colour(rng)))
    return ImageOps.invert(image) if chance(rng, 0.06) else image
