"""What a step computes: gradients of a whole batch, given as micro batches, and what to log.

The trainer knows only this interface, so the same trainer runs the paper's stages and the embedded
model's warm-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from vl2.data.collate import TrainBatch
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID, token_losses
from vl2.ops.moe import Routing
from vl2.ops.transfer import send
from vl2.parallel.fsdp import expect_pictures, reduce_over_replicas
from vl2.parallel.mesh import ALONE, Ranks
from vl2.train.balance import Balancer, loss_scale
from vl2.train.config import BalanceConfig
from vl2.train.working_copy import WorkingCopy

if TYPE_CHECKING:
    from vl2.parallel.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One step's figures; `loss` is the mean over the batch's supervised tokens."""

    loss: float
    values: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Gradients of a step, and what happens after the optimiser has moved."""

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


ON_HOST = ("labels", "images", "images_seq_mask", "images_spatial_crop")
"""Tensors that shapes depend on stay on the host: reading them from a card would make it wait."""


class StepSums(NamedTuple):
    """Sums over the micro batches of a step on this rank, or on this rank's pipeline."""

    loss: float  # sum over the supervised tokens
    balance_loss: float  # this rank's share
    token_losses: tuple[Tensor, ...]  # by micro batch; only where the output head is


class _Done(NamedTuple):
    """Results of one micro batch: losses of its supervised tokens, and routings of its experts."""

    losses: Tensor
    penalty: Tensor
    routing: Sequence[Routing]
    real: Bool[Tensor, "b t"]  # no padding
    pictures: Bool[Tensor, "b t"] | None


class LanguageTask:
    """Next-token loss of a model, the balance loss, and the balancing of its experts."""

    def __init__(
        self,
        model: VL2Model,
        balance: BalanceConfig,
        *,
        autocast: bool = False,
        ranks: Ranks = ALONE,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: of this rank, see `parallelize_vl2`.
            balance: how its experts are kept busy.
            autocast: bfloat16 products; on a CPU with AMX through bfloat16 twins of the whole
                model, see `WorkingCopy`.
            ranks: that share each step.
            pipeline: runs the model if it is a stage.

        Raises:
            ValueError: the balancing does not fit the model.
        """
        self.model = model
        self.twin = (
            WorkingCopy(model) if autocast and ranks.is_alone and _takes_twin(model) else None
        )
        self.autocast = autocast and self.twin is None
        self.ranks, self.pipeline = ranks, pipeline
        self.device = next(model.parameters()).device
        self.balancer = Balancer(model, balance.bias_step, ranks)
        self.balance_scale = loss_scale(balance.loss_weight, model.config.language_config)

    @property
    def module(self) -> VL2Model:
        """The model."""
        return self.model

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Mean loss over the supervised tokens of all micro batches of all ranks together.

        The number of tokens is known before the first forward pass, so each micro batch's share is
        exact: the result depends neither on how the batch is cut nor on how many ranks share it.
        """
        self.balancer.reset()
        if self.twin is not None:
            self.twin.refresh()
        tokens, rows, pictures = self.ranks.total(torch.tensor(_sizes(batches))).tolist()
        tokens = max(tokens, 1)
        expect_pictures(self.model, pictures > 0)
        if self.pipeline is None:
            sums = self._run(batches, tokens, rows)
        else:
            found = self.pipeline.step(
                [batch.tensors for batch in batches],
                tokens=tokens,
                rows=rows,
                balance_scale=self.balance_scale,
                pictures=pictures > 0,
                observe=self.balancer.observe,
            )
            sums = StepSums(*found)
        sources = _SourceMeans(batches[0].source_names, self.device)
        for batch, losses in zip(batches, sums.token_losses, strict=bool(sums.token_losses)):
            sources.add(batch, losses)
        pair = torch.tensor([sums.loss, sums.balance_loss], dtype=torch.float64)
        total, balance = self.ranks.total(pair).tolist()
        self.balancer.gather()
        means = sources.means(self.ranks)
        values = {"balance_loss": balance, **self.balancer.report(), **means}
        return StepReport(loss=total / tokens, values=values)

    def after_step(self) -> None:
        """Move the routers' biases against the load of this step."""
        self.balancer.update()

    def discard(self) -> None:
        """Forget the loads of a step that is thrown away."""
        self.balancer.reset()

    def _run(self, batches: Sequence[TrainBatch], tokens: int, rows: int) -> StepSums:
        """Forward and backward of all micro batches."""

        def work(model: VL2Model, batch: TrainBatch) -> _Done:
            done = self._forward(model, batch)
            share = done.penalty * (self.balance_scale * len(batch.tensors["input_ids"]) / rows)
            loss = done.losses.sum() / tokens + share
            if loss.requires_grad:  # text alone teaches a tower nothing
                loss.backward()
            return done._replace(losses=done.losses.detach(), penalty=share.detach())

        # Losses stay on the device to the step's end: reading one makes the host wait. Their sums
        # over micro batches are float64, so that how a batch is cut does not show.
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        all_losses = []
        for done in self._each(batches, work):
            self.balancer.observe(done.routing, done.real, done.pictures)
            sums += torch.stack([done.losses.sum(), done.penalty])
            all_losses.append(done.losses)
        loss, balance = sums.tolist()
        return StepSums(loss, balance, tuple(all_losses))

    def _each(
        self, batches: Sequence[TrainBatch], work: Callable[[VL2Model, TrainBatch], _Done]
    ) -> Iterator[_Done]:
        """Do the work for each micro batch: several at a time on twins, or one after the other."""
        if self.twin is not None:
            patches = self.model.config.vision_config.patches_per_side**2
            yield from self.twin.run(
                batches, work, lambda b: b.tensors["input_ids"].numel() + patches * b.tiles
            )
            return
        for number, batch in enumerate(batches, start=1):
            reduce_over_replicas(self.model, number == len(batches))
            yield work(self.model, batch)

    def _forward(self, model: VL2Model, batch: TrainBatch) -> _Done:
        """Losses of the supervised tokens, and the balance loss."""
        host = {name: batch.tensors[name] for name in ON_HOST if name in batch.tensors}
        tensors = {k: v if k in host else send(v, self.device) for k, v in batch.tensors.items()}
        labels = tensors.pop("labels")
        with self._precision():
            out = model(**tensors, logits="none")
            head = model.language.lm_head.weight
            losses = token_losses(out.language.hidden, head, labels)
        mask = tensors.get("attention_mask")
        real = torch.ones(labels.shape, dtype=torch.bool, device=self.device)
        real = real if mask is None else mask.bool()
        pictures = host.get("images_seq_mask")
        pictures = pictures if pictures is None else send(pictures, self.device)
        assert out.balance_loss is not None
        return _Done(losses, out.balance_loss, out.language.routing, real, pictures)

    def _precision(self) -> AbstractContextManager:
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext()


def _takes_twin(model: VL2Model) -> bool:
    """Whether the model is on a CPU that multiplies bfloat16 in tiles; compiled blocks stay."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    compiled = any(part._compiled_call_impl is not None for part in model.modules())
    return on_cpu and torch.cpu._is_amx_tile_supported() and not compiled


class _SourceMeans:
    """Loss per source, from the sources of the supervised tokens."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Begin a step; all its micro batches name the same sources."""
        self.names = tuple(names)
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    def add(self, batch: TrainBatch, losses: Tensor) -> None:
        """Count one micro batch, whose `losses` go row by row over its targets."""
        if not self.names:
            return
        assert batch.source_names == self.names, "the micro batches of a step share their sources"
        wanted = batch.tensors["labels"][:, 1:] != IGNORE_ID
        numbers = torch.arange(len(self.names))
        own = batch.source_ids[:, 1:][wanted] == numbers[:, None]  # [sources, targets]
        # Selecting targets would wait for the device, and adding by index has no fixed order there.
        own = own.to(losses.device, non_blocking=True)
        totals = torch.where(own, losses, 0.0).sum(dim=1, dtype=torch.float64)
        self.sums += torch.stack([totals, own.sum(dim=1)])

    def means(self, ranks: Ranks) -> dict[str, float]:
        """`loss/<source>` for each source that had a target on any rank."""
        # Of a pipeline the last stage alone has losses, which are never negative.
        totals, counts = ranks.most(ranks.total(self.sums).cpu()).tolist()
        found = zip(self.names, totals, counts, strict=True)
        return {f"loss/{name}": total / count for name, total, count in found if count}


def _sizes(batches: Sequence[TrainBatch]) -> list[int]:
    """Supervised tokens, rows and pictures of a step on this rank."""
    labels = [batch.tensors["labels"] for batch in batches]
    tokens = sum(int((own[:, 1:] != IGNORE_ID).sum()) for own in labels)
    return [tokens, sum(map(len, labels)), sum("images" in batch.tensors for batch in batches)]
