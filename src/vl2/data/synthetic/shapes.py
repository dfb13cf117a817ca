"""Plain shapes as polygons, drawn with anti-aliased edges."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Points = list[tuple[float, float]]

SUPERSAMPLING = 4
MAX_CORNERS = 12
"""Outlines of more points are smooth: their corners need no rounding."""
INK_THRESHOLD = 96
"""A pixel counts as drawn when the ink covers at least this much of 255."""


def _regular(corners: int, radius: float = 0.5) -> Points:
    turn = 2 * math.pi / corners
    return [(radius * math.sin(i * turn), -radius * math.cos(i * turn)) for i in range(corners)]


def _star() -> Points:
    outer, inner = _regular(10), _regular(10, 0.2)
    return [(outer if i % 2 == 0 else inner)[i] for i in range(10)]


def _heart() -> Points:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            16 * math.sin(t) ** 3 / 34,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 34
            - 0.07,
        )
        for t in turns
    ]


SHAPE_POINTS: dict[str, Points] = {
    # x to the right, y down, in a box of side 1 around the origin
    "circle": _regular(64),
    "square": [(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)],
    "triangle": [(0.0, -0.48), (0.5, 0.42), (-0.5, 0.42)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        *[(-0.16, -0.5), (0.16, -0.5), (0.16, -0.16), (0.5, -0.16), (0.5, 0.16), (0.16, 0.16)],
        *[(0.16, 0.5), (-0.16, 0.5), (-0.16, 0.16), (-0.5, 0.16), (-0.5, -0.16), (-0.16, -0.16)],
    ],
    "diamond": [(0.0, -0.5), (0.36, 0.0), (0.0, 0.5), (-0.36, 0.0)],
    "ring": _regular(64),
    "arrow": [
        *[(0.5, 0.0), (0.08, -0.4), (0.08, -0.15), (-0.5, -0.15)],
        *[(-0.5, 0.15), (0.08, 0.15), (0.08, 0.4)],
    ],
}
SHAPES: tuple[str, ...] = tuple(SHAPE_POINTS)

MAX_ROTATION: dict[str, float] = {
    # degrees to either side for which the name stays true and the shape easy to name
    "circle": 0.0,
    "square": 12.0,
    "triangle": 20.0,
    "star": 20.0,
    "heart": 25.0,
    "cross": 12.0,
    "diamond": 8.0,
    "ring": 0.0,
    "arrow": 20.0,
}
RING_HOLE = 0.52
"""Inner over outer diameter of a ring."""


def shape_masks(
    shape: str, *, size: float, angle: float, line_width: float = 0.0
) -> tuple[Image.Image, Image.Image | None]:
    """Coverage (mode L) of the whole shape and of its outline, both cropped to the ink.

    Args:
        shape: one of `SHAPES`.
        size: side of the unrotated shape's box in pixels.
        angle: clockwise rotation in degrees.
        line_width: outline width in pixels, 0 for none; the outline is part of the shape.
    """
    points = _placed(SHAPE_POINTS[shape], size, angle)
    pad = line_width / 2 + 1
    left, top = (min(p[i] for p in points) - pad for i in (0, 1))
    right, bottom = (max(p[i] for p in points) + pad for i in (0, 1))
    width, height = math.ceil(right - left) + 1, math.ceil(bottom - top) + 1
    scaled = [((x - left) * SUPERSAMPLING, (y - top) * SUPERSAMPLING) for x, y in points]
    hole = None
    if shape == "ring":
        ring_inner = _placed(_regular(64, 0.5 * RING_HOLE), size, angle)
        hole = [((x - left) * SUPERSAMPLING, (y - top) * SUPERSAMPLING) for x, y in ring_inner]
    canvas = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    body = _filled(canvas, scaled, hole)
    if line_width == 0:
        whole = body.reduce(SUPERSAMPLING)
        return whole.crop(tight_box(whole)), None
    line = _lined(canvas, scaled, hole, line_width)
    whole = ImageChops.lighter(body, line).reduce(SUPERSAMPLING)
    box = tight_box(whole)
    return whole.crop(box), line.reduce(SUPERSAMPLING).crop(box)


def tight_box(mask: Image.Image) -> tuple[int, int, int, int]:
    """The box (right and bottom exclusive) of the pixels that count as ink.

    Raises:
        ValueError: the mask has no ink.
    """
    ink = np.asarray(mask) >= INK_THRESHOLD
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if rows.size == 0:
        raise ValueError(f"a {mask.size} mask has no ink; draw something into it first")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _placed(points: Points, size: float, angle: float) -> Points:
    cos, sin = size * math.cos(math.radians(angle)), size * math.sin(math.radians(angle))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _filled(canvas: tuple[int, int], points: Points, hole: Points | None) -> Image.Image:
    mask = Image.new("L", canvas)
    draw = ImageDraw.Draw(mask)
    draw.polygon(points, fill=255)
    if hole:
        draw.polygon(hole, fill=0)
    return mask


def _lined(
    canvas: tuple[int, int], points: Points, hole: Points | None, line_width: float
) -> Image.Image:
    mask = Image.new("L", canvas)
    draw = ImageDraw.Draw(mask)
    for outline in (points, hole) if hole else (points,):
        joint = "curve" if len(outline) <= MAX_CORNERS else None
        width = round(line_width * SUPERSAMPLING)
        draw.line([*outline, *outline[:2]], fill=255, width=width, joint=joint)
    return mask
