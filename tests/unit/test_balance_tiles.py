"""Vision work spread over ranks: what is packed, ordered and dealt by tiles."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.data.balance_tiles import (
    TileLoad,
    best_fit,
    deal_evenly,
    deal_in_turn,
    even_runs,
    load_of,
    pack_evenly,
)

BENCH = Path(__file__).parents[2] / "bench" / "tiles.py"
ITEMS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10)), min_size=1, max_size=60)


@given(st.lists(st.integers(1, 100), max_size=60))
def test_best_fit_keeps_every_item_and_the_room(sizes: list[int]):
    bins = best_fit(sizes, 100)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in members) for members in bins]
    assert all(load <= 100 for load in loads)
    assert sum(load <= 50 for load in loads) <= 1  # two of these would share a bin


@given(ITEMS, st.integers(1, 30))
def test_best_fit_keeps_a_tile_budget(items: list[tuple[int, int]], budget: int):
    sizes, tiles = [size for size, _ in items], [tile for _, tile in items]
    bins = best_fit(sizes, 100, tiles, budget)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    for members in bins:
        assert sum(sizes[i] for i in members) <= 100
        pictures = [i for i in members if tiles[i]]
        assert sum(tiles[i] for i in members) <= budget or len(pictures) == 1
    assert best_fit(sizes, 100, tiles) == best_fit(sizes, 100)


def test_best_fit_refuses_what_it_would_have_to_cut():
    with pytest.raises(ValueError, match="a sample of 101 tokens in sequences of 100"):
        best_fit([3, 101], 100)


@given(ITEMS)
def test_even_packing_costs_no_sequence_of_few(items: list[tuple[int, int]]):
    sizes, tiles = [size for size, _ in items], [tile for _, tile in items]
    plain = best_fit(sizes, 100)
    bins = pack_evenly(sizes, tiles, 100, len(plain))
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in members) <= 100 for members in bins)
    assert len(bins) <= len(plain)  # one in a hundred more, of fewer than a hundred


def test_even_packing_puts_text_beside_pictures():
    sizes, tiles = [50, 50, 50, 50, 45, 45, 45, 45], [5, 5, 5, 5, 0, 0, 0, 0]
    plain = best_fit(sizes, 100)
    assert [sum(tiles[i] for i in members) for members in plain] == [10, 10, 0, 0]
    bins = pack_evenly(sizes, tiles, 100, len(plain))
    assert [sum(tiles[i] for i in members) for members in bins] == [5, 5, 5, 5]


@given(st.lists(st.integers(0, 20), max_size=70), st.integers(1, 20), st.data())
def test_runs_hold_every_sequence_once(tiles: list[int], run: int, data: st.DataObject):
    lead = data.draw(st.integers(0, run - 1))
    order = even_runs(tiles, run, lead)
    assert sorted(order) == list(range(len(tiles)))
    assert even_runs([3] * len(tiles), run, lead) == list(range(len(tiles)))
    spreads = [
        max(tiles[i] for i in order[at : at + run]) - min(tiles[i] for i in order[at : at + run])
        for at in range(lead, len(tiles) - run + 1, run)
    ]
    if len(spreads) > 1:  # the middle is left out once, so that one run may span the gap
        assert sum(spreads) <= 2 * (max(tiles) - min(tiles))


def test_runs_come_in_no_order_of_their_tiles():
    tiles = np.random.default_rng(3).integers(0, 20, 640).tolist()
    order = even_runs(tiles, 8, 0)
    means = np.array([sum(tiles[i] for i in order[at : at + 8]) / 8 for at in range(0, 640, 8)])
    assert abs(np.corrcoef(means, np.arange(80))[0, 1]) < 0.3
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 3),
    st.lists(st.integers(0, 20), min_size=96, max_size=96),
)
def test_dealing_is_fair_in_number_and_near_in_tiles(
    micro_batches: int, world: int, micro_batch: int, drawn: list[int]
):
    share = world * micro_batch
    tiles = drawn[: micro_batches * share]
    hands = deal_evenly(tiles, world, micro_batch)
    ranked = sorted(tiles, reverse=True)
    totals = np.zeros(world)
    gaps = []
    for number, ranks in enumerate(hands):
        assert [len(own) for own in ranks] == [micro_batch] * world
        held = [sum(tiles[i] for i in own) for own in ranks]
        part = ranked[number * share : (number + 1) * share]
        rows = [part[at : at + world] for at in range(0, share, world)]
        gaps.append(max(row[0] - row[-1] for row in rows))
        assert max(held) - min(held) <= gaps[-1]
        totals += held
    if micro_batch == 1:
        assert totals.max() - totals.min() <= max(gaps)
    for dealing in (hands, deal_in_turn(len(tiles), world, micro_batch)):
        found = [i for ranks in dealing for own in ranks for i in own]
        assert sorted(found) == list(range(len(tiles)))


@given(st.lists(st.integers(0, 20), min_size=16, max_size=16))
def test_what_is_done_behind_so_many_sequences_does_not_depend_on_the_ranks(tiles: list[int]):
    for deal in (deal_evenly, lambda tiles, world, size: deal_in_turn(len(tiles), world, size)):
        alone = [i for ranks in deal(tiles, 1, 1) for own in ranks for i in own]
        for world, size in ((2, 1), (4, 2), (8, 1), (2, 4)):
            done: list[int] = []
            for ranks in deal(tiles, world, size):
                done += [i for own in ranks for i in own]
                assert sorted(done) == sorted(alone[: len(done)])


def test_load_counts_the_slowest_rank_of_each_micro_batch():
    load = load_of([[[0], [1]], [[2], [3]]], [9, 1, 2, 4])
    assert load == TileLoad(most=13, mean=8)
    assert load.imbalance == 13 / 8
    assert load_of([[[0], [1]]], [0, 0]).imbalance == 1


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [8, 64])
def test_eight_ranks_share_a_skewed_mixture(packing: bool, batch_size: int):
    compare = runpy.run_path(str(BENCH))["compare"]
    steps = 1024 // batch_size
    found = compare(packing=packing, batch_size=batch_size, ranks=8, steps=steps)
    before, after = found["before"], found["after"]
    assert before["max_over_mean"] > 1.6
    assert after["max_over_mean"] < 1.1
    assert after["packing_efficiency"] > before["packing_efficiency"] - 0.01
    if packing and batch_size == 64:
        assert after["mean_of_steps"] < 1.1
        assert after["step_variance"] < 0.05  # steps are as mixed as before
        assert after["ranks_apart"][1] <= 12 < before["ranks_apart"][0]
