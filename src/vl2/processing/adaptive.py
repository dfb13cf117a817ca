"""Content-adaptive choice of the canvas: no more tiles than the picture's detail needs.

A canvas coarser than the released rule's throws away what only fine pixels can carry. To measure
that, the picture is taken at its size on the released canvas, scaled down to the coarser canvas and
up again. Window by window (48 pixels, every 16) the energy of the difference is compared with the
variance of the window, or of a neighbour if that is larger, because a window that just touches an
edge has little variance of its own. A window is lost when more than a quarter of that is gone and
the difference exceeds 6 grey levels (below it is noise of sensors and of JPEG); a canvas keeps the
detail when at most 0.2 % of the windows are lost. By this measure printed text does not shrink
below a font size of about 10 pixels, and a page number alone is noticed; large shapes and soft
photographs shrink to one tile.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from vl2 import geometry
from vl2.geometry import Resolution
from vl2.processing.layout import TileLayout

LOST_VARIANCE = 0.25
LOST_LEVELS = 6.0
LOST_WINDOWS = 0.002
_CELL = 16
"""Windows are 3x3 cells."""


def choose_by_content(image: Image.Image, layout: TileLayout) -> Resolution:
    """The canvas of fewest tokens that keeps the detail of the released rule's canvas."""
    released = geometry.select_resolution(image.size, layout.candidates)
    budget = layout.tokens(released)
    cheaper = [canvas for canvas in layout.candidates if layout.tokens(canvas) < budget]
    if not cheaper:
        return released
    finest = _shrunk(image, released)
    detail = DetailMeter(finest)
    too_coarse = 0.0
    for canvas in sorted(cheaper, key=layout.tokens):
        scale = min(canvas[0] / finest.width, canvas[1] / finest.height)
        if scale <= too_coarse:
            continue
        if scale >= 1 or detail.lost(_shrunk(finest, canvas)) <= LOST_WINDOWS:
            return canvas
        too_coarse = scale
    return released


class DetailMeter:
    """Measures what a smaller copy of one picture has lost."""

    def __init__(self, image: Image.Image) -> None:
        self._size = image.size
        self._pixels = np.asarray(image, dtype=np.float32) - 128
        self._count = _window_sums(np.ones_like(self._pixels[..., :1]))
        mean = _window_sums(self._pixels) / self._count
        # Over the three channels: red text on green of the same brightness is detail, too.
        square = _window_sums(self._pixels * self._pixels) / self._count
        self._variance = np.max(_neighbours((square - mean * mean).mean(-1)), axis=0)

    def lost(self, smaller: Image.Image) -> float:
        """Share of windows (0 to 1) whose detail `smaller`, of the same picture, lacks."""
        back = smaller.resize(self._size, Image.Resampling.BICUBIC)
        change = np.asarray(back, dtype=np.float32) - 128 - self._pixels
        energy = (_window_sums(change * change) / self._count).mean(-1)
        gone = (energy > LOST_VARIANCE * self._variance) & (energy > LOST_LEVELS**2)
        return float(gone.mean())


def _shrunk(image: Image.Image, canvas: Resolution) -> Image.Image:
    """The picture as it is fitted into a canvas, but never enlarged."""
    scale = min(canvas[0] / image.width, canvas[1] / image.height)
    if scale >= 1:
        return image
    wide, high = (max(1, round(side * scale)) for side in image.size)
    return image.resize((wide, high), Image.Resampling.BICUBIC)


def _window_sums(values: Float[ndarray, "h w c"]) -> Float[ndarray, "y x c"]:
    """Sums over 3x3 cells around every cell; what lies outside the picture counts as nothing."""
    high, wide = -(-values.shape[0] // _CELL), -(-values.shape[1] // _CELL)
    room = np.zeros((high * _CELL, wide * _CELL, values.shape[2]), dtype=np.float32)
    room[: values.shape[0], : values.shape[1]] = values
    rows = room.reshape(high, _CELL, -1).sum(1)
    cells = rows.reshape(high, wide, _CELL, -1).sum(2).astype(np.float64)
    return np.sum(_neighbours(cells), axis=0)


def _neighbours(cells: Float[ndarray, "y x *c"]) -> list[Float[ndarray, "y x *c"]]:
    """The cells and their eight neighbours, shifted onto them; zero outside."""
    high, wide = cells.shape[:2]
    padded = np.pad(cells, ((1, 1), (1, 1), *((0, 0),) * (cells.ndim - 2)))
    return [padded[y : y + high, x : x + wide] for y in range(3) for x in range(3)]
