"""Pictures of requests: what they are known by, and their features, each encoded once.

A picture is known by the digest of its tiles and grid. Its features stay in memory up to a number
of bytes, the longest unused going first, so that another question about it needs no vision tower.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vl2.geometry import TileGrid, image_tokens
from vl2.model.vl2 import VL2Model
from vl2.processing.inputs import ModelInputs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """One picture of a prompt; its features fill placeholders `first` to `first + tokens`."""

    digest: bytes
    tiles: Tensor  # [1 + local tiles, 3, size, size]
    grid: TileGrid
    first: int
    tokens: int


def pictures_of(inputs: ModelInputs, side: int, sight: bytes = b"") -> tuple[Picture, ...]:
    """The pictures of a checked sample on the CPU, in order.

    `side` is of a tile in tokens, `sight` the name of what makes other features of them.
    """
    pictures: list[Picture] = []
    tile = place = 0
    for wide, high in inputs.images_spatial_crop.tolist():
        if wide < 1 or high < 1:
            continue
        grid = TileGrid(wide=wide, high=high)
        tiles = inputs.images[tile : tile + grid.tiles]
        tokens = image_tokens(side, grid)
        digest = hashlib.sha256(sight + f"{wide}x{high}".encode())
        digest.update(tiles.contiguous().numpy().data)
        pictures.append(
            Picture(digest=digest.digest(), tiles=tiles, grid=grid, first=place, tokens=tokens)
        )
        tile, place = tile + grid.tiles, place + tokens
    return tuple(pictures)


@dataclass(slots=True)
class VisionStats:
    """What the vision side did: tiles that ran through the tower, pictures found in the cache."""

    tiles: int = 0
    hits: int = 0


@dataclass(kw_only=True, slots=True)
class VisionEncoder:
    """The vision tower and adaptor with a cache of `capacity` bytes in front of them."""

    model: VL2Model
    capacity: int
    tiles_per_batch: int
    stats: VisionStats = field(default_factory=VisionStats)
    _features: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)
    _held: int = 0

    def encode(self, pictures: Iterable[Picture]) -> dict[bytes, Float[Tensor, "t h"]]:
        """Features of pictures by digest; new ones run together, `tiles_per_batch` tiles at most.

        A picture with more tiles than that runs alone.
        """
        wanted = {picture.digest: picture for picture in pictures}
        found = {digest: self._features[digest] for digest in wanted if digest in self._features}
        self.stats.hits += len(found)
        for digest in found:
            self._features.move_to_end(digest)
        missing = [picture for digest, picture in wanted.items() if digest not in found]
        for group in _groups(missing, self.tiles_per_batch):
            for picture, features in zip(group, self._run(group), strict=True):
                found[picture.digest] = features
                self._keep(picture.digest, features)
        return found

    def _run(self, group: Sequence[Picture]) -> list[Tensor]:
        device = self.model.image_newline.device
        tiles = torch.cat([picture.tiles for picture in group])
        crops = torch.tensor([[picture.grid.wide, picture.grid.high] for picture in group])
        self.stats.tiles += len(tiles)
        return self.model.encode_images(tiles[None].to(device), crops[None].to(device))

    def _keep(self, digest: bytes, features: Tensor) -> None:
        if features.nbytes > self.capacity:
            return
        self._features[digest] = features
        self._held += features.nbytes
        while self._held > self.capacity:
            _, dropped = self._features.popitem(last=False)
            self._held -= dropped.nbytes


def _groups(pictures: Sequence[Picture], tiles: int) -> list[list[Picture]]:
    """Neighbours together as long as their tiles are few enough."""
    groups: list[list[Picture]] = []
    room = 0
    for picture in pictures:
        if picture.grid.tiles > room:
            groups.append([])
            room = tiles
        groups[-1].append(picture)
        room -= picture.grid.tiles
    return groups
