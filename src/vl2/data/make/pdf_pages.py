"""Pages of PDFs in pinned packages that are English and whose text layer can be trusted.

They are found once and kept in the cache. Which lines of a page say what they show is decided by
`shown_text`, when the page is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from vl2.data.make.fonts import SPLITS, Split, faces, family
from vl2.data.make.packages import fetch_all, packages
from vl2.folders import cache_folder
from vl2.processing.pdf_error import PdfError
from vl2.processing.pdf_gate import Pdf
from vl2.processing.pdf_text import TextChar, TextLine

PACKAGES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("texlive-fonts-extra-doc", "texlive-science-doc", "texlive-humanities-doc"),
        *("lilypond-doc-pdf", "r-doc-pdf", "octave-doc", "xfig-doc", "debian-reference-en"),
    ),
    "heldout": (
        *("texlive-latex-recommended-doc", "gnuplot-doc", "developers-reference", "maint-guide"),
        *("auto-multiple-choice-doc-pdf", "why3-doc-pdf"),
    ),
}
"""Other documents, by other authors, in each split."""
PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\u2022", "-"),
    }
)
"""Typographic quotes, dashes and bullets as the other makers print them."""
COMMON = re.compile(r"\b(the|of|and|to|in|is|a|for|that|with|be|are|this|as|or|by)\b")
WORD = re.compile(r"""["'(]*[A-Za-z][a-z'-]*[.,;:!?)"']*""")
LEAST_LETTERS = 200
COMMON_SHARE = 0.12
"""Least share of the commonest English words among the words of a page."""
ASCII_SHARE = 0.96
LETTER_SHARE = 0.6
SHORT, TALL, LOW = "acemnorsuvwxz", "bdhkl", "gpqy"
SHAPE_SHARE = 0.7
"""Least share of a line's low letters, and of a word's tall and deep ones, that are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A PDF and its usable pages."""

    source: str | bytes  # a path, or the PDF itself
    pages: tuple[int, ...]  # from 1

    @property
    def name(self) -> str:
        """What it is called, without folders."""
        return Path(self.source).name if isinstance(self.source, str) else "bytes"


@lru_cache(maxsize=2)
def documents(split: Split) -> tuple[Document, ...]:
    """All documents with a usable page; the packages are fetched and looked through once.

    A page for training shows no family of fonts that is held out.
    """
    names = PACKAGES[split]
    pins = [packages()[name] for name in names]
    key = hashlib.sha256(repr(pins).encode()).hexdigest()[:16]
    kept = cache_folder("packages") / f"pages-{key}.json"
    if not kept.exists():
        other = SPLITS[1 - SPLITS.index(split)]
        foreign = frozenset(face.family for face in faces(other))
        paths = [path for folder in fetch_all(names) for path in sorted(folder.glob("*.pdf"))]
        found = [asdict(d) for path in paths if (d := examined(str(path), foreign)).pages]
        unfinished = kept.with_suffix(".part")
        unfinished.write_text(json.dumps(found), encoding="utf-8")
        unfinished.rename(kept)
    entries = json.loads(kept.read_text(encoding="utf-8"))
    return tuple(Document(source=e["source"], pages=tuple(e["pages"])) for e in entries)


def examined(source: str | bytes, foreign: frozenset[str] = frozenset()) -> Document:
    """The document with its pages of English text, without pages in a family of `foreign`."""
    usable = []
    try:
        with Pdf(source) as pdf:
            for number in range(1, len(pdf) + 1):
                if is_english(pdf.plain_text(number)) and not any(
                    family(font) in foreign for font in pdf.fonts(number)
                ):
                    usable.append(number)
    except PdfError:  # a damaged file of a package is left out from where it is damaged
        pass
    return Document(source=source, pages=tuple(usable))


def is_english(text: str) -> bool:
    """Whether this is English prose in characters that a plain font has."""
    printed = [char for char in text.translate(PLAIN) if not char.isspace() and char != "\x02"]
    letters = sum(char.isascii() and char.isalpha() for char in printed)
    plain = sum("!" <= char <= "~" for char in printed)
    if letters < LEAST_LETTERS or plain < ASCII_SHARE * len(printed):
        return False
    words = re.findall(r"[a-z]+", text.lower())
    common = len(COMMON.findall(text.lower()))
    return letters >= LETTER_SHARE * len(printed) and common >= COMMON_SHARE * len(words)


def is_prose(words: Sequence[str]) -> bool:
    """Whether most of a line's words are words, as opposed to code or a table."""
    return sum(WORD.fullmatch(word) is not None for word in words) > 0.7 * len(words)


def shown_text(line: TextLine) -> list[str] | None:
    """A line's words in printable ASCII, or None if it may show something else.

    A layer lies where a font draws signs, notes, runes or small capitals for the letters that it
    names. Then letters that should be tall, or reach below the line, do not.
    """
    words = [word.text.translate(PLAIN) for word in line.words]
    chars = line.chars
    if not all(char.sure and char.angle == 0 for char in chars):
        return None
    if any(_cover(*pair) for word in line.words for pair in pairwise(word.chars)):
        return None  # an accent that is drawn over its letter
    if not all("!" <= char <= "~" for word in words for char in word):
        return None
    if len(words) > 2 and sum(len(word) == 1 for word in words) > len(words) / 2:
        return None  # a formula, whose signs are not on one line
    return words if _has_latin_shapes(line) else None


def _has_latin_shapes(line: TextLine) -> bool:
    """Whether small letters have the heights and depths that their names promise."""
    short = sorted((char for char in line.chars if char.text in SHORT), key=_height)
    if not short:
        return True
    x_height = _height(short[len(short) // 2])
    base = sorted(char.box[3] for char in short)[len(short) // 2]
    level = [0.75 * x_height <= _height(char) <= 1.3 * x_height for char in short]
    if sum(level) < SHAPE_SHARE * len(level):
        return False
    for word in line.words:
        kept = [
            *(_height(char) >= 1.2 * x_height for char in word.chars if char.text in TALL),
            *(char.box[3] >= base + 0.12 * x_height for char in word.chars if char.text in LOW),
        ]
        if sum(kept) < SHAPE_SHARE * len(kept):
            return False
    return True


def _cover(first: TextChar, second: TextChar) -> bool:
    """Whether two characters of a word stand over each other."""
    (a1, _, a2, _), (b1, _, b2, _) = first.box, second.box
    return min(a2, b2) - max(a1, b1) > 0.7 * min(a2 - a1, b2 - b1)


def _height(char: TextChar) -> float:
    return char.box[3] - char.box[1]
