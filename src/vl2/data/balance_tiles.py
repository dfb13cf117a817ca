"""Vision work spread evenly: which samples share a sequence, which sequences a step and a rank.

Ranks wait for the one with the most tiles, in every micro batch (paper section 4.2: image tiles are
balanced over data-parallel ranks). Three things follow each other: sequences are packed under a
budget of tiles; the sequences of a step are alike in tiles; in a step, the sequences that run at
the same time are too. The first two know nothing of ranks, so a step's samples do not depend on
their number.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MORE_SEQUENCES = 0.01
"""Share of sequences that a tile budget may cost."""

BUDGET_STEP = 0.05
"""By how much the budget grows while it costs more, relative to itself; at least one tile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileLoad:
    """Tiles of a step as its ranks see them, planned from the index."""

    most: float  # of the rank with the most in each micro batch, summed over them
    mean: float  # of a rank

    @property
    def imbalance(self) -> float:
        """How many times longer than with equal shares vision takes; 1 without a tile."""
        return self.most / self.mean if self.mean else 1.0


Hands = list[list[list[int]]]
"""Sequences of a step by micro batch and rank."""


def best_fit(
    sizes: Sequence[int], room: int, tiles: Sequence[int] = (), budget: float = math.inf
) -> list[list[int]]:
    """Items in bins of `room`: longest first, each into the fullest bin that still takes it.

    Ties go to the earlier item and the earlier bin; a bin lists its items in ascending order.

    Args:
        sizes: tokens of each item.
        room: most tokens of a bin.
        tiles: of each item; none stands for none in all of them.
        budget: most tiles of a bin; an item with more has no other tiles beside it.

    Raises:
        ValueError: an item is larger than a bin.
    """
    if sizes and max(sizes) > room:
        raise ValueError(f"a sample of {max(sizes)} tokens in sequences of {room}: leave it out")
    bins: list[list[int]] = []
    held: list[int] = []  # tiles of each bin
    left: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        own = tiles[item] if tiles else 0
        place = bisect.bisect_left(left, (sizes[item], -1))
        while own and place < len(left) and held[left[place][1]] + own > budget:
            place += 1
        if place == len(left):
            bins.append([item])
            held.append(own)
            bisect.insort(left, (room - sizes[item], len(bins) - 1))
        else:
            space, number = left.pop(place)
            bins[number].append(item)
            held[number] += own
            bisect.insort(left, (space - sizes[item], number))
    return [sorted(members) for members in bins]


def pack_evenly(
    sizes: Sequence[int], tiles: Sequence[int], room: int, bins: int
) -> list[list[int]]:
    """Best fit under the least tile budget that costs at most one in a hundred bins.

    Args:
        sizes: tokens of each item.
        tiles: of each item.
        room: most tokens of a bin.
        bins: number of bins that best fit without a budget needs.
    """
    total, most = sum(tiles), int(bins * (1 + MORE_SEQUENCES))
    budget = max(max(tiles), math.ceil(total / bins))
    while True:
        found = best_fit(sizes, room, tiles, budget)
        if len(found) <= most or budget >= total:
            return found
        budget += max(round(budget * BUDGET_STEP), 1)


def spread(
    sizes: Sequence[int], tiles: Sequence[int], room: int, bins: int
) -> list[list[int]] | None:
    """Items over so many bins: items with tiles where fewest are, the others where most room is.

    Bins come in the order of their first item. None if that does not find room for an item.
    """
    held, used = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    found: list[list[int]] = [[] for _ in range(bins)]
    for item in sorted(range(len(sizes)), key=lambda i: (-tiles[i], -sizes[i], i)):
        fits = used + sizes[item] <= room
        if not fits.any():
            return None
        load = held * (room + 1) + used if tiles[item] else used
        place = int(np.where(fits, load, np.iinfo(np.int64).max).argmin())
        found[place].append(item)
        held[place] += tiles[item]
        used[place] += sizes[item]
    return sorted(sorted(members) for members in found)


def even_runs(tiles: Sequence[int], run: int, lead: int) -> list[int]:
    """An order of sequences in which the sequences of one step are alike in tiles.

    Sequences are sorted by tiles and cut into runs of a step's length. Runs come in the order of
    their earliest sequence, and sequences in their own in each: at random if they came so. What
    does not fill a step is taken from the middle, where windows are most alike. Equal tiles change
    nothing.

    Args:
        tiles: of each sequence of a window.
        run: sequences of a step.
        lead: sequences that complete a step of the window before.
    """
    edge = lead + (len(tiles) - lead) % run
    if edge + run > len(tiles) or len(set(tiles)) == 1:
        return list(range(len(tiles)))
    ranked = sorted(range(len(tiles)), key=lambda i: tiles[i])
    middle = (len(tiles) - edge) // 2
    edges = sorted(ranked[middle : middle + edge])
    ranked = ranked[:middle] + ranked[middle + edge :]
    runs = sorted(sorted(ranked[at : at + run]) for at in range(0, len(ranked), run))
    return [*edges[:lead], *(i for members in runs for i in members), *edges[lead:]]


def deal_in_turn(count: int, world: int, micro_batch: int) -> Hands:
    """Micro batch m is the m-th run of micro_batch * world; rank r takes every world-th of it."""
    share = micro_batch * world
    return [
        [list(range(at + rank, at + share, world)) for rank in range(world)]
        for at in range(0, count, share)
    ]


def deal_evenly(tiles: Sequence[int], world: int, micro_batch: int) -> Hands:
    """Sequences in the order of their tiles, of each `world` in turn one to every rank.

    The one with the most tiles goes to the rank with the fewest in this micro batch, or else in the
    step so far. Two ranks of a micro batch differ by no more than `world` neighbours of the order
    do. The first so many sequences that are dealt are the same for every number of ranks.
    """
    order = sorted(range(len(tiles)), key=lambda i: -tiles[i])
    step, hands = [0] * world, []
    for at in range(0, len(order), micro_batch * world):
        own, held = [[] for _ in range(world)], [0] * world
        for row in range(at, at + micro_batch * world, world):
            ranks = sorted(range(world), key=lambda r: (held[r], step[r]))
            for rank, item in zip(ranks, order[row : row + world], strict=True):
                own[rank].append(item)
                held[rank] += tiles[item]
        step = [before + new for before, new in zip(step, held, strict=True)]
        hands.append(own)
    return hands


def load_of(hands: Hands, tiles: Sequence[int]) -> TileLoad:
    """Tiles of the ranks that hold these sequences."""
    held = [[sum(tiles[i] for i in own) for own in ranks] for ranks in hands]
    return TileLoad(
        most=sum(max(ranks) for ranks in held),
        mean=sum(sum(ranks) / len(ranks) for ranks in held),
    )
