from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vl2.data.balance_tiles import spread
from vl2.data.config import DataConfig
from vl2.data.plan import MicroPlan, Planner, RowRef, SequencePlan, draw, micro_plans

LENGTHS = np.random.default_rng(5).integers(500, 2501, size=4000).astype(np.int32)
TILES = np.random.default_rng(6).integers(0, LENGTHS // 200 + 1).astype(np.int32)


class InOrder:
    """Rows one after the other."""

    def __init__(self, counts: np.ndarray) -> None:
        self.rows = len(counts)
        self.mean_tokens = float(counts.mean())
        self.window = 0

    def spaced(self, *, step: int, window: int) -> InOrder:
        self.window = window
        return self

    def epoch(self, position: int) -> range:
        start = position // self.rows * self.rows
        return range(start, start + self.rows)

    def __getitem__(self, position: int) -> RowRef:
        return RowRef(0, position % self.rows, position)


def planner_of(
    counts: np.ndarray = LENGTHS, tiles: np.ndarray | None = None, **settings
) -> Planner:
    tiles = np.zeros_like(counts) if tiles is None else tiles
    return Planner(InOrder(counts), [counts], [tiles], DataConfig(**{"batch_size": 1, **settings}))


def take(planner: Planner, count: int) -> list[SequencePlan]:
    steps = itertools.islice(planner, -(-count // planner.config.batch_size))
    return [sequence for step in steps for sequence in step][:count]


def positions(plans: list[SequencePlan]) -> list[int]:
    return [ref.position for plan in plans for ref in plan.rows]


def test_packing_fills_sequences_and_loses_no_sample():
    plans = take(planner_of(), 1300)
    assert all(0 < plan.length <= 4096 for plan in plans)
    assert np.mean([plan.length for plan in plans]) / 4096 >= 0.96
    planner = planner_of()
    whole = []
    while planner.state()["position"] < 2 * len(LENGTHS):
        whole += next(planner)
    assert sorted(positions(whole)) == list(range(2 * len(LENGTHS)))
    for plan in whole:
        assert plan.tokens == tuple(LENGTHS[ref.row] for ref in plan.rows)
        assert list(positions([plan])) == sorted(positions([plan]))


def test_short_samples_fill_sequences_too():
    counts = np.random.default_rng(0).integers(20, 90, size=5000).astype(np.int32)
    assert np.mean([p.length for p in take(planner_of(counts), 400)]) / 4096 >= 0.96


def test_sequences_of_a_window_come_in_random_order():
    plans = take(planner_of(), 60)
    sizes = [len(plan.rows) for plan in plans]
    assert sizes != sorted(sizes)
    assert sizes != sorted(sizes, reverse=True)
    assert plans != take(planner_of(seed=1), 60)


def test_without_packing_each_sample_is_a_sequence():
    plans = take(planner_of(packing=False), 200)
    assert positions(plans) == list(range(200))
    assert all(len(plan.rows) == 1 for plan in plans)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 100])  # within a window, over its end, over several
def test_goes_on_from_every_state(packing: bool, batch_size: int):
    settings = {"packing": packing, "batch_size": batch_size}
    planner = planner_of(LENGTHS[:300], TILES[:300], **settings)
    steps, states = [], []
    for _ in range(max(300 // batch_size, 7)):
        states.append(planner.state())
        steps.append(next(planner))
    assert len({state["position"] for state in states}) > 1
    for number in range(0, len(states), max(7 // batch_size, 1)):
        state = states[number]
        again = planner_of(LENGTHS[:300], TILES[:300], **settings)
        again.restore(state)
        assert again.state() == state
        assert next(again) == steps[number]


def step_spreads(planner: Planner, steps: int = 40) -> list[int]:
    """Between the sequences with the most and the fewest tiles of each step."""
    tiles = [[s.tiles for s in step] for step in itertools.islice(planner, steps)]
    return [max(step) - min(step) for step in tiles]


@pytest.mark.parametrize("packing", [True, False])
def test_balanced_steps_are_alike_in_tiles_and_lose_nothing(packing: bool):
    settings = {"packing": packing, "batch_size": 8}
    plain = planner_of(tiles=TILES, balance_tiles=False, **settings)
    planner = planner_of(tiles=TILES, **settings)
    assert np.mean(step_spreads(planner)) < 0.25 * np.mean(step_spreads(plain))
    planner = planner_of(tiles=TILES, **settings)
    seen: list[SequencePlan] = []
    while planner.state()["position"] < 2 * len(LENGTHS):
        seen += next(planner)
    for sequence in seen:
        assert sequence.tiles == sum(TILES[ref.row] for ref in sequence.rows)
    assert sorted(positions(seen)) == list(range(2 * len(LENGTHS)))
    per_step = [sum(s.tiles for s in seen[at : at + 8]) for at in range(0, len(seen), 8)]
    assert per_step != sorted(per_step)
    assert per_step != sorted(per_step, reverse=True)


def test_an_epoch_still_has_every_row_once_when_balanced():
    planner = planner_of(LENGTHS[:512], TILES[:512], packing=False, batch_size=16)
    for epoch in range(3):
        rows = [ref.row for plan in take(planner, 512) for ref in plan.rows]
        assert sorted(rows) == list(range(512))
        assert rows != list(range(512)), epoch


@pytest.mark.parametrize("packing", [True, False])
def test_without_pictures_balancing_changes_nothing(packing: bool):
    plain = planner_of(packing=packing, batch_size=8, balance_tiles=False)
    assert take(planner_of(packing=packing, batch_size=8), 300) == take(plain, 300)


@given(
    rows=st.integers(1, 500),
    batch_size=st.sampled_from([1, 2, 7, 8, 64]),
    packing=st.booleans(),
    balance=st.booleans(),
)
@example(rows=1, batch_size=8, packing=True, balance=True)
@example(rows=500, batch_size=64, packing=False, balance=True)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_whole_steps_and_holds_every_row_once(
    rows: int, batch_size: int, packing: bool, balance: bool
):
    given = {"packing": packing, "balance_tiles": balance, "batch_size": batch_size}
    planner = planner_of(LENGTHS[:rows], TILES[:rows], sequence_length=4096, **given)
    for epoch in range(3):
        seen, sizes = [], []
        while len(seen) < rows:
            step = next(planner)
            assert len(step) == batch_size
            assert any(sequence.rows for sequence in step)
            assert all(sequence.length <= 4096 for sequence in step)
            seen += positions(list(step))
            sizes.append(sum(bool(sequence.rows) for sequence in step))
        assert sorted(seen) == list(range(epoch * rows, (epoch + 1) * rows))
        if not packing and rows < 256:  # one window: steps are short alike
            assert len(sizes) == -(-rows // batch_size)
            assert max(sizes) - min(sizes) <= 1


def test_few_samples_are_spread_over_a_step_s_sequences():
    step = next(planner_of(LENGTHS[:50], batch_size=16, sequence_length=65_536))
    found = [sequence.length for sequence in step]
    assert min(found) > 0
    assert max(found) - min(found) <= LENGTHS[:50].max()
    pictures = np.arange(50, dtype=np.int32) % 2 * 3
    step = next(planner_of(LENGTHS[:50], pictures, batch_size=5, sequence_length=65_536))
    assert {sequence.tiles for sequence in step} == {15}
    assert max(found) - min(found) <= LENGTHS[:50].max()


def test_spreading_that_finds_no_room_takes_another_step():
    counts = np.array([60, 60, 50, 50, 40, 40, 40, 40, 20], dtype=np.int32)  # full in four
    assert spread(counts.tolist(), [0] * 9, 100, 4) is None
    steps = itertools.islice(planner_of(counts, batch_size=1, sequence_length=100), 8)
    assert sorted(positions([s for step in steps for s in step]))[:9] == list(range(9))


@pytest.mark.parametrize(
    "state",
    [
        {"position": 1, "bin": 0},
        {"position": -1000, "bin": 0},
        {"position": 0, "bin": 10**6},
        {"position": 0, "bin": -1},
    ],
)
def test_state_of_other_data_is_refused(state: dict[str, int]):
    with pytest.raises(ValueError, match="data state is"):
        planner_of().restore(state)


def test_draw_is_the_same_forever():
    assert draw(0, "sequence", 1) == 11382405075976131099
    assert len({draw(0, i) % 1000 for i in range(20_000)}) == 1000


WORLDS = (1, 2, 4, 8)


def dealt(world: int, steps: int, **settings) -> list[list[list[MicroPlan]]]:
    """Plans by step, micro batch and rank."""
    given = {"batch_size": 16, "tiles": TILES, **settings}
    streams = [micro_plans(planner_of(**given), rank=rank, world=world) for rank in range(world)]
    found = []
    for _ in range(steps):
        found.append([])
        while not found[-1] or not found[-1][-1][0].closes_step:
            found[-1].append([next(stream) for stream in streams])
    return found


def flat(micros: list[list[MicroPlan]]) -> list[SequencePlan]:
    return [s for micro in micros for plan in micro for s in plan.sequences]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_step_s_sequences_do_not_depend_on_the_ranks(
    packing: bool, balance: bool, micro_batch: int
):
    settings = {"packing": packing, "balance_tiles": balance, "micro_batch": micro_batch}
    by_world = [dealt(world, 12, **settings) for world in WORLDS]
    steps = [sorted(positions(flat(step))) for step in by_world[0]]
    for world, found in zip(WORLDS, by_world, strict=True):
        assert [sorted(positions(flat(step))) for step in found] == steps
        for step in found:
            assert len(step) == 16 // (micro_batch * world)
            for micro in step:
                assert {len(plan.sequences) for plan in micro} == {micro_batch}
                assert len({tuple(plan.state.items()) for plan in micro}) == 1
                assert len({plan.tile_load for plan in micro}) == 1
                assert micro[0].closes_step == (micro is step[-1])


def test_without_balancing_ranks_take_turns():
    settings = {"balance_tiles": False, "tiles": TILES, "batch_size": 16}
    expected = take(planner_of(**settings), 32)
    for number, step in enumerate(dealt(4, 2, micro_batch=2, balance_tiles=False)):
        for rank in range(4):
            own = [s for micro in step for s in micro[rank].sequences]
            assert own == expected[16 * number + rank : 16 * number + 16 : 4]


@pytest.mark.parametrize("packing", [True, False])
def test_the_tile_load_is_that_of_the_ranks_and_balancing_evens_it(packing: bool):
    means = []
    for balance in (False, True):
        loads = []
        for step in dealt(4, 12, packing=packing, balance_tiles=balance):
            held = [[sum(s.tiles for s in plan.sequences) for plan in micro] for micro in step]
            load = step[0][0].tile_load
            assert load.most == sum(max(ranks) for ranks in held)
            assert load.mean == sum(sum(ranks) for ranks in held) / 4
            loads.append(load.imbalance)
        means.append(np.mean(loads))
    assert means[0] - means[1] > 0.2


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("balance", [True, False])
def test_goes_on_with_the_same_or_other_ranks_in_the_middle_of_a_step(packing: bool, balance: bool):
    settings = {"packing": packing, "balance_tiles": balance}
    steps = 6  # over the end of a window with packing
    before = dealt(2, steps, **settings)
    others = {1: dealt(1, steps, **settings), 2: before, 4: dealt(4, steps, **settings)}
    for number, step in enumerate(before):
        for micro in step:
            state = dict(micro[0].state)
            at = number + micro[0].closes_step
            for world in others:
                if state["done"] % world or at == steps:
                    continue
                planner = planner_of(LENGTHS, TILES, batch_size=16, **settings)
                planner.restore(state)
                rest = micro_plans(planner, rank=world - 1, world=world, done=state["done"])
                for expected in others[world][at][state["done"] // world :]:
                    assert next(rest) == expected[-1]


def test_four_ranks_two_one_and_four_again_see_each_step_once():
    state, seen = {"position": 0, "bin": 0, "done": 0}, []
    for world in (4, 2, 1, 4):
        for _ in range(3):
            parts = []
            for rank in range(world):
                planner = planner_of(batch_size=16, tiles=TILES)
                planner.restore(state)
                stream = micro_plans(planner, rank=rank, world=world, done=state["done"])
                parts.append([next(stream) for _ in range(16 // world)])
            state = dict(parts[0][-1].state)
            seen.append(sorted(positions([s for own in parts for p in own for s in p.sequences])))
    assert seen == [sorted(positions(flat(step))) for step in dealt(1, 12)]


def test_ranks_that_cannot_share_a_step():
    planner = planner_of(batch_size=8)
    with pytest.raises(ValueError, match="rank is 2: expected 0 to 1"):
        micro_plans(planner, rank=2, world=2)
    with pytest.raises(ValueError, match="batch_size is 8: expected a multiple"):
        micro_plans(planner, rank=0, world=3)
    with pytest.raises(ValueError, match="resume from the end of a step"):
        micro_plans(planner, rank=0, world=4, done=2)
