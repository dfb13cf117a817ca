"""A flat layer laid into a picture as a camera sees it: turned and in perspective, boxes tight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between
from vl2.data.make.sample import Mark, union
from vl2.data.make.sheet import Sheet
from vl2.geometry import PixelBox

Corners = np.ndarray
"""[4, 2]: top left, top right, bottom right, bottom left, in pixels."""


def seen(
    rng: np.random.Generator, size: tuple[int, int], degrees: float, depth: float
) -> tuple[Corners, tuple[int, int]]:
    """Corners of a layer that was turned and drawn nearer at some corners, and the size around.

    Args:
        rng: decides how.
        size: width and height of the layer.
        degrees: most that it is turned by, either way.
        depth: most that a corner moves inward, as a share of the shorter side.
    """
    width, height = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    angle = np.deg2rad(between(rng, -degrees, degrees))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inward = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * rng.random((4, 2))
    corners = (corners + inward * depth * min(size)) @ turn
    corners -= corners.min(0)
    right, bottom = np.ceil(corners.max(0)).astype(int)
    return corners, (int(right) + 1, int(bottom) + 1)


def lay(
    sheet: Sheet, layer: Sheet, mask: Image.Image, at: tuple[int, int], to: Corners
) -> PixelBox:
    """Paste a layer where its mask is, with its corners at `to` right and below of `at`.

    The layer's marks are added to the sheet's.

    Returns:
        The box of what was pasted.
    """
    width, height = layer.size
    flat = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    box = (*at, *(int(v) for v in np.ceil(to.max(0)) + at + 1))
    size = (box[2] - box[0], box[3] - box[1])
    back = tuple(_projection(to, flat).reshape(-1)[:8].tolist())
    how = (Image.Transform.PERSPECTIVE, back, Image.Resampling.BILINEAR)
    ink = mask.transform(size, *how)
    sheet.image.paste(layer.image.transform(size, *how), at, ink)
    sheet.marks += moved_marks(layer.marks, _projection(flat, to), at)
    x1, y1, x2, y2 = ink.point([255 * (v > 127) for v in range(256)]).getbbox() or (0, 0, *size)
    return at[0] + x1, at[1] + y1, at[0] + x2, at[1] + y2


def moved_marks(
    marks: Sequence[Mark], forward: np.ndarray, at: tuple[int, int] = (0, 0)
) -> list[Mark]:
    """Marks after a projection; words and lines are the union of their characters.

    The box of a turned line would else be higher than its ink, by the slant over its whole length.
    """
    found = [replace(mark, box=_moved(mark.box, forward, at)) for mark in marks]
    for k, mark in enumerate(found):
        if mark.kind == "line":
            parts = itertools.takewhile(
                lambda n: found[n].kind in ("word", "char"), range(k + 1, len(found))
            )
            _gathered(found, k, list(parts))
    return found


def _gathered(marks: list[Mark], line: int, parts: Sequence[int]) -> None:
    """Make a line and its words as large as their characters, where all of these are marked."""
    words = [n for n in parts if marks[n].kind == "word"]
    chars = [n for n in parts if marks[n].kind == "char"]
    if not chars or sum(len(marks[n].text) for n in words) != len(chars):
        return
    rest = iter(chars)
    for n in words:
        own = [marks[next(rest)].box for _ in marks[n].text]
        marks[n] = replace(marks[n], box=union(own))
    marks[line] = replace(marks[line], box=union([marks[n].box for n in chars]))


def _moved(box: PixelBox, forward: np.ndarray, at: tuple[int, int]) -> PixelBox:
    x1, y1, x2, y2 = box
    corners = np.array([(x1, y1, 1), (x2, y1, 1), (x1, y2, 1), (x2, y2, 1)]) @ forward.T
    places = corners[:, :2] / corners[:, 2:] + at
    (left, top), (right, bottom) = np.round(places.min(0)), np.round(places.max(0))
    return int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)


def _projection(source: Corners, target: Corners) -> np.ndarray:
    """[3, 3]: the projection that takes four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)
