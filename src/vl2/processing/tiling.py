"""A picture as tiles: the global view first, then the local tiles row by row.

Source: DeepSeek-VL2 paper section 2 and the released processor (`ImageOps.pad`, bicubic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from vl2 import geometry
from vl2.geometry import Resolution, TileGrid
from vl2.processing.image_gate import ImageError

Tiling = Literal["released", "content"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLayout:
    """Everything that turns a picture into tiles, and how many tokens they become."""

    candidates: tuple[Resolution, ...]  # (width, height); the order decides exact ties
    image_size: int  # side of a tile in pixels
    side: int  # side of a tile in tokens
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    normalize: bool = True

    def __post_init__(self) -> None:
        """Check that every candidate is made of tiles."""
        for canvas in self.candidates:
            geometry.grid_of(canvas, self.image_size)

    def grid(self, canvas: Resolution) -> TileGrid:
        """Tile grid of a candidate."""
        return geometry.grid_of(canvas, self.image_size)

    def tokens(self, canvas: Resolution) -> int:
        """Placeholders of a picture on this canvas."""
        return geometry.image_tokens(self.side, self.grid(canvas))

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour around the picture: the mean, truncated to bytes."""
        return tuple(int(value * 255) for value in self.mean)


def choose_canvas(image: Image.Image, layout: TileLayout, tiling: Tiling) -> Resolution:
    """Canvas of the local view under either rule."""
    return geometry.select_resolution(image.size, layout.candidates)


def cut_views(image: Image.Image, canvas: Resolution, layout: TileLayout) -> list[Image.Image]:
    """The global view, then the tiles of the canvas, outer loop over rows.

    Raises:
        ImageError: the picture is so thin that nothing of it would be left in any view.
    """
    _check_thickness(image.size, canvas, layout.image_size)
    size = layout.image_size
    whole = ImageOps.pad(image, (size, size), color=layout.fill)
    local = ImageOps.pad(image, canvas, color=layout.fill)
    corners = [(x, y) for y in range(0, canvas[1], size) for x in range(0, canvas[0], size)]
    return [whole, *(local.crop((x, y, x + size, y + size)) for x, y in corners)]


def to_pixels(views: Sequence[Image.Image], layout: TileLayout) -> Float[Tensor, "n 3 size size"]:
    """Views of equal size as float32, normalised to (x / 255 - mean) / std."""
    stacked = np.stack([np.asarray(view) for view in views])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    if layout.normalize:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (layout.mean, layout.std))
        pixels = pixels.sub_(mean).div_(std)
    return pixels.contiguous()


def _check_thickness(size: Resolution, canvas: Resolution, tile: int) -> None:
    """`ImageOps.contain` rounds a side to zero for extreme shapes and leaves an empty view."""
    for wide, high in ((tile, tile), canvas):
        scale = min(wide / size[0], high / size[1])
        if round(size[0] * scale) >= 1 and round(size[1] * scale) >= 1:
            return
    raise ImageError("too_thin")
