"""Tile grids and token counts, integers only: the one truth that processor and model share.

One image becomes a global view (one tile) and a mosaic of local tiles. After the adaptor each tile
is a `side x side` map of tokens; every row of a view ends in one newline token and one separator
stands between the two views (paper section 2; the released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Resolution = tuple[int, int]
"""(width, height) in pixels."""
PixelBox = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of a picture; x2 and y2 are exclusive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileGrid:
    """How one image is cut: `wide x high` local tiles beside the global view."""

    wide: int
    high: int

    @property
    def local_tiles(self) -> int:
        """Number of local tiles."""
        return self.wide * self.high

    @property
    def tiles(self) -> int:
        """Number of tiles with the global view."""
        return 1 + self.local_tiles


def patches_per_side(image_size: int, patch_size: int) -> int:
    """Patches along one side of a tile; a remainder of pixels is dropped (384/14 -> 27)."""
    return image_size // patch_size


def tokens_per_side(image_size: int, patch_size: int, downsample_ratio: int) -> int:
    """Tokens along one side of a tile after the adaptor, which pads up to the ratio (27 -> 14)."""
    return -(-patches_per_side(image_size, patch_size) // downsample_ratio)


def token_edges(image_size: int, patch_size: int, downsample_ratio: int) -> list[int]:
    """Pixels of a tile where its columns of tokens begin, and where the last one ends.

    The last token may have fewer patches than the others, and the remainder of pixels has none.
    """
    patches = patches_per_side(image_size, patch_size)
    tokens = tokens_per_side(image_size, patch_size, downsample_ratio)
    return [min(n * downsample_ratio, patches) * patch_size for n in range(tokens + 1)]


def global_tokens(side: int) -> int:
    """Tokens of the global view: `side` rows of `side` tokens and a newline."""
    return side * (side + 1)


def local_tokens(side: int, grid: TileGrid) -> int:
    """Tokens of the local mosaic: its rows run over all tiles abreast and end in one newline."""
    return side * grid.high * (side * grid.wide + 1)


def image_tokens(side: int, grid: TileGrid) -> int:
    """Placeholders of one image: global view, separator, local mosaic."""
    return global_tokens(side) + 1 + local_tokens(side, grid)


def fit_inside(size: Resolution, canvas: Resolution) -> Resolution:
    """Largest (width, height) of `size` that fits `canvas` with its aspect kept, truncated."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return int(size[0] * scale), int(size[1] * scale)


def padded_area(size: Resolution, canvas: Resolution) -> tuple[int, int, int, int]:
    """Where a picture lies on a canvas: x1, y1, x2, y2, as `ImageOps.pad` fits and centres it."""
    wide, high = canvas
    if size[0] * high > size[1] * wide:
        high = round(size[1] / size[0] * wide)
    elif size[0] * high < size[1] * wide:
        wide = round(size[0] / size[1] * high)
    x, y = round((canvas[0] - wide) * 0.5), round((canvas[1] - high) * 0.5)
    return x, y, x + wide, y + high


def select_resolution(size: Resolution, candidates: Sequence[Resolution]) -> Resolution:
    """Choose the canvas of the local view as the released code does (LLaVA-NeXT's rule).

    The largest effective area wins, then the smallest waste, then the earlier candidate. This is
    not the least padding that the paper's section 2 speaks of; the released code decides.

    Args:
        size: (width, height) of the picture, both at least 1.
        candidates: canvases in the order of config.json; the order decides exact ties.

    Raises:
        ValueError: a side below 1, or no candidate.
    """
    if min(size) < 1:
        raise ValueError(f"picture size {size} is not at least 1x1: give a picture with pixels")
    if not candidates:
        raise ValueError("candidate_resolutions is empty: give at least one (width, height)")
    best, best_key = candidates[0], (-1, 0)
    for canvas in candidates:
        fitted = fit_inside(size, canvas)
        effective = min(fitted[0] * fitted[1], size[0] * size[1])
        key = (effective, effective - canvas[0] * canvas[1])
        if key > best_key:
            best, best_key = canvas, key
    return best


def grid_of(canvas: Resolution, image_size: int) -> TileGrid:
    """Tile grid of a canvas whose sides are multiples of `image_size`.

    Raises:
        ValueError: a side is not a positive multiple of `image_size`.
    """
    if min(canvas) < image_size or canvas[0] % image_size or canvas[1] % image_size:
        raise ValueError(
            f"candidate resolution {canvas} is not made of {image_size}x{image_size} tiles: "
            f"use positive multiples of {image_size}"
        )
    return TileGrid(wide=canvas[0] // image_size, high=canvas[1] // image_size)
