"""Boxes: 0..999 in text, pixels of the source picture everywhere else (paper section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vl2.geometry import Resolution

GRID = 999
"""Coordinates in text run from 0 to this number over the width or height of the source picture."""

Coordinates = tuple[int, int, int, int]
"""x1, y1, x2, y2: top left and bottom right."""


@dataclass(frozen=True, slots=True)
class Box:
    """One located object in pixels of its source picture."""

    label: str
    x1: int
    y1: int
    x2: int
    y2: int
    score: float | None = None
    image_index: int = 0


_DET = re.compile(r"<\|det\|>(.*?)(?=<\|/det\|>|<\|ref\|>|<\|det\|>|\Z)", re.DOTALL)
_NUMBER = r"\s{0,8}(-?\d{1,9}(?:\.\d{1,9})?)\s{0,8}"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def parse_grounding(text: str, image_sizes: Sequence[Resolution]) -> list[Box]:
    """Boxes of a grounded answer, in order. Never raises; what is no good box is left out."""
    boxes: list[Box] = []
    start = 0
    for found in _DET.finditer(text):
        label = _label(text[start : found.start()])
        start = found.end()
        for numbers in _BOX.findall(found[1]):
            box = tuple(int(float(n)) for n in numbers)
            if image_sizes and _is_good(box):
                boxes.append(Box(label, *to_pixels(box, image_sizes[0])))
    return boxes


def to_pixels(box999: Sequence[int], size: Resolution) -> Coordinates:
    """Pixels of a box of 0..999, as the released demo computes them: int(v / 999 * size)."""
    x1, y1, x2, y2 = (int(v / GRID * size[n % 2]) for n, v in enumerate(box999))
    return x1, y1, x2, y2


def _label(before: str) -> str:
    found = before.rpartition("<|ref|>")
    return found[2].partition("<|/ref|>")[0].strip() if found[1] else ""


def _is_good(box: Sequence[int]) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 <= x2 <= GRID and 0 <= y1 <= y2 <= GRID
