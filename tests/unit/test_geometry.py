import random

import pytest

from vl2 import geometry
from vl2.config import RELEASED_RESOLUTIONS
from vl2.geometry import TileGrid

# (tiles wide, tiles high): placeholders, for 384-pixel tiles of 14x14 tokens
RELEASED_COUNTS = {
    (1, 1): 421, (1, 2): 631, (2, 1): 617, (1, 3): 841, (3, 1): 813, (1, 4): 1051, (4, 1): 1009,
    (2, 2): 1023, (1, 5): 1261, (5, 1): 1205, (1, 6): 1471, (6, 1): 1401, (2, 3): 1429,
    (3, 2): 1415, (1, 7): 1681, (7, 1): 1597, (1, 8): 1891, (8, 1): 1793, (2, 4): 1835,
    (4, 2): 1807, (1, 9): 2101, (9, 1): 1989, (3, 3): 2017,
}  # fmt: skip


def test_a_released_tile_has_27_patches_and_14_tokens_a_side():
    assert geometry.patches_per_side(384, 14) == 27
    assert geometry.tokens_per_side(384, 14, 2) == 14
    edges = [*range(0, 365, 28), 378]  # the last token has one patch of two, 6 pixels have none
    assert geometry.token_edges(384, 14, 2) == edges
    assert geometry.token_edges(112, 14, 2) == [0, 28, 56, 84, 112]


@pytest.mark.parametrize(("grid", "count"), RELEASED_COUNTS.items())
def test_counts_of_every_released_grid(grid, count):
    assert geometry.image_tokens(14, TileGrid(wide=grid[0], high=grid[1])) == count


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((100, 100), (384, 384)), ((224, 224), (384, 384)), ((500, 375), (768, 384)),
        ((600, 300), (768, 384)), ((640, 480), (768, 768)), ((800, 600), (1152, 768)),
        ((1024, 768), (1152, 768)), ((1000, 1000), (1152, 1152)), ((1280, 720), (1536, 768)),
        ((1920, 1080), (1536, 768)), ((1080, 1920), (768, 1536)), ((2480, 3508), (1152, 1152)),
        ((4000, 400), (3456, 384)),
    ],
)  # fmt: skip
def test_known_picks(size, canvas):
    assert geometry.select_resolution(size, RELEASED_RESOLUTIONS) == canvas


def test_ten_thousand_random_sizes_give_a_released_count():
    rng = random.Random(0)
    for _ in range(10_000):
        size = tuple(round(10 ** rng.uniform(0, 4.8)) for _ in range(2))
        grid = geometry.grid_of(geometry.select_resolution(size, RELEASED_RESOLUTIONS), 384)
        assert RELEASED_COUNTS[grid.wide, grid.high] == geometry.image_tokens(14, grid), size


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 3)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="at least 1x1"):
        geometry.select_resolution(size, RELEASED_RESOLUTIONS)


def test_no_candidates_and_odd_canvases_are_refused():
    with pytest.raises(ValueError, match="candidate_resolutions"):
        geometry.select_resolution((5, 5), [])
    with pytest.raises(ValueError, match="multiples of 384"):
        geometry.grid_of((384, 500), 384)
