"""Tiles with the place of every legible character, drawn ahead into shards for the tower.

A shard is a pure function of its number. Tiles are what the processor cuts from a made picture:
global views and local tiles at their true scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vl2.data.collate import TrainBatch
from vl2.data.make.chance import pick_weighted
from vl2.data.make.fonts import ASCII
from vl2.data.make.kinds import KINDS
from vl2.data.make.sample import Made
from vl2.data.make.world import World
from vl2.geometry import Resolution
from vl2.processing.layout import TileLayout
from vl2.processing.tiling import choose_canvas, cut_views
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import to_pixels

TILES_PER_SHARD = 1000
LEGIBLE = 7.0
"""Least height in pixels of a character's ink on its tile, with the small ones counted by width."""
FEWEST = 3
"""A tile with fewer characters is left out."""
PER_PICTURE = 2
CELLS = 4
"""A character's place within its patch is told in CELLS x CELLS cells."""


class CharPlace(NamedTuple):
    """A character on a tile."""

    x: float  # of its centre, in pixels of the tile
    y: float
    char: int  # 1 + its index in `ASCII`; 0 where there is none


def layout() -> TileLayout:
    """How the embedded model's processor cuts pictures."""
    config = embedded()
    return TileLayout(
        candidates=config.candidate_resolutions,
        image_size=config.vision_config.image_size,
        side=-(-config.vision_config.patches_per_side // config.projector_config.downsample_ratio),
    )


def draw_tiles(
    number: int,
    seed: int,
    kinds: Mapping[str, float],
    world: World,
    count: int = TILES_PER_SHARD,
) -> dict[str, Tensor]:
    """One shard: `tiles` uint8 [n, 3, s, s], `places` int32 [m, 4] of (tile, x, y, char)."""
    cuts = layout()
    rng = np.random.default_rng((seed, number))
    tiles: list[np.ndarray] = []
    places: list[tuple[int, int, int, int]] = []
    while len(tiles) < count:
        made = KINDS[pick_weighted(rng, kinds)](rng, world)
        for view, found in itertools.islice(dense_views(made, cuts), count - len(tiles)):
            places += [(len(tiles), int(x), int(y), char) for x, y, char in found]
            tiles.append(view)
    return {
        "tiles": torch.from_numpy(np.stack(tiles).transpose(0, 3, 1, 2).copy()),
        "places": torch.tensor(places, dtype=torch.int32),
    }


def dense_views(made: Made, layout: TileLayout) -> Iterator[tuple[np.ndarray, list[CharPlace]]]:
    """The views of a picture with the most legible characters, uint8 [s, s, 3]."""
    canvas = choose_canvas(made.image, layout)
    views = cut_views(made.image, canvas, layout)
    size = layout.image_size
    found = [_places(made, layout.one_tile, (0, 0), size)]
    corners = [(x, y) for y in range(0, canvas[1], size) for x in range(0, canvas[0], size)]
    found += [_places(made, canvas, corner, size) for corner in corners]
    if len(views) == 2:  # one tile: the local view is the global one
        views, found = views[:1], found[:1]
    best = sorted(range(len(views)), key=lambda n: -len(found[n]))[:PER_PICTURE]
    for n in best:
        if len(found[n]) >= FEWEST:
            yield np.asarray(views[n]), found[n]


def _places(made: Made, canvas: Resolution, corner: tuple[int, int], size: int) -> list[CharPlace]:
    """Legible characters whose centres lie on the tile of `canvas` that starts at `corner`."""
    width, height = made.image.size
    scale = min(canvas[0] / width, canvas[1] / height)
    left, top = ((canvas[k] - round(made.image.size[k] * scale)) / 2 for k in (0, 1))
    places = []
    for mark in made.of("char"):
        x1, y1, x2, y2 = mark.box
        tall = max(y2 - y1, 1.6 * (x2 - x1)) * scale
        x, y = (x1 + x2) / 2 * scale + left - corner[0], (y1 + y2) / 2 * scale + top - corner[1]
        if tall >= LEGIBLE and 0 <= x < size and 0 <= y < size and mark.text in ASCII:
            places.append(CharPlace(x, y, 1 + ASCII.index(mark.text)))
    return places


def cut_tiles(
    data: dict[str, Tensor], rng: np.random.Generator, skip: int, *, tiles: int, places: int
) -> Iterator[TrainBatch]:
    """A shard's batches of one shape: `tiles` tiles, and `places` places on them.

    Every tenth place is drawn anywhere; where no character is near, it is empty (0). Each batch has
    a generator of its own, so that leaving out the first `skip` changes none.
    """
    order = torch.from_numpy(rng.permutation(len(data["tiles"])))
    draws = rng.spawn(len(order) // tiles)
    for number, rows in enumerate(order[: len(draws) * tiles].split(tiles)):
        if number >= skip:
            yield _batch(draws[number], data, rows, places)


def _batch(
    rng: np.random.Generator, data: dict[str, Tensor], rows: Tensor, count: int
) -> TrainBatch:
    side = data["tiles"].shape[-1]
    slot = torch.full((len(data["tiles"]),), -1, dtype=torch.int32)
    slot[rows] = torch.arange(len(rows), dtype=torch.int32)
    known = data["places"].clone()
    known[:, 0] = slot[known[:, 0].long()]
    known = known[known[:, 0] >= 0]
    empty = _empty_places(rng, known, len(rows), side, count // 10)
    wanted = count - len(empty)
    chosen = known[torch.from_numpy(rng.integers(len(known), size=wanted))]
    if len(known) >= wanted:
        chosen = known[torch.from_numpy(rng.permutation(len(known))[:wanted])]
    pixels = to_pixels(data["tiles"][rows])
    tensors = {"tiles": pixels, "places": torch.cat((chosen, empty)).long()}
    return TrainBatch(tensors=tensors, images=len(rows), tiles=len(rows))


def _empty_places(
    rng: np.random.Generator, known: Tensor, tiles: int, side: int, count: int
) -> Tensor:
    """Random places; those within 24 pixels of a character take its name."""
    spots = torch.from_numpy(
        np.stack([rng.integers(tiles, size=count), *rng.integers(side, size=(2, count))], 1)
    )
    far = (spots[:, None, 1:] - known[None, :, 1:3]).abs().amax(-1)
    far = torch.where(spots[:, None, 0] == known[None, :, 0], far, side)
    near, index = far.min(1)
    alone = torch.cat((spots.int(), torch.zeros(count, 1, dtype=torch.int32)), 1)
    return torch.where(near[:, None] <= 24, known[index], alone)
