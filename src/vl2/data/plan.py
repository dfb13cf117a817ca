"""Which samples make which sequence: planned from token counts alone, before anything is read.

A plan is a pure function of the order, the counts and the settings, so it does not depend on who
decodes, how far ahead, or on how many ranks; its state is two integers.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

BINS_PER_WINDOW = 64
"""Sequences that are packed together; the last, half-filled one is 1/128 of them."""

MOST_SAMPLES = 16_384
"""Samples of a window at most: planning one takes a fraction of a second."""


def draw(*key: int | str) -> int:
    """64 bits that depend on nothing but the key: the same in every process and release."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of a source, and its place in the endless order."""

    source: int
    row: int
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencePlan:
    """Samples that share one sequence, in the order of their positions."""

    rows: tuple[RowRef, ...]
    tokens: tuple[int, ...]  # of each row, by the index

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return sum(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroPlan:
    """The sequences of one forward pass of one rank."""

    sequences: tuple[SequencePlan, ...]
    state: Mapping[str, int]  # where to go on behind it, the same for every rank
    closes_step: bool  # the last one of its optimiser step


@runtime_checkable
class Order(Protocol):
    """The endless order of the rows, and their mean number of tokens."""

    mean_tokens: float

    def __getitem__(self, position: int) -> RowRef:
        """The row at a position."""
        ...


class Planner:
    """An endless iterator of sequences with a state of two integers.

    With packing, windows of consecutive positions are packed by best fit, longest first, and the
    sequences of a window come in a random order; windows do not mix. Without, each sample is a
    sequence, in the given order. No sample is ever cut, because a picture cannot be: the order must
    hold no row that is longer than a sequence (`mixture.RowOrder` leaves them out and counts them).
    """

    def __init__(
        self,
        order: Order,
        counts: Sequence[np.ndarray],
        *,
        sequence_length: int,
        packing: bool = True,
        seed: int = 0,
    ) -> None:
        """Start at the first position.

        Args:
            order: of the rows.
            counts: tokens of each row of each source.
            sequence_length: most tokens of a sequence.
            packing: several samples in one sequence.
            seed: of the order of a window's sequences.
        """
        self.order, self.counts = order, counts
        self.sequence_length, self.packing, self.seed = sequence_length, packing, seed
        wanted = math.ceil(BINS_PER_WINDOW * sequence_length / order.mean_tokens)
        self.window = min(wanted, MOST_SAMPLES) if packing else BINS_PER_WINDOW
        self._position, self._bin = 0, 0
        self._bins: list[SequencePlan] = []

    def state(self) -> dict[str, int]:
        """Where the next sequence stands: the start of its window, and its number in there."""
        return {"position": self._position, "bin": self._bin}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: the state cannot be of this order and these settings.
        """
        position, number = state["position"], state["bin"]
        bins = self._plan(position) if position >= 0 and position % self.window == 0 else []
        if not 0 <= number < max(len(bins), 1) or not bins:
            raise ValueError(
                f"data state is {dict(state)}: expected a window's start (a multiple of "
                f"{self.window}) and a sequence in it; it is of other data or settings, start anew"
            )
        self._position, self._bin, self._bins = position, number, bins

    def __iter__(self) -> Iterator[SequencePlan]:
        """The planner itself."""
        return self

    def __next__(self) -> SequencePlan:
        """The next sequence."""
        if not self._bins:
            self._bins = self._plan(self._position)
        plan = self._bins[self._bin]
        self._bin += 1
        if self._bin == len(self._bins):
            self._position, self._bin, self._bins = self._position + self.window, 0, []
        return plan

    def _plan(self, start: int) -> list[SequencePlan]:
        """The sequences of the window that starts there."""
        rows = [self.order[start + offset] for offset in range(self.window)]
        tokens = [int(self.counts[row.source][row.row]) for row in rows]
        if not self.packing:
            return [SequencePlan(rows=(r,), tokens=(n,)) for r, n in zip(rows, tokens, strict=True)]
        bins = best_fit(tokens, self.sequence_length)
        bins.sort(key=lambda members: draw(self.seed, "sequence", start, members[0]))
        return [
            SequencePlan(rows=tuple(rows[i] for i in b), tokens=tuple(tokens[i] for i in b))
            for b in bins
        ]


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Items in bins of `room`: longest first, each into the fullest bin that still takes it.

    Ties go to the earlier item and the earlier bin; a bin lists its items in ascending order.

    Raises:
        ValueError: an item is larger than a bin.
    """
    if sizes and max(sizes) > room:
        raise ValueError(f"a sample of {max(sizes)} tokens in sequences of {room}: leave it out")
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(left, (sizes[item], -1))
        if place == len(left):
            bins.append([item])
            bisect.insort(left, (room - sizes[item], len(bins) - 1))
        else:
            space, number = left.pop(place)
            bins[number].append(item)
            bisect.insort(left, (space - sizes[item], number))
    return [sorted(members) for members in bins]


def micro_plans(
    planner: Planner, *, batch_size: int, micro_batch: int, rank: int, world: int, done: int = 0
) -> Iterator[MicroPlan]:
    """Endless micro batches of one rank, step by step.

    Micro batch m of all ranks together is the m-th run of micro_batch * world sequences of the
    step, of which this rank takes every world-th: a step's sequences do not depend on `world`.

    Args:
        planner: gives the sequences of all ranks.
        batch_size: sequences of an optimiser step, over all ranks.
        micro_batch: sequences of a forward pass of one rank.
        rank: this one, from 0.
        world: number of ranks.
        done: sequences of the first step that were consumed before, over all ranks.

    Raises:
        ValueError: the ranks cannot share a step, or what is left of it, evenly.
    """
    share = micro_batch * world
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}: expected 0 to {world - 1}")
    if batch_size % share:
        raise ValueError(
            f"batch_size is {batch_size}: expected a multiple of micro_batch x ranks = "
            f"{micro_batch} x {world}"
        )
    if not 0 <= done < batch_size or done % share:
        raise ValueError(
            f"the state stands behind {done} of a step's {batch_size} sequences, which "
            f"{micro_batch} x {world} sequences at a time do not reach: go on from a step's end"
        )
    return _micro_plans(planner, batch_size, share, slice(rank, None, world), done)


def _micro_plans(
    planner: Planner, batch_size: int, share: int, own: slice, done: int
) -> Iterator[MicroPlan]:
    while True:
        sequences = tuple(next(planner) for _ in range(share))[own]
        done = (done + share) % batch_size
        state = {**planner.state(), "done": done}
        yield MicroPlan(sequences=sequences, state=state, closes_step=not done)
