"""Optimisers, what they train, and the learning rate over the steps of a stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from vl2.parallel.gradients import clip_gradients, mesh_of
from vl2.parallel.mesh import ALONE, Ranks
from vl2.train.adamw import Bfloat16AdamW, fresh_state
from vl2.train.config import OptimConfig
from vl2.train.muon import Muon

OUTER = ("embed", "lm_head", "heads.", "attn_pool")
"""Parts of names of embeddings and head, which Muon leaves to AdamW."""
NEVER = ("vision.attn_pool",)
"""The tower's pool head is kept for its keys and never run: it gets no gradient."""


def freeze(module: nn.Module, trained: Iterable[str]) -> list[str]:
    """Let only parameters whose names start with one of `trained` learn; returns their names.

    Raises:
        ValueError: nothing would train.
    """
    prefixes = tuple(trained)
    names = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) and not name.startswith(NEVER))
        if parameter.requires_grad:
            names.append(name)
    if not names:
        raise ValueError(f"no parameter starts with {prefixes}: nothing would train")
    return names


def learning_rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0) of `steps`.

    After the warm-up: `cosine` falls to `floor`, `step` divides by sqrt(10) at 50 % and again at
    75 % of the steps (paper, table 2), `constant` stays and falls to `floor` in a straight line in
    its last `decay` steps.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    length = config.horizon or steps
    if config.schedule == "constant":
        left = min(1.0, max(0, length - step) / config.decay) if config.decay else 1.0
        return config.floor + (1 - config.floor) * left
    if config.schedule == "step":
        falls = (step >= 0.5 * length) + (step >= 0.75 * length)
        return 10 ** (-0.5 * falls)
    progress = min(1.0, (step - config.warmup) / max(1, length - config.warmup))
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(module: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything that trains, or Muon for the matrices inside the network beside it.

    Of AdamW's share only matrices outside the embeddings decay. The vision tower has its own
    learning rate. Routers' correction biases are buffers and in no optimiser.
    """
    muon: dict[bool, list[nn.Parameter]] = {}
    adam: dict[tuple[bool, bool, DeviceMesh | None], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        vision, outer = name.startswith("vision"), any(part in name for part in OUTER)
        if config.optimizer == "muon" and parameter.ndim in (2, 3) and not outer:
            muon.setdefault(vision, []).append(parameter)
        else:
            decays = parameter.ndim > 1 and "embed" not in name
            adam.setdefault((vision, decays, mesh_of(parameter)), []).append(parameter)

    def rate(vision: bool) -> float:
        return config.learning_rate * (config.vision_scale if vision else 1.0)

    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        groups = [{"params": p, "lr": rate(vision)} for vision, p in muon.items()]
        optimizers.append(Muon(groups, lr=0.0, weight_decay=config.weight_decay))
    if adam:
        groups = [
            {
                "params": parameters,
                "lr": rate(vision),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (vision, decays, _), parameters in adam.items()
        ]
        common = {"betas": config.betas, "eps": config.eps}
        optimizers.append(
            Bfloat16AdamW(groups, **common)
            if config.moments == "bfloat16"
            else torch.optim.AdamW(groups, **common, fused=True)
        )
    return optimizers


class Optimizers:
    """All optimisers of a run as one: learning rates by step, state by parameter name."""

    def __init__(
        self, module: nn.Module, config: OptimConfig, steps: int, ranks: Ranks = ALONE
    ) -> None:
        self.config, self.steps, self.ranks = config, steps, ranks
        self.parts = make_optimizers(module, config)
        self.base_rates = [group["lr"] for group in self._groups()]
        self.names: dict[Tensor, str] = {
            p: name for name, p in module.named_parameters() if p.requires_grad
        }

    def set_rates(self, step: int) -> float:
        """Set the learning rates of `step`; returns that of the language model's side."""
        factor = learning_rate_factor(self.config, step, self.steps)
        for group, rate in zip(self._groups(), self.base_rates, strict=True):
            group["lr"] = rate * factor
        return self.config.learning_rate * factor

    def clip(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; returns the norm before."""
        return clip_gradients(self.names, self.config.clip, self.ranks)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and counters as `optim.<parameter>.<moment>`."""
        found = {}
        for part in self.parts:
            for parameter, moments in part.state.items():
                for key, value in moments.items():
                    found[f"optim.{self.names[parameter]}.{key}"] = value
        return found

    def template(self) -> dict[str, Tensor]:
        """Empty tensors for every moment that `state` will hold after a step, to be loaded into."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    self._open(part, parameter)
        return self.state()

    def _open(self, part: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
        if part.state[parameter]:
            return
        if isinstance(part, Muon):
            part.state[parameter]["momentum"] = torch.zeros_like(parameter)
            return
        compact = isinstance(part, Bfloat16AdamW)
        dtype = torch.bfloat16 if compact else parameter.dtype
        part.state[parameter].update(fresh_state(parameter, dtype))

    def _groups(self) -> Sequence[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]
