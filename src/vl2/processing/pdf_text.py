"""From the characters of a PDF's text layer to words and lines in reading order.

The order of the PDF is kept inside of a block. Blocks that it draws out of order, such as a heading
that comes last, are put in order as a reader would take them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

PageBox = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels from the top left of the page's picture."""

UNKNOWN = "\ufffd"
"""Stands for a character whose font does not say what it is."""
SAME_LINE = 0.4
"""Least overlap of heights, as a share of the smaller, of what stands on one line."""
COLUMN_GAP = 1.8
"""Heights of a capital between two words from which on they are no longer one line."""
JOINT_GAP = 0.9
"""Heights of a capital up to which a piece that follows on the same height continues the line."""
LEADING = 2.4
"""Heights of a line between the middles of two lines up to which they may be one block."""
NEAR = 3
"""Words at each end of a line that tell its height; words in the middle may be dots."""
MOST_BLOCKS = 200
"""Most blocks that are sorted; a page with more keeps the PDF's own order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyph:
    """What a PDF library reports of one character, a space or a line's end."""

    code: int  # UTF-16 or Unicode; 0 for unknown
    box: PageBox
    sure: bool = True  # False: the font does not say what it is, so that the code is a guess
    angle: int = 0  # degrees, clockwise on the picture


@dataclass(frozen=True, kw_only=True, slots=True)
class TextChar:
    """One letter, digit or sign with its ink's box. The letters of a ligature share it evenly."""

    text: str
    box: PageBox
    sure: bool
    angle: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWord:
    """Characters without a space between them."""

    chars: tuple[TextChar, ...]

    @property
    def text(self) -> str:
        """The characters of the word."""
        return "".join(char.text for char in self.chars)

    @property
    def box(self) -> PageBox:
        """Around its characters."""
        return around([char.box for char in self.chars])


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLine:
    """Words that stand beside each other."""

    words: tuple[TextWord, ...]
    block: int  # lines of one paragraph, list or table have the same number

    @property
    def text(self) -> str:
        """The words of the line with one space between them."""
        return " ".join(word.text for word in self.words)

    @property
    def box(self) -> PageBox:
        """Around its characters."""
        return around([char.box for char in self.chars])

    @property
    def chars(self) -> list[TextChar]:
        """The characters of all words."""
        return [char for word in self.words for char in word.chars]


def around(boxes: Sequence[PageBox]) -> PageBox:
    """The smallest box around all of `boxes` (at least one)."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def lines_of(glyphs: Iterable[Glyph]) -> tuple[TextLine, ...]:
    """Words and lines in reading order, of characters in the order of the PDF.

    Text that runs downwards or upwards, as beside a table, is put together in its own direction and
    comes after the other; of a page that lies on its side the order is that of its text.
    """
    ways: dict[int, list[Glyph]] = {}
    way = 0
    for glyph in glyphs:
        way = _quarters(glyph.angle) if _is_ink(glyph) else way
        turned = replace(glyph, box=_turned(glyph.box, -way)) if way else glyph
        ways.setdefault(way, []).append(turned)
    found: list[TextLine] = []
    for way in sorted(ways, key=lambda way: -len(ways[way])):
        lines = _upright_lines(ways[way], first=found[-1].block + 1 if found else 0)
        found += [_turned_line(line, way) for line in lines] if way else lines
    return tuple(found)


def _upright_lines(glyphs: Iterable[Glyph], first: int) -> list[TextLine]:
    blocks = _blocks(_joined(_pieces(_words(glyphs))))
    boxes = [around([_box(piece) for piece in block]) for block in blocks]
    return [
        TextLine(words=tuple(TextWord(chars=tuple(word)) for word in piece), block=number)
        for number, index in enumerate(reading_order(boxes), first)
        for piece in blocks[index]
    ]


def _quarters(angle: int) -> int:
    """The nearest way that text runs: 0 to the right, 1 downwards, 2 to the left, 3 upwards."""
    return round(angle / 90) % 4


def _turned(box: PageBox, quarters: int) -> PageBox:
    """A box turned clockwise around the origin."""
    x1, y1, x2, y2 = box
    for _ in range(quarters % 4):
        x1, y1, x2, y2 = -y2, x1, -y1, x2
    return x1, y1, x2, y2


def _turned_line(line: TextLine, quarters: int) -> TextLine:
    words = (
        TextWord(chars=tuple(replace(c, box=_turned(c.box, quarters)) for c in word.chars))
        for word in line.words
    )
    return replace(line, words=tuple(words))


_Word = list[TextChar]
_Piece = list[_Word]


def _words(glyphs: Iterable[Glyph]) -> list[_Piece]:
    """Words, grouped as the PDF breaks its lines."""
    rows: list[_Piece] = [[]]
    word: _Word = []
    for chars in _characters(glyphs):
        if chars:
            word += chars
            continue
        if word:
            rows[-1].append(word)
            word = []
        if chars is None:
            rows.append([])
    if word:
        rows[-1].append(word)
    return [row for row in rows if row]


def _characters(glyphs: Iterable[Glyph]) -> Iterable[list[TextChar] | None]:
    """The letters of each group of glyphs with one box; [] for a space, None for a line's end."""
    group: list[Glyph] = []
    for glyph in glyphs:
        if group and glyph.box == group[0].box and _is_ink(glyph):
            group.append(glyph)
            continue
        if group:
            yield _letters(group)
            group = []
        if _is_ink(glyph):
            group = [glyph]
        elif glyph.code in (10, 13):
            yield None
        else:
            yield []
    if group:
        yield _letters(group)


def _is_ink(glyph: Glyph) -> bool:
    x1, y1, x2, y2 = glyph.box
    return x1 < x2 and y1 < y2 and not chr(glyph.code).isspace()


def _letters(group: Sequence[Glyph]) -> list[TextChar]:
    """The characters in one box: a letter, or the letters of a ligature side by side."""
    first, (x1, y1, x2, y2) = group[0], group[0].box
    text = "".join(_text(glyph.code) for glyph in group)
    if len(group) > 1:  # halves of one character beyond the first 65,536
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    step = (x2 - x1) / len(text)
    sure = all(glyph.sure for glyph in group)
    return [
        TextChar(
            text=char if _is_known(char) else UNKNOWN,
            box=(x1 + n * step, y1, x1 + (n + 1) * step, y2),
            sure=sure and _is_known(char),
            angle=first.angle,
        )
        for n, char in enumerate(text)
    ]


@lru_cache(maxsize=4096)
def _text(code: int) -> str:
    """The character of a code; a ligature as its letters."""
    char = chr(code)
    return unicodedata.normalize("NFKC", char) if "\ufb00" <= char <= "\ufb06" else char


@lru_cache(maxsize=4096)
def _is_known(char: str) -> bool:
    """Whether it is a character that is printed: no control, no private use, no placeholder."""
    return char != UNKNOWN and unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs")


def _pieces(rows: list[_Piece]) -> list[_Piece]:
    """Rows cut where the next word is on another height, further left, or far away."""
    pieces: list[_Piece] = []
    for row in rows:
        start = len(pieces)
        for word in (part for whole in row for part in _cut(whole)):
            if len(pieces) > start and _continues(pieces[-1], word, COLUMN_GAP, overlap=0.3):
                pieces[-1].append(word)
            else:
                pieces.append([word])
    return pieces


def _cut(word: _Word) -> list[_Word]:
    """A word cut where it goes on in the next line, after a hyphen: no space stands there."""
    parts = [[word[0]]]
    for char in word[1:]:
        last = parts[-1][-1]
        back = char.box[0] < parts[-1][0].box[0] and char.box[1] > last.box[1]
        if back or (char.box[0] < last.box[0] and char.box[1] >= last.box[3]):
            parts.append([char])
        else:
            parts[-1].append(char)
    return parts


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """Pieces that follow each other on one height without a gap are one line."""
    joined: list[_Piece] = []
    for piece in pieces:
        if joined and _continues(joined[-1], piece[0], JOINT_GAP, overlap=0.45):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _continues(piece: _Piece, word: _Word, gap: float, overlap: float) -> bool:
    """Whether a word stands on the line of a piece, right of it and at most `gap` heights away."""
    before, here = _box(piece[-NEAR:]), _box([word])
    letters = (char for part in (*piece[:NEAR], *piece[-NEAR:], word) for char in part)
    height = max(char.box[3] - char.box[1] for char in letters)
    away = here[0] - before[2]
    if not -0.5 * height <= away <= gap * height:
        return False
    shared = min(before[3], here[3]) - max(before[1], here[1])
    least = min(before[3] - before[1], here[3] - here[1])
    low_or_high = least < 0.5 * height  # a dash, a full stop, an accent
    return shared >= overlap * least or (low_or_high and shared >= -0.5 * height)


def _box(piece: _Piece) -> PageBox:
    return around([char.box for word in piece for char in word])


def _blocks(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces that follow each other downwards, or beside each other on one height."""
    blocks: list[list[_Piece]] = []
    for piece in pieces:
        if blocks and _belongs(_box(blocks[-1][-1]), _box(piece)):
            blocks[-1].append(piece)
        else:
            blocks.append([piece])
    return blocks


def _belongs(above: PageBox, below: PageBox) -> bool:
    """Whether a line continues the block that the line `above` ends."""
    heights = above[3] - above[1], below[3] - below[1]
    shared = min(above[3], below[3]) - max(above[1], below[1])
    if shared > SAME_LINE * min(heights):
        return below[0] >= above[2]
    step = (below[1] + below[3] - above[1] - above[3]) / 2
    beside = min(above[2], below[2]) - max(above[0], below[0])
    return 0 < step <= LEADING * max(heights) and beside > 0 and max(heights) <= 2.5 * min(heights)


def reading_order(boxes: Sequence[PageBox]) -> list[int]:
    """Indices of blocks as a reader takes them: downwards, and one column after the other.

    A block comes before another below it that it overlaps sideways, and before one to its right
    unless a block that spans both lies between them in height (T. Breuel, High Performance Document
    Layout Analysis, 2003). Where this leaves a choice, the given order is kept.
    """
    count = len(boxes)
    if not 1 < count <= MOST_BLOCKS:
        return list(range(count))
    x1, y1, x2, y2 = np.array(boxes).T
    beside = (np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)) > 0
    middle = (y1 + y2) / 2
    above = middle[:, None] < middle[None, :]
    left = x2[:, None] <= x1[None, :]
    between = np.zeros_like(left)
    for block in range(count):
        over = above[:, block, None] & above[block]  # one of the two above it, the other below
        between |= np.outer(beside[block], beside[block]) & (over | over.T)
    before = (beside & above) | (left & ~beside & ~between)
    np.fill_diagonal(before, False)
    order, waiting = [], np.ones(count, dtype=bool)
    for _ in range(count):
        free = waiting & ~(before & waiting[:, None]).any(0)
        index = int(np.argmax(free if free.any() else waiting))
        order.append(index)
        waiting[index] = False
    return order
