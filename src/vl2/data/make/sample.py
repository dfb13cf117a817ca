"""What a maker returns: a picture, everything that stands on it, and questions with answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from vl2.geometry import PixelBox

MarkKind = Literal["char", "word", "line", "block", "cell", "thing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something with a place: a character, a word, a line, a button, a bar, a shape."""

    kind: MarkKind
    text: str
    """The characters themselves, or what one calls the thing."""
    box: PixelBox
    """Tight around the ink."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A name with its places, inside of a question or an answer."""

    label: str
    boxes: tuple[PixelBox, ...] = ()
    """Empty: only the name is marked, as in a request to locate it."""


Text = tuple[str | Spot, ...]
"""Words and places in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A question as a person writes it, and its true answer."""

    skill: str
    """What it takes, such as "line.read"; scores are counted by it."""
    question: Text
    answer: Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A picture (RGB) with its ground truth. The first marks in reading order stand first."""

    image: Image.Image
    marks: tuple[Mark, ...]
    asks: tuple[Ask, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    """What only this kind has, as JSON: the rows of a table, the values of a chart."""

    def of(self, kind: MarkKind) -> list[Mark]:
        """The marks of one kind."""
        return [mark for mark in self.marks if mark.kind == kind]


def ask(skill: str, question: str | Text, answer: str | Text) -> Ask:
    """An `Ask` of plain text or of text and places."""
    return Ask(skill=skill, question=_text(question), answer=_text(answer))


def plain(text: Text) -> str:
    """The words alone; a spot counts as its label."""
    return "".join(part if isinstance(part, str) else part.label for part in text)


def union(boxes: Sequence[PixelBox]) -> PixelBox:
    """The smallest box around all of `boxes` (at least one)."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _text(value: str | Text) -> Text:
    return (value,) if isinstance(value, str) else value
