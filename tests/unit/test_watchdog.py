"""Who stands still, from what is known of each rank; the job's end is in tests/distributed."""

from __future__ import annotations

import pytest

from vl2.parallel.watchdog import Sign, find_stuck

LIMIT, SILENCE, NOW = 100.0, 20.0, 1000.0


def sign(
    step: int = 7, doing: str = "computing", *, heard: float = 1.0, moved: float = 200.0
) -> Sign:
    """A rank that was heard of, and moved, so many seconds ago."""
    return Sign(said={"step": step, "doing": doing}, heard=NOW - heard, moved=NOW - moved)


def stuck(*signs: Sign) -> dict[int, str]:
    return find_stuck(dict(enumerate(signs)), LIMIT, NOW, silence=SILENCE)


def test_a_rank_that_is_not_heard_of_is_named():
    found = stuck(sign(), sign(heard=30), sign(moved=1))
    assert found == {1: "sent no sign of life for 30 s, last at step 7, computing"}


def test_a_rank_that_never_spoke_is_named():
    never = Sign(said={}, heard=NOW - 21, moved=NOW - 21)
    found = stuck(sign(doing="starting", step=0), never)
    assert found == {1: "sent no sign of life for 21 s, last at step 0, starting"}


def test_a_rank_is_named_that_the_others_wait_for_in_their_step():
    found = stuck(sign(), sign(doing="waiting for data"), sign(doing="waiting for other ranks"))
    assert found == {1: "has made no progress for 200 s at step 7, waiting for data"}


def test_ranks_behind_the_others_are_named():
    assert list(stuck(sign(8), sign(), sign(8, "waiting for data"), sign())) == [1, 3]


def test_all_are_named_when_they_stand_at_the_same_place():
    assert list(stuck(sign(), sign())) == [0, 1]


@pytest.mark.parametrize(
    "signs",
    [
        (sign(moved=99), sign(doing="waiting for data")),
        (sign(heard=19), sign(moved=1)),
        (sign(doing="saving"), sign(doing="saving")),
        (sign(doing="saving", moved=10_000), sign(8)),
        (sign(0, "starting"), sign(0, "starting")),
        (sign(doing="exporting"), sign()),
        (sign(doing="left", heard=500), sign(moved=1)),
        (sign(doing="left", heard=500), sign(doing="left", heard=500)),
        (),
    ],
    ids=[
        "one moves",
        "a late sign",
        "all save",
        "one saves for hours",
        "all start",
        "one exports",
        "one has left",
        "all have left",
        "nothing is known",
    ],
)
def test_nobody_is_suspected_wrongly(signs: tuple[Sign, ...]):
    assert stuck(*signs) == {}


def test_a_rank_that_is_lost_while_it_saves_is_named():
    assert list(stuck(sign(doing="saving"), sign(doing="saving", heard=21))) == [1]


def test_a_rank_that_has_left_is_not_waited_for():
    found = stuck(sign(6, "left", heard=500), sign(), sign(8))
    assert list(found) == [1]
