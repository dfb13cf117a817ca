"""Is a run whose ranks and layout change while it goes on the run of one rank?

    python scripts/elastic_check.py [--steps 40]

One run goes from its first step to its last on one rank. The other one ends and is started again,
each time with another number of ranks and another layout (`LEGS`), from the state that the ones
before kept. Compared are the samples of each step, the losses, and the model at the end. Prints one
JSON line with `"same_samples"`, and the worst difference of a loss (absolute) and of a parameter
(relative to its norm).

Where two experts suit a token equally well to seven digits, rounding chooses, and the losses part
by about 1e-4 from there on: rare in steps of this size, and gone with the weights of another
`--seed`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vl2.data.collate import TrainBatch
from vl2.parallel.config import ParallelConfig
from vl2.parallel.mesh import ALONE, Ranks
from vl2.recipes.stages import RECIPES
from vl2.train import setup
from vl2.train.config import CheckpointConfig, TrainConfig
from vl2.train.task import StepReport
from vl2.train.trainer import Trainer

LEGS: list[tuple[int, ParallelConfig]] = [
    (4, ParallelConfig(shard=2, expert=2)),
    (2, ParallelConfig(pipeline=2)),
    (1, ParallelConfig()),
    (4, ParallelConfig(replicate=2, shard=2)),
]
"""Ranks and layout of each part of the run."""

LOSS, PARAMETER = 1e-4, 1e-5
"""Most that a loss and a parameter may differ."""

PATIENCE = 600.0
"""Seconds that a part of the run may take."""


class Recording:
    """A task that writes down the loss of each step, and the samples that this rank took."""

    def __init__(self, trainer: Trainer, ranks: Ranks, folder: Path) -> None:
        self.trainer, self.task, self.file = trainer, trainer.task, folder / f"rank{ranks.rank}"
        self.takes_samples = ranks.rank == ranks.data_rank  # the first stage of a pipeline

    @property
    def module(self) -> nn.Module:
        """The task's."""
        return self.task.module

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Compute the step and note it."""
        report = self.task.accumulate(batches)
        own = batches if self.takes_samples else ()
        samples = [[s.source, s.id, s.position] for batch in own for s in batch.samples]
        line = {"step": self.trainer.step + 1, "loss": report.loss, "samples": samples}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return report

    def after_step(self) -> None:
        """The task's."""
        self.task.after_step()

    def discard(self) -> None:
        """The task's."""
        self.task.discard()


def settings(
    folder: Path, until: int, steps: int, parallel: ParallelConfig, seed: int
) -> TrainConfig:
    """The debug recipe of everything, in steps of 4 rows, up to a step of the whole run."""
    config = RECIPES["debug_align"]()
    [source] = config.data.sources
    data = replace(config.data, sources=(replace(source, rows=200),), sequence_length=256)
    return replace(
        config,
        stage="pretrain",
        steps=until,
        out=str(folder),
        data=replace(data, batch_size=4, micro_batch=1),
        optim=replace(config.optim, horizon=steps),
        balance=RECIPES["debug_pretrain"]().balance,
        checkpoint=CheckpointConfig(every=until),
        compute=replace(config.compute, threads=1),
        parallel=parallel,
        seed=seed,
    )


def work(config: TrainConfig, env: dict[str, str]) -> None:
    """One rank's process: train, and record it."""
    os.environ.update(env)
    folder, build = Path(config.folder), setup.build

    def recorded(prepared: setup.Prepared, ranks: Ranks = ALONE) -> Trainer:
        trainer = build(prepared, ranks)
        trainer.task = Recording(trainer, ranks, folder)
        return trainer

    setup.build = recorded
    setup.run(config)


def run(config: TrainConfig, world: int) -> None:
    """Train on so many ranks, each in a new process.

    Raises:
        SystemExit: one of them failed, or did not end.
    """
    context = multiprocessing.get_context("forkserver")  # starts in no time: torch is imported once
    context.set_forkserver_preload(["vl2.train.setup", "vl2.parallel.pipeline"])
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    envs = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    ranks = [context.Process(target=work, args=(config, env)) for env in envs]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    if any(code != 0 for code in codes):
        raise SystemExit(f"{config.parallel} on {world} ranks ended with exit codes {codes}")


def by_step(folder: Path) -> dict[int, dict[str, Any]]:
    """Loss and samples of each step, of all ranks together."""
    steps: dict[int, dict[str, Any]] = {}
    for file in sorted(folder.glob("rank*")):
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found = steps.setdefault(line["step"], {"loss": line["loss"], "samples": []})
            found["samples"] += line["samples"]
    for found in steps.values():
        found["samples"].sort()
    return steps


def parameters(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Of the trained model, by name.

    The key's third of an attention bias shifts all scores of a query alike: its gradient is zero
    but for rounding, which AdamW blows up to whole steps. It is left out.
    """
    for file in sorted((folder / "model").glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            bias = name.endswith("attn.qkv.bias")
            yield name, torch.cat(tensor.chunk(3)[::2]) if bias else tensor


def check(steps: int, seed: int, root: Path) -> dict[str, Any]:
    """Train both runs and compare them."""
    one, other = root / "one", root / "other"
    run(settings(one, steps, steps, ParallelConfig(), seed), 1)
    for number, (world, parallel) in enumerate(LEGS, start=1):
        run(settings(other, steps * number // len(LEGS), steps, parallel, seed), world)
    expected, found = by_step(one), by_step(other)
    assert list(expected) == list(range(1, steps + 1)), list(expected)
    assert sorted(found) == list(expected), sorted(found)
    theirs = dict(parameters(other))
    differences = {
        name: float((theirs.pop(name) - tensor).norm() / tensor.norm().clamp(min=1e-12))
        for name, tensor in parameters(one)
    }
    assert not theirs, theirs.keys()
    return {
        "same_samples": all(expected[s]["samples"] == found[s]["samples"] for s in expected),
        "worst_parameter": max(differences.values()),
        "worst_loss": max(abs(expected[s]["loss"] - found[s]["loss"]) for s in expected),
        "steps": steps,
        "ranks": [world for world, _ in LEGS],
        "samples": sum(len(step["samples"]) for step in expected.values()),
        "parameters": len(differences),
    }


def main() -> int:
    """Run the check; 0 if the two runs are one."""
    parser = argparse.ArgumentParser(description="Does a run go on alike on other ranks?")
    parser.add_argument("--steps", type=int, default=40, help=f"at least {len(LEGS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = check(given.steps, given.seed, Path(root))
    print(json.dumps(found))
    within = found["worst_loss"] < LOSS and found["worst_parameter"] < PARAMETER
    return 0 if found["same_samples"] and within else 1


if __name__ == "__main__":
    sys.exit(main())
