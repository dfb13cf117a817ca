"""Is a run that was stopped and started again bit for bit the run that was never stopped?

    python scripts/resume_check.py [--steps 40] [--stops 1,7,20,39] [--workers 0,2]

One uninterrupted run is compared with runs that stop after a step (`--signal` sends SIGTERM in the
middle of the step's micro batches; otherwise the process ends without warning behind it) and go on
in a new process: all parameters, moments, router biases, RNG, losses and sample ids. Prints one
JSON line with `"bitwise_equal"` and the first difference.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vl2.checkpoint.commit import newest_valid
from vl2.checkpoint.dcp import EXTRA
from vl2.data.collate import TrainBatch
from vl2.recipes.stages import RECIPES
from vl2.train.config import CheckpointConfig, TrainConfig
from vl2.train.setup import build, prepare
from vl2.train.task import StepReport, Task
from vl2.train.trainer import TrainingStopped

KILLED = 9
"""Exit code of a run that ends itself without warning."""


class Recording:
    """A task that writes down losses and sample ids, and stops the process where it is told."""

    def __init__(self, task: Task, file: Path, stop: int | None, *, politely: bool) -> None:
        self.task, self.file, self.stop, self.politely = task, file, stop, politely
        self.step = 0

    @property
    def module(self) -> torch.nn.Module:
        """The task's."""
        return self.task.module

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Compute the step; asked politely to stop, it hears of it in the middle."""
        if self.politely and self.step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        report = self.task.accumulate(batches)
        samples = [[s.source, s.id, s.position] for batch in batches for s in batch.samples]
        line = {"step": self.step + 1, "loss": report.loss.hex(), "samples": samples}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return report

    def after_step(self) -> None:
        """The task's; the step is over behind it."""
        self.task.after_step()
        self.step += 1

    def discard(self) -> None:
        """The task's."""
        self.task.discard()
        self.step += 1


def settings(folder: Path, steps: int, workers: int) -> TrainConfig:
    """The debug recipe of everything, with accumulation and a state kept after every step."""
    config = RECIPES["debug_align"]()
    return replace(
        config,
        stage="pretrain",
        steps=steps,
        out=str(folder),
        data=replace(config.data, batch_size=4, micro_batch=2, workers=workers),
        balance=RECIPES["debug_pretrain"]().balance,
        checkpoint=CheckpointConfig(every=1, keep=2),
        compute=replace(config.compute, threads=1, deterministic=torch.cuda.is_available()),
    )


def run(folder: Path, steps: int, workers: int, stop: int | None, *, politely: bool) -> int:
    """Train in this process; the exit code that it should have."""
    prepared = prepare(settings(folder, steps, workers))
    trainer = build(prepared)
    task = Recording(trainer.task, folder / "record.jsonl", stop, politely=politely)
    trainer.task = task
    resume, save = trainer._resume, trainer._save

    def resumed() -> None:
        resume()
        task.step = trainer.step

    def saved(*, asynchronous: bool) -> None:
        save(asynchronous=asynchronous)
        if not politely and trainer.step == stop:
            trainer.store.wait()
            os._exit(KILLED)

    trainer._resume, trainer._save = resumed, saved
    try:
        trainer.run()
    except TrainingStopped:
        return 75
    finally:
        trainer.store.close()
    return 0


def final_state(folder: Path) -> dict[str, Any]:
    """Every tensor and every other value of the last kept step, and the record of all steps."""
    step = newest_valid(folder / "checkpoints")
    assert step is not None, f"{folder} has no valid step"
    state: dict[str, Any] = {}
    for file in sorted(step.glob("*.safetensors")):
        state |= load_file(file)
    extra = json.loads((step / EXTRA).read_text(encoding="utf-8"))
    state |= {f"extra.{key}": extra[key] for key in ("step", "loader", "rng", "guard")}
    lines = (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {line["step"]: line for line in map(json.loads, lines)}
    return state | {f"step {number}": line for number, line in by_step.items()}


def differences(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    """Names of what is not the same bits in both."""
    yield from sorted(one.keys() ^ two.keys())
    for key in sorted(one.keys() & two.keys()):
        a, b = one[key], two[key]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not same:
            yield key


def in_new_process(folder: Path, arguments: Sequence[str]) -> int:
    """Run this script once more for one leg of a run."""
    command = [sys.executable, __file__, "--leg", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, KILLED, 75):
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.returncode


def check(steps: int, stops: Sequence[int], workers: Sequence[int], root: Path) -> dict[str, Any]:
    """Compare an uninterrupted run with every combination of stop, worker count and manner."""
    common = ["--steps", str(steps)]
    whole = root / "whole"
    in_new_process(whole, common)
    expected = final_state(whole)
    compared, first = 0, None
    for count in workers:
        for number, stop in enumerate(stops):
            manner = ["--signal"] if number % 2 else []
            folder = root / f"stop{stop}-workers{count}"
            arguments = [*common, "--workers", str(count)]
            code = in_new_process(folder, [*arguments, "--stops", str(stop), *manner])
            assert code != 0, f"the run that should stop after {stop} went to its end"
            in_new_process(folder, arguments)
            compared += 1
            for name in differences(expected, final_state(folder)):
                first = first or f"{name} after a stop at {stop} with {count} workers"
    return {
        "bitwise_equal": first is None,
        "first_difference": first,
        "steps": steps,
        "stops": list(stops),
        "workers": list(workers),
        "runs_compared": compared,
        "values_compared": len(expected),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run the whole check, or one leg of it."""
    parser = argparse.ArgumentParser(description="Does a stopped run go on bit for bit?")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--stops", default="1,7,20,39", help="steps, or 'all'")
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--signal", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--leg", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.leg is not None:
        stop = int(given.stops) if given.stops.isdigit() else None
        workers = int(given.workers) if given.workers.isdigit() else 0
        return run(given.leg, given.steps, workers, stop, politely=given.signal)
    stops = range(1, given.steps) if given.stops == "all" else map(int, given.stops.split(","))
    workers = [int(count) for count in given.workers.split(",")]
    with tempfile.TemporaryDirectory() as root:
        result = check(given.steps, list(stops), workers, Path(root))
    print(json.dumps(result))
    return 0 if result["bitwise_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
