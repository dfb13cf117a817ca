"""Shards in fixed order with a state of one number, waiting for those that are still drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from vl2.data.collate import TrainBatch

Tensors = dict[str, Tensor]
Cut = Callable[[Tensors, np.random.Generator, int], Iterator[TrainBatch]]
"""(shard, generator, batches to leave out) -> the batches of the shard."""
PATIENCE = 0.5
"""Seconds between two looks for a shard that is not drawn yet."""


class ShardLoader:
    """Endless steps of one batch each.

    The first epoch reads the shards in the order of their numbers, later ones in random order. The
    state is the number of shards that were read whole, and of batches of the one that is open:
    going on reads nothing twice.
    """

    def __init__(self, shards: Sequence[Path], cut: Cut, seed: int) -> None:
        self.shards, self.cut, self.seed = shards, cut, seed
        self.whole, self.batches = 0, 0

    def __iter__(self) -> Iterator[Sequence[TrainBatch]]:
        """Steps from the state on."""
        while True:
            epoch, index = divmod(self.whole, len(self.shards))
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(len(self.shards)) if epoch else range(len(self.shards))
            number = int(order[index])
            data = load_file(_awaited(self.shards[number]))
            draws = np.random.default_rng((self.seed, epoch, number))
            for batch in self.cut(data, draws, self.batches):
                self.batches += 1
                yield [batch]
            self.whole, self.batches = self.whole + 1, 0

    def state(self) -> dict[str, Any]:
        """What was read."""
        return {"whole": self.whole, "batches": self.batches}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after it."""
        self.whole, self.batches = state["whole"], state["batches"]

    def close(self) -> None:
        """Nothing works for it."""


def write_shard(path: Path, tensors: Tensors) -> None:
    """Write aside, then rename: a shard is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.rename(path)


def _awaited(path: Path) -> Path:
    while not path.exists():
        time.sleep(PATIENCE)
    return path
