"""Smooth lines of a pen on a picture: straight and exact, or wobbly as if drawn by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.make.chance import between
from vl2.data.make.sheet import Colour, Sheet
from vl2.geometry import PixelBox

Point = tuple[float, float]
SCALE = 2  # strokes are drawn larger and reduced, so that their edges are smooth


class Pen:
    """Collects strokes of one colour; `lift` puts them on the sheet."""

    def __init__(
        self, rng: np.random.Generator, sheet: Sheet, *, width: int, wobble: float, strokes: int = 1
    ) -> None:
        self.rng = rng
        self.sheet = sheet
        self.width = width
        self.wobble = wobble
        """Most that a line strays, in pixels; 0 for a ruler's lines."""
        self.strokes = strokes
        """How often each line is drawn; a sketch draws twice."""
        size = (sheet.size[0] * SCALE, sheet.size[1] * SCALE)
        self.layer = Image.new("L", size)
        self.draw = ImageDraw.Draw(self.layer)

    def line(self, points: Sequence[Point]) -> None:
        """A line through all points."""
        for _ in range(self.strokes):
            path = list(points)
            if self.wobble:
                pairs = itertools.pairwise(points)
                path = [point for a, b in pairs for point in self._strayed(a, b)]
            big = [(x * SCALE, y * SCALE) for x, y in path]
            self.draw.line(big, fill=255, width=self.width * SCALE, joint="curve")

    def closed(self, points: Sequence[Point]) -> None:
        """A line around an area."""
        self.line([*points, points[0], points[1]] if not self.wobble else [*points, points[0]])

    def area(self, points: Sequence[Point]) -> None:
        """A filled area, in the colour of the pen."""
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=255)

    def wipe(self, box: PixelBox) -> None:
        """Take away what was drawn in a box."""
        self.draw.rectangle([SCALE * v for v in box], fill=0)

    def arrow(self, start: Point, end: Point, head: float, *, filled: bool) -> None:
        """A line with a head at its end."""
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        wings = [
            (end[0] - head * math.cos(angle + turn), end[1] - head * math.sin(angle + turn))
            for turn in (-0.45, 0.45)
        ]
        if filled:
            back = head * 0.8
            stop = (end[0] - back * math.cos(angle), end[1] - back * math.sin(angle))
            self.line([start, stop])
            self.area([end, *wings])
        else:
            self.line([start, end])
            self.line([wings[0], end, wings[1]])

    def lift(self, colour: Colour) -> None:
        """Put all strokes on the sheet, and begin anew."""
        self.sheet.image.paste(colour, (0, 0), self.layer.reduce(SCALE))
        self.layer.paste(0, (0, 0, *self.layer.size))

    def _strayed(self, a: Point, b: Point) -> list[Point]:
        """Points of a line from a to b that a hand draws."""
        length = math.hypot(b[0] - a[0], b[1] - a[1])
        far = min(self.wobble, length / 12)
        bend, phase = between(self.rng, -far, far), between(self.rng, 0, math.tau)
        nx, ny = (b[1] - a[1]) / (length or 1), (a[0] - b[0]) / (length or 1)
        points = []
        for n in range(steps := max(2, int(length / 12)) + 1):
            share = n / (steps - 1)
            off = bend * math.sin(math.pi * share)
            off += far * 0.4 * math.sin(phase + share * length / 15) * math.sin(math.pi * share)
            x, y = a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share
            points.append((x + off * nx, y + off * ny))
        return points


def ellipse(middle: Point, half: Point, steps: int = 40) -> list[Point]:
    """Points of an ellipse."""
    turns = [math.tau * n / steps for n in range(steps)]
    return [(middle[0] + half[0] * math.cos(t), middle[1] + half[1] * math.sin(t)) for t in turns]
