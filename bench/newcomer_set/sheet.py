"""The paper that a picture is drawn on, and the look of a photograph."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from newcomer_set.fonts import Face

Box = tuple[int, int, int, int]

COLOURS = {
    "red": "#d02020", "blue": "#1f4fc4", "green": "#1f9a3d", "yellow": "#f7d313",
    "orange": "#f58216", "purple": "#7d2fa6", "pink": "#f48fc0", "brown": "#7a4a21",
    "black": "#101010", "white": "#ffffff", "grey": "#8a8a8a",
}  # fmt: skip


def names_of(colour: str) -> tuple[str, ...]:
    """The accepted names of a colour."""
    more = {"grey": ("gray",), "purple": ("violet",)}
    return (colour, *more.get(colour, ()))


class Sheet:
    """A picture under the pen. Coordinates are pixels of the finished picture.

    Args:
        size: (width, height).
        paper: its colour.
        zoom: it is drawn so much larger and then made smaller, so that edges are smooth.
    """

    def __init__(self, size: Sequence[int], paper: str = "white", zoom: int = 1) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.zoom = zoom
        self.large = Image.new("RGB", (self.size[0] * zoom, self.size[1] * zoom), paper)
        self.pen = ImageDraw.Draw(self.large)

    def picture(self) -> Image.Image:
        """The finished picture."""
        return self.large.reduce(self.zoom) if self.zoom > 1 else self.large

    def _out(self, points: Sequence[float]) -> list[float]:
        return [round(value * self.zoom) for value in points]

    def text(
        self,
        at: Sequence[float],
        words: str,
        face: Face,
        size: float,
        *,
        fill: str = "black",
        bold: bool = False,
        anchor: str = "la",
    ) -> Box:
        """Print words and return the box of their ink."""
        font = face.at(size * self.zoom, bold=bold)
        x, y = self._out(at)
        self.pen.text((x, y), words, fill, font, anchor)
        found = self.pen.textbbox((x, y), words, font, anchor)
        left, top, right, bottom = (value / self.zoom for value in found)
        return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)

    def width(self, words: str, face: Face, size: float, *, bold: bool = False) -> float:
        """The width of a line of print."""
        return face.at(size * self.zoom, bold=bold).getlength(words) / self.zoom

    def fitting(
        self, words: str, face: Face, size: float, room: float, *, bold: bool = False
    ) -> float:
        """The size, made smaller where the line would be wider than the room."""
        wide = self.width(words, face, size, bold=bold)
        return size if wide <= room else size * room / wide * 0.98

    def wrapped(self, words: str, face: Face, size: float, room: float) -> list[str]:
        """The lines of a text in a column so wide."""
        lines: list[str] = []
        for word in words.split():
            if lines and self.width(f"{lines[-1]} {word}", face, size) <= room:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def rect(
        self,
        box: Sequence[float],
        fill: str | None = None,
        outline: str | None = None,
        *,
        width: float = 1,
        radius: float = 0,
    ) -> Box:
        """A rectangle, with round corners where a radius is given."""
        thick = round(width * self.zoom) if outline else 0
        self.pen.rounded_rectangle(self._out(box), radius * self.zoom, fill, outline, thick)
        return _whole(box)

    def oval(
        self,
        box: Sequence[float],
        fill: str | None = None,
        outline: str | None = None,
        width: float = 1,
    ) -> Box:
        """An ellipse that fills a box."""
        self.pen.ellipse(self._out(box), fill, outline, round(width * self.zoom) if outline else 0)
        return _whole(box)

    def slice(self, box: Sequence[float], start: float, end: float, fill: str) -> None:
        """A slice of a pie, in degrees clockwise from three o'clock."""
        self.pen.pieslice(self._out(box), start, end, fill, "white", 2 * self.zoom)

    def arc(self, box: Sequence[float], start: float, end: float, fill: str, width: float) -> None:
        """A part of an ellipse's edge."""
        self.pen.arc(self._out(box), start, end, fill, round(width * self.zoom))

    def shape(
        self, points: Sequence[Sequence[float]], fill: str | None, outline: str | None = None
    ) -> Box:
        """A polygon, and the box of its corners."""
        flat = [value for point in points for value in point]
        self.pen.polygon(self._out(flat), fill, outline)
        return _whole((min(flat[::2]), min(flat[1::2]), max(flat[::2]), max(flat[1::2])))

    def line(self, points: Sequence[float], fill: str = "black", width: float = 1) -> None:
        """Straight lines from point to point."""
        self.pen.line(self._out(points), fill, max(1, round(width * self.zoom)), "curve")


def _whole(box: Sequence[float]) -> Box:
    x1, y1, x2, y2 = box
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def around(*boxes: Sequence[float]) -> Box:
    """The smallest box that holds all of them."""
    rows: Any = list(zip(*boxes, strict=True))
    return _whole((min(rows[0]), min(rows[1]), max(rows[2]), max(rows[3])))


def photographed(
    picture: Image.Image, rng: random.Random
) -> tuple[Image.Image, Callable[[Sequence[float]], Box]]:
    """The picture as if it lay on a desk before a camera, and where a box of it went."""
    edge = round(min(picture.size) * 0.03) + 8
    desk = rng.choice(["#6b5844", "#54585c", "#877a66", "#3f4a4f"])
    laid = ImageOps.expand(picture, edge, desk)
    angle = rng.uniform(1.0, 2.0) * rng.choice([-1, 1])
    turned = laid.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=desk)
    shade = Image.linear_gradient("L").rotate(rng.choice([0, 90, 180, 270])).resize(turned.size)
    turned = ImageChops.multiply(turned, Image.merge("RGB", [shade.point(_dimmed)] * 3))
    turned = turned.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8)))
    memory = io.BytesIO()
    turned.save(memory, "JPEG", quality=rng.randint(60, 80))
    taken = Image.open(memory).convert("RGB")
    turn = math.radians(angle)

    def moved(box: Sequence[float]) -> Box:
        corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
        spots: list[tuple[float, float]] = []
        for x, y in corners:
            dx, dy = x + edge - laid.width / 2, y + edge - laid.height / 2
            spots.append(
                (
                    dx * math.cos(turn) + dy * math.sin(turn) + taken.width / 2,
                    dy * math.cos(turn) - dx * math.sin(turn) + taken.height / 2,
                )
            )
        xs, ys = [x for x, _ in spots], [y for _, y in spots]
        return _whole((min(xs), min(ys), max(xs), max(ys)))

    return taken, moved


def _dimmed(value: int) -> float:
    return 190 + value * 65 / 255
