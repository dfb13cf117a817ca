from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vl2.data.config import DataConfig
from vl2.data.mixture import FEW_ROWS, RowOrder, deal
from vl2.data.plan import Planner, RowRef


def order_of(*counts: list[int] | np.ndarray, weights: tuple[float, ...] = (), **settings):
    arrays = [np.asarray(c, dtype=np.int32) for c in counts]
    names = [f"source{i}" for i in range(len(arrays))]
    given = {"longest": 4096, "seed": 0, **settings}
    return RowOrder(arrays, weights or (1.0,) * len(arrays), names=names, **given)


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 257, FEW_ROWS - 1, FEW_ROWS])
def test_every_row_comes_once_per_epoch_in_a_new_order(rows: int):
    order = order_of([7] * rows)
    epochs = [[order[e * rows + i].row for i in range(rows)] for e in range(3)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    if rows > 9:
        assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_that_are_unusable_or_too_long_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING, logger="vl2"):
        order = order_of([5, -1, 5000, 6, 4096, 0])
    assert sorted(order[i].row for i in range(3)) == [0, 3, 4]
    assert order.rows == (3,)
    assert "source0: 3 of 6 rows left out: 1 longer" in caplog.text
    assert "2 unusable" in caplog.text


@pytest.mark.parametrize("rows", [100_000, FEW_ROWS - 1])
def test_shuffle_has_no_trend(rows: int):
    order = order_of(np.ones(rows))
    places = np.array([order[i].row for i in range(rows)])
    assert len(np.unique(places)) == rows
    bound = max(0.01, 3 / rows**0.5)  # three standard deviations of a fair shuffle
    assert abs(np.corrcoef(places, np.arange(rows))[0, 1]) < bound
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < bound


def test_weights_are_shares_of_the_tokens():
    rng = np.random.default_rng(1)
    counts = [rng.integers(*span, size=3000) for span in ((20, 60), (400, 2000), (900, 4000))]
    weights = (0.3, 0.5, 0.2)
    order = order_of(*counts, weights=weights)
    tokens = np.zeros(3)
    for i in range(20_000):
        ref = order[i]
        assert ref.position == i
        tokens[ref.source] += counts[ref.source][ref.row]
    assert np.abs(tokens / tokens.sum() - weights).max() < 0.01
    assert order.mean_tokens == pytest.approx(tokens.sum() / 20_000, rel=0.02)


def test_epochs_follow_each_other_and_hold_the_rows_of_one_source_once():
    counts = [[10] * 40, [30] * 17, [20] * 600]
    order = order_of(*counts, weights=(0.2, 0.5, 0.3)).spaced(step=5, window=1000)
    at = 0
    for _ in range(5):
        epoch = order.epoch(at)
        assert epoch.start == at
        assert {order.epoch(p) for p in (epoch[1], epoch[len(epoch) // 2], epoch[-1])} == {epoch}
        rows = [order[p].row for p in epoch if order[p].source == 1]
        assert sorted(rows) == list(range(17))
        at = epoch.stop
    assert order.epoch(10**12).start <= 10**12 < order.epoch(10**12).stop


def copies_of(order: RowOrder, refs: Iterable[RowRef]) -> int:
    """Of rows that come again among these while others of their source wait."""
    drawn: list[list[int]] = [[] for _ in order.rows]
    for ref in refs:
        drawn[ref.source].append(ref.row)
    return sum(
        len(r) - min(len(set(r)) + max(len(r) - n, 0), len(r))
        for r, n in zip(drawn, order.rows, strict=True)
    )


@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    step=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_no_row_comes_twice_in_a_step_while_others_wait(
    rows: list[int], weights: list[float], step: int
):
    order = order_of(
        *[[20 + i % 7] * n for i, n in enumerate(rows)], weights=(*weights[: len(rows)],)
    )
    order = order.spaced(step=step, window=256)
    epoch = order.epoch(order.epoch(order.epoch(0).stop).stop)
    for start in range(epoch.start, epoch.stop, step):
        span = range(start, min(start + step, epoch.stop))
        assert copies_of(order, map(order.__getitem__, span)) == 0


@pytest.mark.parametrize(
    ("rows", "batch_size", "length", "most"),
    [
        ((20,), 2, 512, 0),
        ((50,), 8, 4096, 0),
        ((20, 30), 2, 512, 0),
        ((500, 300), 8, 4096, 0),
        ((900, 10), 4, 2048, 0.05),  # the ten come again in each step, whatever the order
    ],
)
def test_packed_steps_hold_no_needless_copies(
    rows: tuple[int, ...], batch_size: int, length: int, most: float
):
    rng = np.random.default_rng(3)
    counts = [rng.integers(20, 400, size=n).astype(np.int32) for n in rows]
    order = order_of(*counts, longest=length)
    config = DataConfig(sequence_length=length, batch_size=batch_size)
    planner = Planner(order, counts, [np.zeros_like(c) for c in counts], config)
    steps = [[r for s in step for r in s.rows] for step in itertools.islice(planner, 30)]
    assert sum(copies_of(order, step) for step in steps) <= most * sum(map(len, steps))


@given(
    rows=st.lists(st.integers(20, 150), min_size=2, max_size=3),
    weights=st.lists(st.floats(0.5, 3), min_size=3, max_size=3),
    batch_size=st.sampled_from([2, 4, 8]),
    longest=st.sampled_from([60, 120]),
    balance=st.booleans(),
)
@example(rows=[75, 93], weights=[1.4, 1.6, 1], batch_size=8, longest=60, balance=False)
@example(rows=[67, 93], weights=[0.7, 1.2, 1], batch_size=8, longest=60, balance=False)
@example(rows=[107, 63, 68], weights=[0.7, 1.8, 2.4], batch_size=8, longest=60, balance=False)
@settings(max_examples=25, deadline=None)
def test_packed_steps_of_mixtures_repeat_only_sources_that_do_not_last_for_a_step(
    rows: list[int], weights: list[float], batch_size: int, longest: int, balance: bool
):
    rng = np.random.default_rng(sum(rows))
    counts = [rng.integers(20, longest, size=n).astype(np.int32) for n in rows]
    order = order_of(*counts, weights=(*weights[: len(rows)],), longest=512)
    config = DataConfig(sequence_length=512, batch_size=batch_size, balance_tiles=balance)
    tiles = [rng.integers(0, 5, size=n).astype(np.int32) for n in rows]
    steps = [
        [r for s in step for r in s.rows]
        for step in itertools.islice(Planner(order, counts, tiles, config), 12)
    ]
    full = math.ceil(batch_size * 512 / order.mean_tokens)
    means = [float(c.mean()) for c in counts]
    odds = [weight / mean for weight, mean in zip(weights, means, strict=False)]
    for source, n in enumerate(rows):
        if n * sum(odds) / odds[source] >= full + 1:
            taken = [[r for r in step if r.source == source] for step in steps]
            assert sum(copies_of(order, step) for step in taken) == 0


def test_spaced_rows_still_come_once_per_epoch_of_their_source():
    order = order_of([5] * 30, [5] * 41, [5] * 3).spaced(step=8, window=64)
    for source, n in enumerate(order.rows):
        rows = [ref.row for ref in map(order.__getitem__, range(900)) if ref.source == source]
        epochs = [rows[at : at + n] for at in range(0, 5 * n, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert n < 9 or len({tuple(epoch) for epoch in epochs}) == 5


def test_dealing_visits_each_source_in_order_and_evenly():
    shares = [5, 1, 3, 7]
    drawn = [deal(k, shares) for k in range(160)]
    for source, share in enumerate(shares):
        turns = [turn for s, turn in drawn if s == source]
        assert turns == list(range(share * 10))
    firsts = np.cumsum([s == 3 for s, _ in drawn])
    assert np.abs(firsts - np.arange(1, 161) * 7 / 16).max() < 2
    assert deal(10**17, shares)[1] > 10**15


def test_same_seed_same_order_at_any_place():
    counts = [[10] * 40, [30] * 17, [20] * 6000]
    first, again, other = (order_of(*counts, seed=s) for s in (3, 3, 4))
    places = [0, 1, 5, 1000, 999_999_999, 7]
    assert [first[i] for i in places] == [again[i] for i in places]
    assert [first[i] for i in range(50)] != [other[i] for i in range(50)]


def test_sources_of_one_size_are_not_shuffled_alike():
    order = order_of([1] * 500, [1] * 500)
    rows: list[list[int]] = [[], []]
    for i in range(1000):
        rows[order[i].source].append(order[i].row)
    assert sorted(rows[0]) == sorted(rows[1])
    assert abs(np.corrcoef(rows[0], rows[1])[0, 1]) < 0.2


def test_a_large_source_without_grain_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert order_of([1] * 20)[0].source == 0
    with pytest.raises(ValueError, match=r'pip install "vl2\[train\]"'):
        order_of(np.ones(FEW_ROWS))


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="no data source"):
        order_of()
    with pytest.raises(ValueError, match="source1: none of its 2 rows can be used"):
        order_of([1, 2], [-1, 9000])
