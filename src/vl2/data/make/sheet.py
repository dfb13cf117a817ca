"""The picture in the making: text is set on it with the place of every character."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.make.fonts import Face, advance, glyph_box, load
from vl2.data.make.sample import Mark, union
from vl2.geometry import PixelBox

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How text is set."""

    face: Face
    size: int  # pixels per em
    colour: Colour = (0, 0, 0)
    spacing: float = 0.0  # extra pixels between characters

    @property
    def leading(self) -> int:
        """Usual distance of two baselines in pixels."""
        return round(self.size * 1.3)

    def width(self, text: str) -> int:
        """Pixels that a line of text takes."""
        return int(np.ceil(_positions(self, text)[-1])) if text else 0

    def shown(self, text: str) -> str:
        """The text as the face draws it."""
        return text.upper() if self.face.capitals_only else text


class Sheet:
    """A picture, what can be drawn on it, and the marks of what was drawn."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.marks: list[Mark] = []

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def text(self, x: float, y: float, text: str, style: Style) -> PixelBox:
        """Set one line with its top left at (x, y); its characters, words and the line are marked.

        Returns:
            The box of the line's ink.
        """
        text = style.shown(text)
        font, starts = load(style.face, style.size), _positions(style, text)
        left, top = round(x), round(y)
        if style.spacing:
            for char, start in zip(text, starts, strict=False):
                self.draw.text((left + start, top), char, fill=style.colour, font=font)
        else:
            self.draw.text((left, top), text, fill=style.colour, font=font)
        chars = []
        for char, start in zip(text, starts, strict=False):
            if char != " ":
                x1, y1, x2, y2 = glyph_box(style.face, style.size, char)
                at = left + round(start)
                chars.append(
                    Mark(kind="char", text=char, box=(at + x1, top + y1, at + x2, top + y2))
                )
        words = _words(text, chars)
        line = Mark(kind="line", text=" ".join(text.split()), box=union([m.box for m in chars]))
        self.marks += [line, *words, *chars]
        return line.box

    def mark(self, text: str, box: PixelBox, kind: str = "thing") -> PixelBox:
        """Note something that was drawn."""
        self.marks.append(Mark(kind=kind, text=text, box=box))  # pyright: ignore[reportArgumentType]
        return box


def wrap(text: str, style: Style, width: float) -> list[str]:
    """Lines of at most `width` pixels; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and style.width(style.shown(longer)) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fitting(text: str, style: Style, width: float, least: int = 8) -> Style:
    """The style at the largest size, from its own down to `least`, at which the text fits."""
    needed = style.width(style.shown(text))
    if needed <= width:
        return style
    return replace(style, size=max(least, int(style.size * width / needed)))


def _positions(style: Style, text: str) -> list[float]:
    """Where each character starts, and where the last one ends, from the line's start."""
    places, x = [0.0], 0.0
    for char, following in zip(text, f"{text[1:]} ", strict=True):
        x += advance(style.face, style.size, char, following) + style.spacing
        places.append(x)
    return places


def _words(text: str, chars: list[Mark]) -> list[Mark]:
    words, start = [], 0
    for word in text.split():
        boxes = [mark.box for mark in chars[start : start + len(word)]]
        words.append(Mark(kind="word", text=word, box=union(boxes)))
        start += len(word)
    return words
