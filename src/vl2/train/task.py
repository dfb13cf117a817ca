"""What a step computes: gradients of a whole batch, given as micro batches, and what to log.

The trainer knows only this interface, so the same trainer runs the paper's stages and the embedded
model's warm-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vl2.data.collate import TrainBatch
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID, token_losses
from vl2.train.balance import Balancer
from vl2.train.config import BalanceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One step's figures; `loss` is the mean over the batch's supervised tokens."""

    loss: float
    values: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Gradients of a step, and what happens behind the optimiser."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters and buffers that are the state of the run."""
        ...

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Run forward and backward for all micro batches of one step."""
        ...

    def after_step(self) -> None:
        """Called once after the optimiser has moved."""
        ...

    def discard(self) -> None:
        """Called instead when the step is thrown away."""
        ...


class LanguageTask:
    """Next-token loss of a model, the balance loss, and the balancing of its experts."""

    def __init__(self, model: VL2Model, balance: BalanceConfig, *, autocast: bool = False) -> None:
        self.model = model
        self.autocast = autocast
        self.balancer = Balancer(model, balance.bias_step)
        alpha = model.config.language_config.aux_loss_alpha
        self.balance_scale = 1.0
        if balance.loss_weight is not None:
            if not alpha:
                raise ValueError(
                    f"balance.loss_weight is {balance.loss_weight}, but the model's config has "
                    "aux_loss_alpha 0: leave the weight out"
                )
            self.balance_scale = balance.loss_weight / alpha

    @property
    def module(self) -> VL2Model:
        """The model."""
        return self.model

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Mean loss over the supervised tokens of all micro batches together.

        The number of tokens is known before the first forward pass, so each micro batch's share is
        exact: the result does not depend on how the batch is cut.
        """
        self.balancer.reset()
        tokens = max(sum(_targets(b.tensors["labels"]) for b in batches), 1)
        rows = sum(len(b.tensors["input_ids"]) for b in batches)
        # Losses stay on the device to the step's end: reading one makes the host wait. Their sums
        # over micro batches are float64, so that how a batch is cut does not show.
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.image_newline.device)
        sources = _SourceMeans()
        for batch in batches:
            losses, penalty = self._forward(batch)
            share = penalty * (self.balance_scale * len(batch.tensors["input_ids"]) / rows)
            (losses.sum() / tokens + share).backward()
            sums += torch.stack([losses.detach().sum(), share.detach()])
            sources.add(batch, losses.detach())
        total, balance = sums.tolist()
        values = {"balance_loss": balance, **self.balancer.report(), **sources.means()}
        return StepReport(loss=total / tokens, values=values)

    def after_step(self) -> None:
        """Move the routers' biases against the load of this step."""
        self.balancer.update()

    def discard(self) -> None:
        """Nothing moves for a step that is thrown away."""
        self.balancer.reset()

    def _forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Losses of the supervised tokens, and the balance loss."""
        device = self.model.image_newline.device
        tensors = {k: v.to(device, non_blocking=True) for k, v in batch.tensors.items()}
        labels = tensors.pop("labels")
        with self._precision(device):
            out = self.model(**tensors, logits="none")
            head = self.model.language.lm_head.weight
            losses = token_losses(out.language.hidden, head, labels)
        mask = tensors.get("attention_mask")
        real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        self.balancer.observe(out.language.routing, real, tensors.get("images_seq_mask"))
        assert out.balance_loss is not None
        return losses, out.balance_loss

    def _precision(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()


class _SourceMeans:
    """Loss per source, from the sources of the supervised tokens."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.counts: list[Tensor] = []
        self.sums: list[Tensor] = []

    def add(self, batch: TrainBatch, losses: Tensor) -> None:
        """Count one micro batch, whose `losses` go row by row over its targets."""
        if not batch.source_names:
            return
        wanted = batch.tensors["labels"][:, 1:] != IGNORE_ID
        numbers = torch.arange(len(batch.source_names))
        own = batch.source_ids[:, 1:][wanted] == numbers[:, None]  # [sources, targets]
        self.names += batch.source_names
        self.counts.append(own.sum(dim=1))
        # Selecting targets would wait for the device, and adding by index has no fixed order there.
        own = own.to(losses.device, non_blocking=True)
        self.sums.append(torch.where(own, losses, 0.0).sum(dim=1, dtype=torch.float64))

    def means(self) -> dict[str, float]:
        """`loss/<source>` for each source that had a target."""
        totals: dict[str, float] = {}
        targets: dict[str, int] = {}
        if not self.names:
            return {}
        counts, sums = torch.cat(self.counts).tolist(), torch.cat(self.sums).tolist()
        for name, count, total in zip(self.names, counts, sums, strict=True):
            totals[name] = totals.get(name, 0.0) + total
            targets[name] = targets.get(name, 0) + count
        return {f"loss/{name}": totals[name] / n for name, n in targets.items() if n}


def _targets(labels: Tensor) -> int:
    return int((labels[:, 1:] != IGNORE_ID).sum())
