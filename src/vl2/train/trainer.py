"""The training loop: one for every stage, watched, resumable, safe to kill.

A step is: take a batch, compute gradients, judge them, move (or throw the step away), log, and
keep the state where it is due. Everything that decides the next step is in the state.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vl2.checkpoint.dcp import CheckpointStore
from vl2.data.collate import TrainBatch
from vl2.failure import WorkError
from vl2.logs import get_logger
from vl2.model.quantized import quantized_buffers
from vl2.train.config import CheckpointConfig, GuardConfig
from vl2.train.guard import StepGuard
from vl2.train.metrics import MetricsLog, SilentMetrics, batch_size, tile_figures
from vl2.train.optim import Optimizers
from vl2.train.quarantine import Quarantine
from vl2.train.resume import check_same
from vl2.train.task import StepReport, Task

log = get_logger(__name__)

STOPPED = 75
"""Exit code of a run that was asked to stop and saved its state: start it again to resume."""

STOP_SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGTERM", "SIGUSR1", "SIGINT"))
"""Signals that ask a run to stop, as far as the platform has them: Windows has no SIGUSR1."""

Steps = Iterator[Sequence[TrainBatch]]


@runtime_checkable
class Loader(Protocol):
    """Where batches come from: an endless, reproducible stream with a small state."""

    def __iter__(self) -> Steps:
        """The micro batches of each step, from the state on."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON form of what has been consumed."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after the batches that `state` had consumed."""
        ...

    def close(self) -> None:
        """End the workers; iterating again starts them anew."""
        ...


class TrainingStopped(Exception):
    """A signal asked the run to end; its state is kept."""


class Trainer:
    """Runs `steps` steps of a task."""

    def __init__(
        self,
        task: Task,
        loader: Loader,
        optimizers: Optimizers,
        store: CheckpointStore,
        metrics: MetricsLog | SilentMetrics,
        *,
        guard: GuardConfig,
        checkpoint: CheckpointConfig,
        fingerprint: dict[str, Any] | None = None,
    ) -> None:
        """Put the parts together; nothing is read or written yet.

        Args:
            task: computes gradients; its module's trained parameters and buffers are the state.
            loader: gives the batches.
            optimizers: move the parameters, on all ranks that train together. These see the same
                figures, so that they decide alike.
            store: keeps the state.
            metrics: shows what happens.
            guard: when a step is thrown away.
            checkpoint: when the state is kept.
            fingerprint: what a saved state must agree with to be resumed, see `check_same`.
        """
        self.task, self.loader, self.optimizers = task, loader, optimizers
        self.ranks = optimizers.ranks
        self.store, self.metrics = store, metrics
        self.steps = metrics.steps
        self.guard, self.checkpoint = StepGuard(guard, self.steps), checkpoint
        self.fingerprint = fingerprint or {}
        self.on_start: Callable[[], None] | None = None
        """Called when the kept state is loaded, or there is none: nothing was written before."""
        self.step = 0
        self.quarantine = Quarantine(store.root.parent / "quarantine.jsonl")
        self._stop_signal: int | None = None
        self._kept: int | None = None  # the step whose state the store has, or is about to have
        self._due = False  # a state is to be kept as soon as the last step was a good one

    def run(self) -> None:
        """Train to the last step, from the newest valid state if there is one.

        Raises:
            TrainingStopped: SIGTERM, SIGUSR1 or Ctrl-C came; the state was kept at a step's end.
            ValueError: a kept state is of another run.
            WorkError: the loss cannot be brought back to sense, or the disk is full.
        """
        self._resume()
        if self.on_start is not None:
            self.on_start()
        self.task.module.train()
        self.metrics.start(self.step)
        handlers = self._listen()
        try:
            self._loop()
            self.ranks.pulse.at(self.step, "saving")
            self.store.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.metrics.close()
            self.loader.close()
            self.task.module.eval()

    def _loop(self) -> None:
        batches = iter(self.loader)
        while self.step < self.steps:
            started = time.monotonic()
            self.ranks.pulse.at(self.step, "waiting for data")
            batch = next(batches)
            waited = time.monotonic() - started
            if not self._take(batch, started, waited):
                batches = iter(self.loader)
            # After bad steps the state is suspect: the streak ends first, or the run goes back.
            if not self.guard.in_a_row and (stop := self._asked_to_stop()) is not None:
                self._keep(asynchronous=False)
                raise TrainingStopped(
                    f"stopped by signal {stop} at step {self.step} of {self.steps}; "
                    "the state is saved: rerun the same command to resume"
                )

    def _asked_to_stop(self) -> int | None:
        """The signal that came to any rank; all ranks stop after the same step."""
        return int(self.ranks.most(torch.tensor(self._stop_signal or 0))) or None

    def _take(self, batch: Sequence[TrainBatch], started: float, waited: float) -> bool:
        """One step; False when the run went back and the loader must be asked anew."""
        self.ranks.pulse.at(self.step, "computing")
        rate = self.optimizers.set_rates(self.step)
        report, norm, reason = self._compute(batch)
        if reason is not None:
            self.task.discard()
            self.optimizers.zero_grad()
            self.quarantine.add(self.step, reason, batch)
            log.error("step %d is skipped: %s", self.step + 1, reason)
            if self.guard.must_roll_back:
                self._roll_back(f"{self.guard.in_a_row} bad steps in a row")
                return False
            if self.step + 1 == self.steps:  # no run ends with it: the next batch takes its place
                return True
        else:
            self.optimizers.step()
            self.optimizers.zero_grad()
            self.task.after_step()
        self.step += 1
        values = {"loss": report.loss, "grad_norm": norm, "lr": rate, **report.values}
        values |= {} if self.ranks.is_alone else tile_figures(batch)
        values = values if reason is None else {"thrown_away": 1.0}
        sizes = self._all_sizes(batch)
        self.metrics.add(self.step, values, sizes, started=started, waited=waited)
        self._due |= self.step % self.checkpoint.every == 0 or self.step == self.steps
        if not self._due or self.guard.in_a_row:
            return True
        return self._keep(asynchronous=self.checkpoint.asynchronous)

    def _keep(self, *, asynchronous: bool) -> bool:
        """Keep the state; False when it is broken and the run went back instead."""
        if self._is_finite():
            self._save(asynchronous=asynchronous)
            return True
        self._roll_back("parameters that are not finite")
        return False

    def _is_finite(self) -> bool:
        """Whether every number that trains is finite, on all ranks: no other state is saved."""
        trained = (p for p in self.task.module.parameters() if p.requires_grad)
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in trained)
        bad = sum(not bool(torch.isfinite(part).all()) for part in parts)
        return not int(self.ranks.most(torch.tensor(bad)))

    def _all_sizes(self, batch: Sequence[TrainBatch]) -> dict[str, int]:
        """Tokens, pictures and tiles of the step on all ranks."""
        own = batch_size(batch)
        return dict(
            zip(own, self.ranks.total(torch.tensor(list(own.values()))).tolist(), strict=True)
        )

    def _compute(self, batch: Sequence[TrainBatch]) -> tuple[StepReport, float, str | None]:
        """Gradients and the guard's verdict.

        A result that is not finite is computed once more: when the second is fine, the fault was
        the machine's and not the data's.
        """
        report = self.task.accumulate(batch)
        norm = float(self.optimizers.clip())
        if not np.isfinite(report.loss + norm):
            self.optimizers.zero_grad()
            again = self.task.accumulate(batch)
            second = float(self.optimizers.clip())
            if np.isfinite(again.loss + second):
                log.error("step %d was not finite, but is finite when repeated", self.step + 1)
                report, norm = again, second
        return report, norm, self.guard.judge(report.loss, norm)

    def _roll_back(self, why: str) -> None:
        """Go back to the last saved state, and continue after the batches that were bad."""
        bad = self.loader.state()
        if not self.guard.rolled_back():
            raise WorkError(
                f"{self.guard.rollbacks} times {why}, the last at step {self.step + 1}: lower "
                f"optim.learning_rate, or look at the samples in {self.quarantine.path}"
            )
        found = self.store.newest()
        if found is None:
            raise WorkError(
                f"{why} at step {self.step + 1} and no saved state to go back to: lower "
                "optim.learning_rate or checkpoint.every, or look at the samples in "
                f"{self.quarantine.path}"
            )
        extra = self.store.load(found, self._tensors(), subset=self._holds_a_part)
        self.step = self._kept = extra["step"]
        self.store.discard_after(self.step)
        self._due = False
        self.loader.restore(bad)
        self.metrics.restore(extra["metrics"])
        self.metrics.start(self.step)
        log.error("went back to step %d; the batches since are skipped", self.step)

    def _resume(self) -> None:
        found = self.store.newest()
        if found is None:
            return
        self.ranks.together(lambda: check_same(found, self.fingerprint))
        tensors = self._tensors()
        extra = self.store.load(found, tensors, subset=self._holds_a_part)
        self.step = self._kept = extra["step"]
        self.loader.restore(extra["loader"])
        self.guard.restore(extra["guard"])
        self.metrics.restore(extra["metrics"])
        _restore_rng(extra["rng"], tensors["rng.torch"])
        log.info("resuming after step %d of %d", self.step, self.steps)

    def _save(self, *, asynchronous: bool) -> None:
        self.ranks.pulse.at(self.step, "saving")
        if self.step == self._kept:
            self.store.wait()
            return
        extra = {
            "step": self.step,
            "loader": self.loader.state(),
            "guard": self.guard.state(),
            "metrics": self.metrics.state(),
            "rng": _rng_state(),
            "fingerprint": self.fingerprint,
        }
        self.store.save(self.step, self._tensors(), extra, asynchronous=asynchronous)
        self._kept, self._due = self.step, False

    @property
    def _holds_a_part(self) -> bool:
        """Whether the state has tensors of other ranks' layers too."""
        return self.ranks.layout.pipeline > 1

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that training changes: trained parameters, buffers, moments, RNG."""
        state = model_state(self.task.module)
        # Moments are kept before their first gradient: a run may stop before its first picture.
        return {**state, **self.optimizers.template(), "rng.torch": torch.get_rng_state()}

    def _listen(self) -> dict[int, Any]:
        """Remember a request to stop until the step's end; returns the handlers before."""

        def note(number: int, _frame: object) -> None:
            if number == signal.SIGINT and self._stop_signal is not None:
                raise KeyboardInterrupt  # asked a second time: not even to the step's end
            self._stop_signal = number

        return {n: signal.signal(n, note) for n in STOP_SIGNALS}


def model_state(module: nn.Module) -> dict[str, Tensor]:
    """What training changes in a module: its trained parameters, and buffers but frozen weights."""
    trained = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    held = quantized_buffers(module)
    buffers = {n: b for n, b in module.named_buffers() if n not in held}
    found = {**trained, **buffers}
    return {f"model.{name}": tensor for name, tensor in found.items()}


def seed_all(seed: int) -> None:
    """Start every generator that a run keeps: Python's, numpy's and torch's."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the legacy state is what other code may draw from
    torch.manual_seed(seed)


def _rng_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), cached],
    }


def _restore_rng(state: dict[str, Any], torch_state: Tensor) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(torch_state)
