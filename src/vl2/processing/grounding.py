"""Boxes: 0..999 in text, pixels of the source picture everywhere else (paper section 3.2)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from vl2.geometry import Resolution
from vl2.processing.picture_names import picture_asked, picture_told
from vl2.processing.tokenizer import GROUNDING_TOKENS, SPECIAL_TOKENS

GRID = 999
"""Coordinates in text run from 0 to this over the width and the height of the source picture."""

Coordinates = tuple[int, int, int, int]
"""x1, y1, x2, y2: the corner at the top left and the one at the bottom right."""


@dataclass(frozen=True, slots=True)
class Box:
    """One located object, in pixels of its source picture.

    `note` says so where another picture could be meant than the one at `image_index`; `span` is
    where the label stands in the answer's text, [start, end).
    """

    label: str
    x1: int
    y1: int
    x2: int
    y2: int
    score: float | None = None
    image_index: int = 0
    note: str | None = None
    span: tuple[int, int] | None = field(default=None, compare=False)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    wide = min(a.x2, b.x2) - max(a.x1, b.x1)
    high = min(a.y2, b.y2) - max(a.y1, b.y1)
    if wide <= 0 or high <= 0:
        return 0.0
    areas = ((box.x2 - box.x1) * (box.y2 - box.y1) for box in (a, b))
    return wide * high / (sum(areas) - wide * high)


_BOXES = re.compile(r"<\|det\|>(.*?)(?=<\|/det\|>|<\|ref\|>|<\|det\|>|\Z)", re.DOTALL)
_NUMBER = r"\s{0,8}(\d{1,9})(?:\.\d{0,9})?\s{0,8}"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def parse_grounding(
    text: str, image_sizes: Sequence[Resolution], *, question: str = "", sent: Sequence[int] = ()
) -> list[Box]:
    """Boxes of a grounded answer in order. Never raises: what is no good box is left out.

    Left out are boxes that are not four numbers within 0..999 with x1 <= x2 and y1 <= y2. A box
    whose answer breaks off, or whose `<|ref|>` is missing, still counts.

    With several pictures a box belongs to the one that the answer named last before it ("in the
    second image", "图二"), else to the one that the question names, else to that of the turn that
    asks, or of the latest turn before it that sent any. What leaves a choice is told by `Box.note`.

    Args:
        text: the model's answer with its special tokens.
        image_sizes: (width, height) of the source pictures.
        question: what was asked, to learn which picture is meant.
        sent: how many pictures each user turn sent, of which the last asks; by default it sent all.
    """
    if not image_sizes:
        return []
    boxes: list[Box] = []
    sent = sent if sum(sent) == len(image_sizes) else (len(image_sizes),)
    start, named = 0, picture_asked(question, sent)
    for found in _BOXES.finditer(text):
        named = picture_told(text[start : found.start()], sent, named)
        span = _label_between(text, start, found.start())
        start = found.end()
        for numbers in _BOX.findall(found[1]):
            x1, y1, x2, y2 = map(int, numbers)
            if x1 <= x2 <= GRID and y1 <= y2 <= GRID:
                pixels = to_pixels((x1, y1, x2, y2), image_sizes[named.index])
                label = text[slice(*span)] if span else ""
                boxes.append(
                    Box(label, *pixels, image_index=named.index, note=named.note, span=span)
                )
    return boxes


def to_pixels(box999: Sequence[int], size: Resolution) -> Coordinates:
    """Pixels of a box of 0..999 as the released demo computes them: int(v / 999 * size).

    Args:
        box999: x1, y1, x2, y2.
        size: (width, height) of the source picture.
    """
    x1, y1, x2, y2 = (_pixel(v, size[n % 2]) for n, v in enumerate(box999))
    return x1, y1, x2, y2


def to_999(box_px: Sequence[float], size: Resolution) -> Coordinates:
    """The numbers 0..999 that `to_pixels` brings back nearest to a box.

    Exact for whole pixels of pictures below 999 pixels wide and high. At 999 the released formula,
    which rounds down after dividing, gives five pixels as the one before.

    Args:
        box_px: x1, y1, x2, y2 in pixels of the source picture.
        size: its (width, height).

    Raises:
        ValueError: the box is not inside the picture, or its corners are in the wrong order.
    """
    x1, y1, x2, y2 = box_px
    inside = 0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]  # False for NaN, too
    if not inside:
        raise ValueError(
            f"box {tuple(box_px)} does not lie inside its picture of {size[0]} x {size[1]} pixels: "
            "expected 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height"
        )
    a, b, c, d = (_nearest(v, size[n % 2]) for n, v in enumerate(box_px))
    return a, b, c, d


def grounding_text(label: str, boxes_px: Sequence[Sequence[float]], size: Resolution) -> str:
    """A label and its boxes as the model writes them, for training answers on the trusted path.

    Raises:
        ValueError: a box outside the picture, or a label that holds a grounding token.
    """
    held = [SPECIAL_TOKENS[n] for n in GROUNDING_TOKENS if SPECIAL_TOKENS[n] in label]
    if held:
        raise ValueError(f"label {label!r} holds {held[0]}: give the plain name of the object")
    boxes = ", ".join(str(list(to_999(box, size))) for box in boxes_px)
    return f"<|ref|>{label}<|/ref|><|det|>[{boxes}]<|/det|>"


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], *, image_index: int | None = None
) -> Image.Image:
    """A copy of the picture with boxes and labels drawn on it.

    Args:
        image: the source picture of the boxes.
        boxes: in its pixels.
        image_index: draw only the boxes of this picture; all by default.
    """
    sheet = image.convert("RGB")
    pen = ImageDraw.Draw(sheet)
    width = max(2, round(min(sheet.size) / 200))
    font = ImageFont.load_default(max(11, min(sheet.size) / 32))
    colours: dict[str, str] = {}
    for number, box in enumerate(boxes, start=1):
        if image_index in (None, box.image_index):
            colour = colours.setdefault(box.label, _COLOURS[len(colours) % len(_COLOURS)])
            edges = (box.x1, box.y1, max(box.x1, box.x2 - 1), max(box.y1, box.y2 - 1))
            pen.rectangle(edges, outline=colour, width=width)
            _draw_label(pen, sheet.size, box, _legible(box.label, number), (colour, font))
    return sheet


_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#b35900", "#c2185b", "#00796b", "#4e342e")
"""Colours of boxes, dark enough for white letters."""


def _draw_label(
    pen: ImageDraw.ImageDraw,
    size: Resolution,
    box: Box,
    text: str,
    style: tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont],
) -> None:
    """White letters on the box's colour: above the box, or inside where there is no room above."""
    colour, font = style
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    wide, high = right - left + 6, bottom - top + 6
    x = max(0, min(box.x1, int(size[0] - wide)))
    y = box.y1 - high if box.y1 >= high else min(box.y1, max(0, int(size[1] - high)))
    pen.rectangle((x, y, x + wide, y + high), fill=colour)
    pen.text((x + 3 - left, y + 3 - top), text, "white", font)


def _legible(label: str, number: int) -> str:
    """The label without accents; the box's number where the built-in font lacks its letters."""
    spelt = unicodedata.normalize("NFKD", " ".join(label.split()))
    text = "".join(char for char in spelt if not unicodedata.combining(char))
    if not text or not text.isascii():
        return f"#{number}"
    return text if len(text) <= 40 else text[:37] + "..."


def _pixel(value: int, side: int) -> int:
    return int(value / GRID * side)


def _nearest(pixel: float, side: int) -> int:
    below = min(GRID, math.floor(pixel * GRID / side))
    return min((below, min(GRID, below + 1)), key=lambda value: abs(_pixel(value, side) - pixel))


def _label_between(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the text of the last `<|ref|>` in text[start:end] stands; its end may be missing."""
    mark = text.rfind("<|ref|>", start, end)
    if mark < 0:
        return None
    inside = text[mark + len("<|ref|>") : end].partition("<|/ref|>")[0]
    label = inside.strip()
    begin = mark + len("<|ref|>") + inside.find(label)
    return begin, begin + len(label)
