"""A plain single-process training loop: stages as data, resumable, the same for the same seed."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vl2.logs import get_logger
from vl2.train.muon import Muon

log = get_logger(__name__)

Batch = dict[str, Tensor]

OUTER = ("embed", "lm_head", "heads.", "attn_pool")
"""Parts of names that mark the ends of a network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage as data: what trains, for how long, how fast."""

    name: str
    steps: int
    learning_rate: float
    trained: tuple[str, ...]  # parameter name prefixes; everything else is frozen
    vision_scale: float = 1.0  # learning rate of the vision tower relative to the rest
    schedule: str = "cosine"  # "cosine" to a tenth, or "constant", both behind the warm-up
    horizon: int | None = None  # steps of a whole cosine, when the stage ends before it does
    warmup: int = 100
    bias_step: float = 0.0  # of the routers' loss-free balancing
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step function returns."""

    loss: Tensor  # what is minimised
    report: dict[str, float]  # what is logged
    after: Callable[[], None] | None = None  # run behind the optimiser step


StepFunction = Callable[[Batch], StepResult]


def learning_rate_factor(stage: Stage, step: int) -> float:
    """Share of the learning rate at `step`, from 0."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    if stage.schedule == "constant":
        return 1.0
    length = stage.horizon or stage.steps
    progress = (step - stage.warmup) / max(1, length - stage.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def freeze(module: nn.Module, trained: Iterable[str]) -> list[str]:
    """Let only parameters whose names start with one of `trained` learn; returns their names.

    Raises:
        ValueError: nothing would train.
    """
    prefixes = tuple(trained)
    names = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if parameter.requires_grad:
            names.append(name)
    if not names:
        raise ValueError(f"no parameter starts with {prefixes}: nothing would train")
    return names


def make_optimizers(module: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW (0.9, 0.95) for everything else.

    Embeddings and output heads are AdamW's, as Muon's authors advise; of AdamW's share only
    matrices decay. The vision tower has its own learning rate.
    """
    muon: dict[bool, list[nn.Parameter]] = {}
    adam: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        vision, outer = name.startswith("vision"), any(part in name for part in OUTER)
        if parameter.ndim in (2, 3) and not outer:
            muon.setdefault(vision, []).append(parameter)
        else:
            decays = parameter.ndim > 1 and "embed" not in name
            adam.setdefault((vision, decays), []).append(parameter)

    def rate(vision: bool) -> float:
        return stage.learning_rate * (stage.vision_scale if vision else 1.0)

    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        groups = [{"params": p, "lr": rate(vision)} for vision, p in muon.items()]
        optimizers.append(Muon(groups, lr=0.0, weight_decay=stage.weight_decay))
    if adam:
        groups = [
            {
                "params": parameters,
                "lr": rate(vision),
                "weight_decay": stage.weight_decay if decays else 0.0,
            }
            for (vision, decays), parameters in adam.items()
        ]
        optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True))
    return optimizers


def train_stage(
    module: nn.Module, stage: Stage, batches: Iterator[Batch], step: StepFunction, folder: Path
) -> None:
    """Train `module` through `stage`, or go on where a checkpoint in `folder` stopped.

    Args:
        module: holds all parameters; names decide what is frozen.
        stage: what to do.
        batches: endless and reproducible; a resumed run skips what it has seen.
        step: loss of one batch.
        folder: gets `<stage>.pt` (checkpoint) and a line per 20 steps in `metrics.jsonl`.
    """
    names = freeze(module, stage.trained)
    state = {k: v for k, v in module.state_dict().items() if k.startswith(stage.trained)}
    log.info("%s: %d tensors train for %d steps", stage.name, len(names), stage.steps)
    optimizers = make_optimizers(module, stage)
    base_rates = [group["lr"] for group in _groups(optimizers)]
    done = _restore(state, optimizers, folder / f"{stage.name}.pt")
    if done >= stage.steps:
        return
    module.train()
    started, smooth = time.monotonic(), {}
    for index, batch in enumerate(itertools.islice(batches, done, stage.steps), start=done):
        for group, rate in zip(_groups(optimizers), base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(stage, index)
        result = step(batch)
        result.loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), stage.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if result.after is not None:
            result.after()
        smooth = _smoothed(smooth, result.report)
        if (index + 1) % 20 == 0:
            _report(folder, stage, index + 1, smooth, time.monotonic() - started)
        if (index + 1) % 200 == 0 or index + 1 == stage.steps:
            _save(state, optimizers, index + 1, folder / f"{stage.name}.pt")
    module.eval()


def _groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """All parameter groups; read anew because loading a state replaces them."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _smoothed(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    return {**old, **{k: 0.95 * old.get(k, v) + 0.05 * v for k, v in new.items()}}


def _report(folder: Path, stage: Stage, step: int, values: dict[str, float], spent: float) -> None:
    line = {"stage": stage.name, "step": step, "seconds": round(spent, 1)}
    line.update({name: round(value, 4) for name, value in values.items()})
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    log.info("%s", " ".join(f"{k}={v}" for k, v in line.items()))


def _save(
    state: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], step: int, path: Path
) -> None:
    """Write aside, then rename: a killed run never leaves half a checkpoint.

    Only what the stage trains is written, so stages of different parts do not depend on order.
    """
    moments = [optimizer.state_dict() for optimizer in optimizers]
    saved = {"state": state, "optimizers": moments, "step": step}
    unfinished = path.with_suffix(".part")
    torch.save(saved, unfinished)
    unfinished.rename(path)


def _restore(
    state: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], path: Path
) -> int:
    """Steps that the checkpoint has behind it, after copying it into `state`; 0 without one."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, tensor in state.items():
        tensor.copy_(saved["state"][name])
    for optimizer, moments in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    log.info("%s: goes on at step %d", path.stem, saved["step"])
    return saved["step"]
