"""What keeping the state while training goes on costs: steps with saves against steps without.

    python bench/async_save.py [--model debug_base] [--every 20] [--rounds 6] [--threads N]

One process, one model, text alone, AdamW. Stretches of `--every` steps take turns: one begins with
an asynchronous save, the other has none; which of a pair comes first changes. What `save` blocks
counts as part of the steps, as does what is left of the write at the end of a stretch, for which
the next save would wait. One JSON line:

    step_s, step_s_saving        median of the steps without saves, and with one in each stretch
    median_inflation             of these two: a step at which most others are measured
    inflation                    of a whole stretch on a quiet machine: what a run takes longer
    save_blocks_s                median; the state is copied meanwhile
    wait_s                       median of what was left of the write at the end of a stretch
    synchronous_save_s           median of saves that wait for the disk, for comparison
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vl2.benchmarks.timing import seconds
from vl2.checkpoint.dcp import CheckpointStore
from vl2.config import VL2Config
from vl2.data.collate import TrainBatch
from vl2.model.vl2 import VL2Model
from vl2.train.config import TRAINED, BalanceConfig, OptimConfig
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask
from vl2.train.trainer import model_state

WARM_UP = 5
"""Steps before the first stretch."""


class Run:
    """A model that trains, and the store of its state."""

    def __init__(self, preset: str, store: CheckpointStore, rows: int, length: int) -> None:
        model = VL2Model(VL2Config.preset(preset))
        model.init_weights(torch.Generator().manual_seed(0))
        freeze(model, TRAINED["sft"])
        self.task = LanguageTask(model.train(), BalanceConfig())
        self.optimizers = Optimizers(model, OptimConfig(learning_rate=1e-4), 10**6)
        vocabulary = model.config.language_config.vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
        self.batch = TrainBatch(tensors={"input_ids": ids, "labels": ids}, tokens=ids.numel())
        self.store, self.saved = store, 0

    def step(self) -> None:
        """One optimiser step."""
        self.task.accumulate([self.batch])
        self.optimizers.clip()
        self.optimizers.step()
        self.optimizers.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What a trainer keeps."""
        return {**model_state(self.task.module), **self.optimizers.state()}

    def save(self, *, asynchronous: bool) -> None:
        """Keep the state as the next step."""
        self.saved += 1
        self.store.save(self.saved, self.state(), {}, asynchronous=asynchronous)


def measure(run: Run, every: int, rounds: int) -> dict[str, object]:
    """All stretches in turn."""
    stretches: dict[bool, list[list[float]]] = {False: [], True: []}
    blocked, waited = [], []
    for _ in range(WARM_UP):
        run.step()
    for number in range(rounds):
        for saves in (True, False) if number % 2 else (False, True):
            if saves:
                blocked.append(seconds(lambda: run.save(asynchronous=True)))
            stretches[saves].append([seconds(run.step) for _ in range(every)])
            if saves:
                waited.append(seconds(run.store.wait))
    synchronous = [seconds(lambda: run.save(asynchronous=False)) for _ in range(3)]
    without, saving = (
        statistics.median(itertools.chain(*stretches[saves])) for saves in (False, True)
    )
    blocks, waits = statistics.median(blocked), statistics.median(waited)
    more = blocks + waits + quiet(stretches[True]) - quiet(stretches[False])
    return {
        "step_s": round(without, 5),
        "step_s_saving": round(saving, 5),
        "median_inflation": round(saving / without - 1, 4),
        "inflation": round(more / quiet(stretches[False]), 4),
        "save_blocks_s": round(blocks, 5),
        "wait_s": round(waits, 5),
        "synchronous_save_s": round(statistics.median(synchronous), 5),
        "state_mib": round(sum(tensor.nbytes for tensor in run.state().values()) / 2**20, 2),
    }


def quiet(stretches: list[list[float]]) -> float:
    """Seconds of a stretch whose every step is the fastest of those at its place.

    What else the machine does hits steps anywhere; a save slows the steps after it, each time.
    """
    return sum(map(min, zip(*stretches, strict=True)))


def main() -> None:
    """Measure and print a JSON line."""
    parser = argparse.ArgumentParser(description="What asynchronous saves cost.")
    parser.add_argument("--model", default="debug_base", help="a preset")
    parser.add_argument("--every", type=int, default=20, help="steps between saves")
    parser.add_argument("--rounds", type=int, default=6, help="stretches of each kind")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder), keep=2) as store:
        run = Run(given.model, store, given.rows, given.length)
        found = measure(run, given.every, given.rounds)
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads()}
    asked = {"model": given.model, "every": given.every, "rounds": given.rounds}
    print(json.dumps({**asked, **machine, **found}))


if __name__ == "__main__":
    main()
