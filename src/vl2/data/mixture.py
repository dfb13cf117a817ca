"""The endless order of training rows: shuffled by Grain, mixed so that token shares are as asked.

A row is a pure function of its position, so the whole state of the order is one integer.
"""

from __future__ import annotations

import copy
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np

from vl2.data.plan import RowRef, draw
from vl2.logs import get_logger

log = get_logger(__name__)

SHARES = 2**32
"""Parts of the mixture that are dealt out: shares are exact to one of them."""


FEW_ROWS = 4096
"""Sources below this are shuffled here: Grain takes milliseconds for each of a few rows, because it
walks through 65,536 places to find them."""


@runtime_checkable
class _Turns(Protocol):
    """Row numbers of one source by turn."""

    def __getitem__(self, turn: int) -> int: ...


class RowOrder:
    """Every source shuffled anew each epoch and repeated; `order[position]` is a `RowRef`.

    Rows that cannot be used or are longer than a sequence are not in the order. A source is drawn
    with a probability of its weight divided by its mean tokens, and drawn evenly, not by chance.

    Attributes:
        mean_tokens: of a row of the mixture.
        rows: number of rows in one epoch of each source.
        window: most positions that are planned together, see `spaced`.
    """

    def __init__(
        self,
        counts: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        names: Sequence[str],
        longest: int,
        seed: int = 0,
    ) -> None:
        """Find the rows of each source.

        Args:
            counts: tokens of each row of each source; -1 where a row cannot be used.
            weights: shares of the tokens, relative to each other.
            names: of the sources, for messages.
            longest: most tokens of a row.
            seed: of the shuffles.

        Raises:
            ValueError: no source, one without a usable row, or Grain is not installed.
        """
        if not counts:
            raise ValueError("no data source: give at least one in data.sources")
        self._ids = [_usable(c, longest, name) for c, name in zip(counts, names, strict=True)]
        self.rows = tuple(len(ids) for ids in self._ids)
        self._seeds = [draw(seed, "shuffle", number) for number in range(len(self.rows))]
        self._epochs = [_shuffled(n, of) for n, of in zip(self.rows, self._seeds, strict=True)]
        means = [float(c[ids].mean()) for c, ids in zip(counts, self._ids, strict=True)]
        odds = [weight / mean for weight, mean in zip(weights, means, strict=True)]
        self._shares = [max(round(odd / sum(odds) * SHARES), 1) for odd in odds]
        self.mean_tokens = sum(o * m for o, m in zip(odds, means, strict=True)) / sum(odds)
        self._reference, self.window = 0, max(self.rows)

    def spaced(self, *, step: int, window: int) -> RowOrder:
        """The order in which no row comes twice in `step` positions while others of it wait.

        Nor does it in a packed step, which takes from a few windows, if its source lasts for one.

        Epochs are then the epochs of the smallest source that lasts for a step or longer; if none
        does, of the largest one. Small sources whose own epochs end within such an epoch are
        shuffled so that a step can hold the end of an epoch and the beginning of the next.

        Args:
            step: positions of an optimiser step.
            window: positions that are wanted in a window.
        """
        total = sum(self._shares)
        lasts = [n * total // share for n, share in zip(self.rows, self._shares, strict=True)]
        least = min((last for last in lasts if last >= step), default=max(lasts))
        found = copy.copy(self)
        found._reference = lasts.index(least)
        if len(lasts) > 1:  # the windows that a step touches are a part of an epoch where they can
            window = min(window, step if min(lasts) < step else max(step, least // 3))
            reach = min(least, step + 2 * window)
            apart = [reach * share // total + len(lasts) + 1 for share in self._shares]
            apart[found._reference] = 1
            told = zip(self.rows, self._seeds, apart, strict=True)
            found._epochs = [_shuffled(n, seed, distance) for n, seed, distance in told]
        found.window = window
        return found

    def epoch(self, position: int) -> range:
        """The positions of the epoch that a position lies in, see `spaced`."""
        source, rows = self._reference, self.rows[self._reference]
        number = drawn_before(position, source, self._shares) // rows
        start, stop = (self._reached(n * rows) for n in (number, number + 1))
        return range(start, stop)

    def _reached(self, turn: int) -> int:
        """The first position before which the reference was drawn so often."""
        source, shares = self._reference, self._shares
        most = (turn + len(shares)) * sum(shares) // shares[source] + 1
        return bisect_left(
            range(most), turn, key=lambda position: drawn_before(position, source, shares)
        )

    def __getitem__(self, position: int) -> RowRef:
        """The row at a position from 0 on."""
        source, turn = deal(position, self._shares)
        row = self._ids[source][self._epochs[source][turn]]
        return RowRef(source, int(row), position)


def deal(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """Which source is drawn at a position, and how often it was drawn before.

    Each source in turn keeps its share of the positions that reach it, spread evenly, and passes
    the others on. (Grain's `mix` does the same with shares rounded to 1 % of the smallest.)
    """
    rest = sum(shares)
    for source, share in enumerate(shares):
        passed = position * (rest - share) // rest
        if passed == (position + 1) * (rest - share) // rest:
            return source, position - passed
        position, rest = passed, rest - share
    raise AssertionError("the last source keeps everything that reaches it")


def drawn_before(position: int, source: int, shares: Sequence[int]) -> int:
    """How often `deal` draws a source at the positions before this one."""
    rest = sum(shares)
    for share in shares[:source]:
        position, rest = position * (rest - share) // rest, rest - share
    return position - position * (rest - shares[source]) // rest


def _shuffled(rows: int, seed: int, apart: int = 1) -> _Turns:
    """Numbers below `rows`, endless, each epoch in another order.

    With few rows any `apart` of them that follow each other differ, if there are so many.
    """
    if rows < FEW_ROWS:
        return _FewRows(rows, seed, apart)
    return _grain().MapDataset.range(rows).shuffle(seed=seed % 2**32).repeat(None)


class _FewRows:
    """The shuffle of a small source, one epoch at a time.

    Rows are dealt to groups once. An epoch is one group after the other, each shuffled anew, so a
    row comes again after all rows of the other groups at the soonest.
    """

    def __init__(self, rows: int, seed: int, apart: int = 1) -> None:
        self.rows, self.seed = rows, seed
        groups = math.ceil(rows / max(rows - apart + 1, 1))
        dealt = sorted(range(rows), key=lambda row: draw(seed, "group", row))
        self.group = {row: place * groups // rows for place, row in enumerate(dealt)}
        self.epoch, self.order = -1, list(range(rows))

    def __getitem__(self, turn: int) -> int:
        epoch, place = divmod(turn, self.rows)
        if epoch != self.epoch:
            keys = [(self.group[row], draw(self.seed, epoch, row)) for row in range(self.rows)]
            self.order = sorted(range(self.rows), key=keys.__getitem__)
            self.epoch = epoch
        return self.order[place]


def _usable(counts: np.ndarray, longest: int, name: str) -> np.ndarray:
    """Rows that can be trained on; logs how many cannot."""
    ids = np.flatnonzero((counts > 0) & (counts <= longest))
    long, bad = int((counts > longest).sum()), int((counts <= 0).sum())
    if long or bad:
        log.warning(
            "%s: %d of %d rows left out: %d longer than a sequence of %d tokens, %d unusable",
            *(name, long + bad, len(counts), long, longest, bad),
        )
    if not len(ids):
        raise ValueError(
            f"{name}: none of its {len(counts)} rows can be used ({long} are longer than "
            f"sequence_length = {longest}): see the log of its index, or raise sequence_length"
        )
    return ids.astype(np.int32) if len(counts) < 2**31 else ids


def _grain() -> ModuleType:
    """Grain, imported when it is needed: it takes half a second and tells absl about jax."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        return import_module("grain")
    except ImportError:
        raise ValueError(
            'a source of 4,096 rows or more needs a package: pip install "vl2[train]"'
        ) from None
    finally:
        absl.setLevel(level)
