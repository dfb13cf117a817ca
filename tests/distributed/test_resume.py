"""Ranks come, go and meet bad numbers, and the run stays the run of one rank."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from tests.distributed.launch import ROOT, run_ranks
from tests.distributed.test_train import config, worst_difference
from torch import nn
from torch.distributed.tensor import DTensor

from vl2.data.collate import TrainBatch
from vl2.parallel.config import ParallelConfig
from vl2.parallel.mesh import ALONE, Ranks
from vl2.train import setup
from vl2.train import task as task_module
from vl2.train.config import CheckpointConfig, TrainConfig
from vl2.train.task import StepReport, Task
from vl2.train.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_other_ranks_and_layouts_go_on_with_the_same_samples_losses_and_parameters():
    command = [sys.executable, str(ROOT / "scripts" / "elastic_check.py"), "--steps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_samples"] is True
    assert found["ranks"] == [4, 2, 1, 4]
    assert found["worst_loss"] < 1e-4  # measured: 6e-7
    assert found["worst_parameter"] < 1e-5  # measured: 1e-6


# --- bad numbers on one rank


STEPS, EVERY = 8, 2
BAD = (2, 5, 6, 7)
"""Numbers of the batches: one alone, then three in a row, with which the run goes back."""

LAYOUTS = {
    "alone": ParallelConfig(),
    "fsdp": ParallelConfig(),
    "pipeline": ParallelConfig(pipeline=2),
}


class Poisoned:
    """A task that meets a NaN on the last rank: in its losses, or in one gradient."""

    def __init__(self, task: Task, *, here: bool, in_losses: bool) -> None:
        self.task, self.here, self.in_losses = task, here, in_losses
        self.batches: list[list[int]] = []
        self.discarded = 0

    @property
    def module(self) -> nn.Module:
        return self.task.module

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        positions = [sample.position for batch in batches for sample in batch.samples]
        if positions not in self.batches:  # a bad step is computed once more
            self.batches.append(positions)
        if not self.here or len(self.batches) - 1 not in BAD:
            return self.task.accumulate(batches)
        if not self.in_losses:
            report = self.task.accumulate(batches)
            self._break_a_gradient()
            return report
        losses = task_module.token_losses
        with mock.patch.object(task_module, "token_losses", lambda *a: losses(*a) * math.nan):
            return self.task.accumulate(batches)

    def _break_a_gradient(self) -> None:
        grads = (p.grad for p in self.module.parameters() if p.grad is not None)
        own = (grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads)
        next(grad for grad in own if grad.numel()).view(-1)[0] = math.nan

    def after_step(self) -> None:
        self.task.after_step()

    def discard(self) -> None:
        self.discarded += 1
        self.task.discard()


def settings(folder: Path, parallel: ParallelConfig) -> TrainConfig:
    given = config(folder, parallel, STEPS)
    drawn = replace(given.data.sources[0], rows=32)
    data = replace(given.data, sources=(drawn,), batch_size=4)
    return replace(given, data=data, checkpoint=CheckpointConfig(every=EVERY, keep=9))


def run_poisoned(given: TrainConfig, *, in_losses: bool) -> list[int]:
    """What this rank counted: discarded steps, skipped ones, times it went back, its last step."""
    trainers: list[Trainer] = []
    build = setup.build

    def poisoned(prepared: setup.Prepared, ranks: Ranks = ALONE) -> Trainer:
        trainer = build(prepared, ranks)
        last = ranks.rank == ranks.layout.world - 1
        trainer.task = Poisoned(trainer.task, here=last, in_losses=in_losses)
        trainers.append(trainer)
        return trainer

    with mock.patch.object(setup, "build", poisoned):
        setup.run(given)
    [trainer] = trainers
    assert isinstance(trainer.task, Poisoned)
    guard = trainer.guard
    return [trainer.task.discarded, guard.skipped, guard.rollbacks, trainer.step]


def run_layout(root: str, name: str) -> list[int]:
    given = settings(Path(root) / name, LAYOUTS[name])
    return run_poisoned(given, in_losses=name != "pipeline")


def run_layouts(root: str) -> dict[str, list[int]]:
    return {name: run_layout(root, name) for name in ("fsdp", "pipeline")}


def test_a_nan_on_one_rank_is_thrown_away_by_all_alike(tmp_path: Path):
    [alone] = run_ranks(1, run_layout, str(tmp_path), "alone", group=False)
    assert alone == [4, 4, 1, STEPS]
    for rank in run_ranks(2, run_layouts, str(tmp_path), group=False):
        assert rank == {"fsdp": alone, "pipeline": alone}
    for name in ("fsdp", "pipeline"):
        lines = (tmp_path / name / "quarantine.jsonl").read_text("utf-8").splitlines()
        steps = sorted(json.loads(line)["step"] for line in lines)
        assert steps == [3, 3, 6, 6, 7, 7, 8, 8]  # each rank notes its own samples
        assert worst_difference(tmp_path / "alone", tmp_path / name) < 1e-5, name
