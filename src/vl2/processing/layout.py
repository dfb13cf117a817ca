"""What a processor knows about tiles: candidates, sizes, token counts, normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from vl2 import geometry
from vl2.geometry import Resolution, TileGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLayout:
    """How pictures become tiles, and tiles tokens."""

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

    @property
    def one_tile(self) -> Resolution:
        """The canvas of a picture that is not cut."""
        return (self.image_size, self.image_size)

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour around a picture: the mean, truncated to bytes."""
        return tuple(int(value * 255) for value in self.mean)

    def grid(self, canvas: Resolution) -> TileGrid:
        """Tiles of a canvas."""
        return geometry.grid_of(canvas, self.image_size)

    def tokens(self, canvas: Resolution) -> int:
        """Placeholders of a picture on a canvas."""
        return geometry.image_tokens(self.side, self.grid(canvas))
