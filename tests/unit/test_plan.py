from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.data.plan import Planner, RowRef, SequencePlan, best_fit, draw, micro_plans

LENGTHS = np.random.default_rng(5).integers(500, 2501, size=4000).astype(np.int32)


class InOrder:
    """Rows one after the other."""

    def __init__(self, counts: np.ndarray) -> None:
        self.rows = len(counts)
        self.mean_tokens = float(counts.mean())

    def __getitem__(self, position: int) -> RowRef:
        return RowRef(0, position % self.rows, position)


def planner_of(counts: np.ndarray = LENGTHS, **settings) -> Planner:
    return Planner(InOrder(counts), [counts], **{"sequence_length": 4096, **settings})


def take(planner: Planner, count: int) -> list[SequencePlan]:
    return list(itertools.islice(planner, count))


def positions(plans: list[SequencePlan]) -> list[int]:
    return [ref.position for plan in plans for ref in plan.rows]


def test_packing_fills_sequences_and_loses_no_sample():
    plans = take(planner_of(), 1300)
    assert all(0 < plan.length <= 4096 for plan in plans)
    assert np.mean([plan.length for plan in plans]) / 4096 >= 0.96
    planner = planner_of()
    whole = []
    while planner.state()["position"] < 5 * planner.window:
        whole.append(next(planner))
    assert sorted(positions(whole)) == list(range(5 * planner.window))
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
def test_goes_on_from_every_state(packing: bool):
    counts = LENGTHS[:50]
    planner = planner_of(counts, packing=packing)
    plans, states = [], []
    for _ in range(150):
        states.append(planner.state())
        plans.append(next(planner))
    assert len({state["position"] for state in states}) > 1
    for number, state in enumerate(states):
        again = planner_of(counts, packing=packing)
        again.restore(state)
        assert again.state() == state
        assert next(again) == plans[number]


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


@given(st.lists(st.integers(1, 100), max_size=60))
def test_best_fit_keeps_every_item_and_the_room(sizes: list[int]):
    bins = best_fit(sizes, 100)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in members) for members in bins]
    assert all(load <= 100 for load in loads)
    assert sum(load <= 50 for load in loads) <= 1  # two of these would share a bin


def test_best_fit_refuses_what_it_would_have_to_cut():
    with pytest.raises(ValueError, match="a sample of 101 tokens in sequences of 100"):
        best_fit([3, 101], 100)


def test_draw_is_the_same_forever():
    assert draw(0, "sequence", 1) == 11382405075976131099
    assert len({draw(0, i) % 1000 for i in range(20_000)}) == 1000


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_s_sequences_do_not_depend_on_the_ranks(world: int):
    settings = {"batch_size": 8, "micro_batch": 2, "world": world}
    streams = [micro_plans(planner_of(), rank=r, **settings) for r in range(world)]
    expected = iter(planner_of())
    for _ in range(3):
        step: list[list[SequencePlan]] = [[] for _ in range(world)]
        for m in range(8 // (2 * world)):
            plans = [next(stream) for stream in streams]
            assert len({tuple(plan.state.items()) for plan in plans}) == 1
            for rank, plan in enumerate(plans):
                assert len(plan.sequences) == 2
                assert plan.closes_step == (m == 8 // (2 * world) - 1)
                step[rank].extend(plan.sequences)
        whole = list(itertools.islice(expected, 8))
        assert step == [whole[rank::world] for rank in range(world)]


def test_goes_on_with_other_ranks_in_the_middle_of_a_step():
    settings = {"batch_size": 8, "micro_batch": 1}
    first = micro_plans(planner_of(), rank=0, world=2, **settings)
    plans = [next(first) for _ in range(6)]  # one step and two of four micro batches
    state = dict(plans[-1].state)
    assert state["done"] == 4
    planner = planner_of()
    planner.restore(state)
    rest = micro_plans(planner, rank=1, world=4, done=state["done"], **settings)
    plan = next(rest)
    assert plan.closes_step
    assert plan.sequences[0] == take(planner_of(), 16)[8 + 4 + 1]


def test_ranks_that_cannot_share_a_step():
    with pytest.raises(ValueError, match="rank is 2: expected 0 to 1"):
        micro_plans(planner_of(), batch_size=8, micro_batch=1, rank=2, world=2)
    with pytest.raises(ValueError, match="batch_size is 8: expected a multiple"):
        micro_plans(planner_of(), batch_size=8, micro_batch=1, rank=0, world=3)
    with pytest.raises(ValueError, match="go on from a step's end"):
        micro_plans(planner_of(), batch_size=8, micro_batch=1, rank=0, world=4, done=2)
