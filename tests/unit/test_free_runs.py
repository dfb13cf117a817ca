"""Runs of free blocks: those of the plain twin, at a cost that does not grow with the pool."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.engine import block_manager
from vl2.engine.block_manager import BlockManager
from vl2.engine.free_runs import FreeRuns, FreeRunsRef

MOVES = st.lists(st.tuples(st.booleans(), st.integers(0, 10**6), st.integers(1, 12)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), moves=MOVES)
def test_runs_are_those_of_the_plain_twin(count, moves):
    fast, plain = FreeRuns(count), FreeRunsRef(count)
    taken: list[range] = []
    for take, number, size in moves:
        if take and len(plain):
            first, longest = plain.longest()
            skip = number % longest
            taken.append(plain.take(first, skip, size))
            assert fast.take(first, skip, size) == taken[-1]
        elif taken:
            back = taken.pop(number % len(taken))
            for runs in (fast, plain):
                runs.add(back.start, len(back))
        assert (len(fast), fast.longest()) == (len(plain), plain.longest())
        assert [fast.size_at(n) for n in range(count)] == [plain.size_at(n) for n in range(count)]


def admit(manager: BlockManager, sizes: list[int], keep: int) -> list[list[int] | None]:
    """Admissions of so many blocks, published and given up when `keep` others have come."""
    found, owned = [], []
    for number, size in enumerate(sizes):
        blocks = manager.grow([], size)
        found.append(blocks)
        if blocks:
            for place, block in enumerate(blocks[:-1]):
                manager.publish(block, b"%d.%d" % (number, place))
            owned.append(list(blocks))
        for other in owned[::2]:
            more = manager.grow(other, 1)
            found.append(more)
            other += more or []
        if len(owned) > keep:
            manager.release(owned.pop(number % len(owned)))
    return found


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(20, 90),
    sizes=st.lists(st.integers(1, 14), max_size=40),
    sharing=st.booleans(),
)
def test_blocks_are_those_that_the_plain_twin_gives(count, sizes, sharing):
    found = []
    for runs in (FreeRuns, FreeRunsRef):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_manager, "FreeRuns", runs)
            found.append(admit(BlockManager(count, 16, sharing=sharing), sizes, 5))
    assert found[0] == found[1]


def calls_of(count: int) -> int:
    """Most functions that one admission calls in a pool whose free blocks are scattered."""
    manager = BlockManager(count, 16)
    every = manager.grow([], count)
    for block in every[::2]:
        manager.publish(block, b"%d" % block)
        manager.release([block])
    manager.release(every[1::10])
    worst = 0
    for size in (1, 4, 40):
        called = 0

        def hear(*_: object) -> None:
            nonlocal called
            called += 1

        sys.setprofile(hear)
        try:
            blocks = manager.grow([], size)
        finally:
            sys.setprofile(None)
        assert len(blocks) == size
        worst = max(worst, called)
    return worst


def test_an_admission_does_not_cost_more_where_there_are_more_blocks():
    assert calls_of(40_000) < 1.5 * calls_of(3_000)


def test_a_short_prompt_does_not_end_a_long_shared_beginning():
    manager = BlockManager(10_000, 16)
    kept = manager.grow([], 10_000)
    names = [b"%d" % number for number in range(10_000)]
    for block, name in zip(kept, names, strict=True):
        manager.publish(block, name)
    manager.release(kept)
    manager.grow([], 10)
    assert len(manager.find(names)) == 10_000 - 80  # the end of the text goes first
