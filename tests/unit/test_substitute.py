from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vl2.data.collate import Sample
from vl2.data.config import DataConfig
from vl2.data.plan import RowRef
from vl2.data.substitute import ATTEMPTS, DataError, Tally, candidates


def test_substitutes_fit_and_depend_on_seed_and_place_only():
    counts = np.array([50, 10, -1, 30, 60, 20, 40, 0])

    def rows(position: int, seed: int = 0) -> list[int]:
        return list(candidates(RowRef(0, 3, position), 40, counts, seed))

    assert all(rows(p)[0] == 3 and sorted(rows(p)) == [1, 3, 5, 6] for p in range(20))
    assert len({tuple(rows(p)) for p in range(40)}) == 6
    assert [rows(p) for p in range(20)] == [rows(p) for p in range(20)]
    assert [rows(p) for p in range(20)] != [rows(p, seed=1) for p in range(20)]
    many = candidates(RowRef(0, 0, 0), 5, np.full(10**6, 5), seed=0)
    assert len(list(itertools.islice(many, 10**4))) <= ATTEMPTS + 1


def met(failed: int = 0, *, id: str = "r") -> Sample:
    reasons = ("no picture",) * min(failed, 3)
    return Sample(source=0, position=0, row=0, id=id, failed=failed, reasons=reasons)


def add_all(tally: Tally, places: int, *, every: int) -> None:
    for number in range(places):
        tally.add(met(failed=int(number % every == 0)))


def tally_of(**settings) -> Tally:
    return Tally(["a"], DataConfig(**settings))


def test_a_source_past_the_rate_stops_the_run():
    tally = tally_of(max_bad_rate=0.01, bad_rate_window=1000)
    add_all(tally, 10_000, every=101)
    assert len(tally.state()["a"]["recent"]) <= 10
    with pytest.raises(DataError) as told:
        add_all(tally, 10_000, every=50)
    message = str(told.value)
    assert message.startswith("source a: 11 of the last 1000 records are bad (data.max_bad_rate")
    assert "first reasons: no picture; no picture; no picture: repair the source" in message
    assert "\n" not in message


def test_few_bad_records_at_the_start_do_not_stop_the_run_but_a_broken_source_does():
    tally = tally_of()
    tally.add(met(failed=2))
    for _ in range(30):
        tally.add(met())
    tally.add(met(failed=2))
    with pytest.raises(DataError):
        add_all(tally, 200, every=2)
    assert 40 < tally.state()["a"]["tried"] < 80


def test_a_row_of_bad_records_stops_the_run_and_one_good_one_ends_the_row():
    tally = tally_of(max_bad_rate=1.0)
    for _ in range(5):
        tally.add(met(failed=100))
    tally.add(met(failed=60, id=""))
    with pytest.raises(
        DataError, match=r"source a: 101 records in a row are bad \(data.max_bad_in"
    ):
        tally.add(met(failed=41))


def test_counts_judge_the_same_after_a_restart():
    first = tally_of(max_bad_rate=0.01, bad_rate_window=1000)
    add_all(first, 1500, every=120)
    second = tally_of(max_bad_rate=0.01, bad_rate_window=1000)
    second.restore(json.loads(json.dumps(first.state())))
    for tally in (first, second):
        with pytest.raises(DataError):
            add_all(tally, 1000, every=30)
    assert first.state() == second.state()
    assert first.state()["a"]["tried"] < 2000
