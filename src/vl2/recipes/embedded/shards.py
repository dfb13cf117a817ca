"""Shards drawn ahead into a window: each is read several times, then makes room for new ones.

A shard is a pure function of its number, so that one that was removed can be drawn again. The state
of reading is two numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from vl2.data.collate import TrainBatch
from vl2.failure import WorkError

Tensors = dict[str, Tensor]
Cut = Callable[[Tensors, np.random.Generator, int], Iterator[TrainBatch]]
"""(shard, generator, batches to leave out) -> the batches of the shard."""
PATIENCE = 0.5
"""Seconds between two looks for a shard that is not drawn yet, or for room to draw one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Where shards lie and how long.

    Attributes:
        folder: of the files.
        block: shards that are read together, `times` times, before the next block.
        times: how often; the first time in the order of their numbers, then in random order.
    """

    folder: Path
    block: int = 12
    times: int = 3

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{number:05}.safetensors"

    def drawn(self) -> list[int]:
        """Numbers of the shards that are there."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def shard(self, reading: int, seed: int) -> int:
        """Which shard is read as the `reading`-th, from 0."""
        block, within = divmod(reading, self.block * self.times)
        time_, index = divmod(within, self.block)
        rng = np.random.default_rng((seed, block, time_))
        order = rng.permutation(self.block) if time_ else range(self.block)
        return block * self.block + int(order[index])

    def first_needed(self, reading: int) -> int:
        """The first shard that is read from here on, or after a step back into the block before."""
        return max(0, reading // (self.block * self.times) - 1) * self.block


class ShardLoader:
    """Endless steps of micro batches, from a window that is filled at the same time.

    The state is the number of shards that were read whole, and of batches of the one that is open:
    going on reads nothing twice.
    """

    def __init__(
        self,
        window: Window,
        cut: Cut,
        seed: int,
        *,
        micro: int = 1,
        filled: Callable[[], bool] = lambda: True,
    ) -> None:
        """Nothing is read yet.

        Args:
            window: where the shards are, or will be.
            cut: makes batches of a shard.
            seed: of the orders.
            micro: batches of a step; the rest of a shard that makes no whole step is left out.
            filled: whether somebody still fills the window; asked while a shard is waited for.
        """
        self.window, self.cut, self.seed, self.filled = window, cut, seed, filled
        self.micro = micro
        self.whole, self.batches = 0, 0

    def __iter__(self) -> Iterator[Sequence[TrainBatch]]:
        """Steps from the state on.

        Raises:
            WorkError: a shard is missing and nobody draws it.
        """
        while True:
            self._make_room()
            number = self.window.shard(self.whole, self.seed)
            data = load_file(self._awaited(number))
            draws = np.random.default_rng((self.seed, self.whole))
            cut = self.cut(data, draws, self.batches)
            while len(step := list(islice(cut, self.micro))) == self.micro:
                self.batches += self.micro
                yield step
            self.whole, self.batches = self.whole + 1, 0

    def state(self) -> dict[str, Any]:
        """What was read."""
        return {"whole": self.whole, "batches": self.batches}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after it."""
        self.whole, self.batches = state["whole"], state["batches"]

    def close(self) -> None:
        """Nothing works for it."""

    def _awaited(self, number: int) -> Path:
        path = self.window.path(number)
        while not path.exists():
            if not self.filled():
                raise WorkError(f"nobody draws {path}: its process has ended, see the log above")
            time.sleep(PATIENCE)
        return path

    def _make_room(self) -> None:
        first = self.window.first_needed(self.whole)
        for number in self.window.drawn():
            if number < first:
                self.window.path(number).unlink()


def draw_ahead(window: Window, first: int, draw: Callable[[int], Tensors]) -> None:
    """Fill the window from shard `first` on, for as long as the process that asked for it lives."""
    parent, number = os.getppid(), first
    while os.getppid() == parent:
        if window.path(number).exists():
            number += 1
        elif len(window.drawn()) < 3 * window.block:  # the one read, one to step back to, the next
            write_shard(window.path(number), draw(number))
        else:
            time.sleep(PATIENCE)


def write_shard(path: Path, tensors: Tensors) -> None:
    """Write aside, then rename: a shard is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.rename(path)


def to_pixels(kept: Tensor) -> Tensor:
    """Bytes of a shard's tiles as the tower takes them, with mean and deviation 0.5."""
    return kept.float().div_(127.5).sub_(1)
