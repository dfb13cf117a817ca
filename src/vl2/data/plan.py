"""Which samples make which sequence and step: planned from counts alone, before anything is read.

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

from vl2.data.balance_tiles import (
    TileLoad,
    best_fit,
    deal_evenly,
    deal_in_turn,
    even_runs,
    load_of,
    pack_evenly,
    spread,
)
from vl2.data.config import DataConfig

BINS_PER_WINDOW = 64
"""Sequences that are packed together; the last, half-filled one is 1/128 of them."""

SAMPLES_PER_WINDOW = 256
"""Without packing: about as many as a packed window has of pictures and short texts."""

MOST_SAMPLES = 16_384
"""Samples of a packed window at most: planning one takes a fraction of a second."""


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
    tiles: int  # of all rows

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return sum(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroPlan:
    """The sequences of one forward pass of one rank."""

    sequences: tuple[SequencePlan, ...]
    state: Mapping[str, int]  # the place after it, the same for every rank
    closes_step: bool  # the last one of its optimiser step
    tile_load: TileLoad  # of its step


@runtime_checkable
class Order(Protocol):
    """The endless order of the rows, and what windows are measured by."""

    mean_tokens: float  # of a row
    window: int  # most positions that are planned together

    def spaced(self, *, step: int, window: int) -> Order:
        """The same rows, ordered for steps and windows of so many positions."""
        ...

    def epoch(self, position: int) -> range:
        """The positions of the epoch that a position lies in."""
        ...

    def __getitem__(self, position: int) -> RowRef:
        """The row at a position."""
        ...


class Planner:
    """An endless iterator of steps with a state of two integers.

    With packing, windows of consecutive positions are packed by best fit, longest first, and the
    sequences of a window come in a random order; windows do not mix. Without, each sample is a
    sequence, in the given order. No sample is ever cut, because a picture cannot be: the order must
    hold no row that is longer than a sequence (`mixture.RowOrder` leaves them out and counts them).

    An epoch is a whole number of windows and of steps, so a step never holds rows of two epochs.
    What its last sequences lack to a step is made up by spreading its samples over more sequences,
    and by empty ones where there are fewer samples than sequences.

    With `balance_tiles`, sequences are packed under a budget of tiles, and the sequences of a step
    are alike in tiles.
    """

    def __init__(
        self,
        order: Order,
        counts: Sequence[np.ndarray],
        tiles: Sequence[np.ndarray],
        config: DataConfig,
    ) -> None:
        """Start at the first position.

        Args:
            order: of the rows.
            counts: tokens of each row of each source.
            tiles: of each row of each source.
            config: how rows become sequences and steps.
        """
        self.counts, self.tiles, self.config = counts, tiles, config
        room = config.sequence_length / order.mean_tokens if config.packing else 1
        wanted = BINS_PER_WINDOW * room if config.packing else SAMPLES_PER_WINDOW
        self.order = order.spaced(
            step=math.ceil(config.batch_size * room), window=min(math.ceil(wanted), MOST_SAMPLES)
        )
        self._position, self._bin = 0, 0
        self._places: list[SequencePlan] = []

    def state(self) -> dict[str, int]:
        """Where the next step starts: its window's start, and its first sequence in there."""
        return {"position": self._position, "bin": self._bin}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the state cannot be of this order and these settings.
        """
        position, number = state["position"], state["bin"]
        places = []
        if position >= 0 and self._window(position).start == position:
            places = self._plan(position, number % self.config.batch_size)
        if not 0 <= number < len(places):
            raise ValueError(
                f"data state is {dict(state)}: expected a window's start and a sequence in it; it "
                "is of other data or settings, start a new run"
            )
        self._position, self._bin, self._places = position, number, places

    def __iter__(self) -> Iterator[tuple[SequencePlan, ...]]:
        """The planner itself."""
        return self

    def __next__(self) -> tuple[SequencePlan, ...]:
        """The sequences of the next step, of all ranks."""
        taken: list[SequencePlan] = []
        while lacking := self.config.batch_size - len(taken):
            if not self._places:
                self._places = self._plan(self._position, lacking % self.config.batch_size)
            found = self._places[self._bin : self._bin + lacking]
            taken += found
            self._bin += len(found)
            if self._bin == len(self._places):
                self._position, self._bin, self._places = self._window(self._position).stop, 0, []
        return tuple(taken)

    def _window(self, position: int) -> range:
        """The positions that are planned together with this one: an even part of an epoch."""
        epoch = self.order.epoch(position)
        parts = math.ceil(len(epoch) / self.order.window)
        whole = 1 if self.config.packing else self.config.batch_size  # steps are not cut in vain

        def cut(part: int) -> int:
            at = len(epoch) * part // parts
            return epoch.start + (at if part == parts else at // whole * whole)

        part = bisect.bisect_right(range(parts), position, key=cut) - 1
        return range(cut(part), cut(part + 1))

    def _plan(self, start: int, lead: int) -> list[SequencePlan]:
        """The window that starts there, of which `lead` sequences complete a step."""
        window = self._window(start)
        rows = [self.order[position] for position in window]
        tokens = [int(self.counts[row.source][row.row]) for row in rows]
        tiles = [int(self.tiles[row.source][row.row]) for row in rows]
        run, ends = self.config.batch_size, window.stop == self.order.epoch(start).stop
        bins = self._packed(start, tokens, tiles)
        if ends:
            bins = self._whole_steps(bins, tokens, tiles, lead)
        if self.config.balance_tiles:
            bins = [bins[i] for i in even_runs(_sums(bins, tiles), run, lead)]
        if ends:
            bins = _with_empty(bins, run, lead)
        return [
            SequencePlan(
                rows=tuple(rows[i] for i in members),
                tokens=tuple(tokens[i] for i in members),
                tiles=sum(tiles[i] for i in members),
            )
            for members in bins
        ]

    def _packed(self, start: int, tokens: list[int], tiles: list[int]) -> list[list[int]]:
        """Samples of each sequence, in random order."""
        if not self.config.packing:
            return [[i] for i in range(len(tokens))]
        room = self.config.sequence_length
        bins = best_fit(tokens, room)
        if self.config.balance_tiles:
            bins = pack_evenly(tokens, tiles, room, len(bins))
        bins.sort(key=lambda members: draw(self.config.seed, "sequence", start, members[0]))
        return bins

    def _whole_steps(
        self, bins: list[list[int]], tokens: list[int], tiles: list[int], lead: int
    ) -> list[list[int]]:
        """Sequences that end with a step, or one for each sample if these are fewer."""
        count = len(bins)
        while True:
            count += (lead - count) % self.config.batch_size
            if count == len(bins):
                return bins
            if count >= len(tokens):
                return [[i] for i in range(len(tokens))]
            found = spread(tokens, tiles, self.config.sequence_length, count)
            if found is not None:
                return found
            count += 1


def _sums(bins: Sequence[Sequence[int]], tiles: Sequence[int]) -> list[int]:
    return [sum(tiles[i] for i in members) for members in bins]


def _with_empty(bins: list[list[int]], run: int, lead: int) -> list[list[int]]:
    """Sequences made up to whole steps by empty ones, evenly over all steps but the first `lead`.

    What is there is at least a sequence.
    """
    steps = math.ceil((len(bins) - lead) / run)
    if steps < 1:
        return bins + [[]] * (lead - len(bins))
    whole, found = len(bins) - lead, bins[:lead]
    for step in range(steps):
        real = bins[lead + whole * step // steps : lead + whole * (step + 1) // steps]
        found += real + [[]] * (run - len(real))
    return found


def micro_plans(planner: Planner, *, rank: int, world: int, done: int = 0) -> Iterator[MicroPlan]:
    """Endless micro batches of one rank, step by step.

    All ranks together take micro_batch * world sequences of a step at a time. A step's sequences do
    not depend on `world`, nor does the set of them that is done after each of these.

    Args:
        planner: gives the steps of all ranks.
        rank: this one, from 0.
        world: number of ranks.
        done: sequences of the first step that were consumed before, over all ranks.

    Raises:
        ValueError: the ranks cannot share a step, or what is left of it, evenly.
    """
    batch_size, micro_batch = planner.config.batch_size, planner.config.micro_batch
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
            f"the state is after {done} of a step's {batch_size} sequences, which "
            f"{micro_batch} x {world} sequences at a time do not reach: "
            "resume from the end of a step"
        )
    return _micro_plans(planner, rank, world, done // share)


def _micro_plans(planner: Planner, rank: int, world: int, first: int) -> Iterator[MicroPlan]:
    micro_batch = planner.config.micro_batch
    while True:
        start, step = planner.state(), next(planner)
        tiles = [sequence.tiles for sequence in step]
        hands = deal_in_turn(len(tiles), world, micro_batch)
        if planner.config.balance_tiles:
            hands = deal_evenly(tiles, world, micro_batch)
        load = load_of(hands, tiles)
        for number in range(first, len(hands)):
            closes = number == len(hands) - 1
            after = {**start, "done": (number + 1) * micro_batch * world}
            yield MicroPlan(
                sequences=tuple(step[i] for i in hands[number][rank]),
                state={**planner.state(), "done": 0} if closes else after,
                closes_step=closes,
                tile_load=load,
            )
        first = 0
