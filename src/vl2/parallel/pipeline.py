"""A step of training over the stages of a pipeline (torch.distributed.pipelining).

Every rank of a pipeline is given the same micro batches; only activations travel: patch features
of all tiles of a micro batch inside the vision tower, hidden states after it. Two strategies, as
in the paper (section 4.1): a step with pictures runs all stages; in a step of text alone the vision
tower rests. Its stages then hand on an empty message, and its parameters get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from vl2.model.vl2 import VL2Model
from vl2.ops.loss import token_losses
from vl2.ops.moe import Routing, balance_loss
from vl2.ops.transfer import send
from vl2.parallel.config import Schedule
from vl2.parallel.pipeline_batch import MicroBatch, pad_micro_batches
from vl2.parallel.pipeline_stage import (
    add_gradient,
    arrange_unit,
    embed,
    head_unit,
    replace,
    run_tower,
)

SCHEDULES: dict[str, type[Schedule1F1B | ScheduleGPipe]] = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
}
CONTEXT = ("attention_mask", "position_ids", "segment_ids")

Observe = Callable[[Sequence[Routing], Tensor, Tensor | None], None]
"""Called for each micro batch with the stage's routings, which tokens are real, and which stand for
a picture (None: none does)."""


class PipelineStep(NamedTuple):
    """Results of a step."""

    loss: float  # sum over the supervised tokens of this pipeline's micro batches, on all stages
    balance_loss: float  # share of this pipeline, all layers, on all stages
    token_losses: tuple[Tensor, ...]  # by micro batch, as `ops.loss.token_losses`; last stage only


class _Shape(NamedTuple):
    """The shape of a step that a schedule is made for."""

    micro_batches: int
    rows: int
    length: int
    tiles: int  # 0: no stage sees pictures


@dataclass(kw_only=True, slots=True)
class _Step:
    """A step that is running."""

    micro: Sequence[MicroBatch]
    tokens: int
    rows: int
    balance_scale: float
    observe: Observe | None
    losses: list[Tensor] = field(default_factory=list)
    balance: list[Tensor] = field(default_factory=list)


class Pipeline:
    """Runs one stage of a model, in step with the other ranks of the pipeline.

    The model's `forward` becomes the stage's: it can no longer be called by itself. Gradients add
    up in the parameters, as after `backward`.
    """

    def __init__(
        self,
        model: VL2Model,
        mesh: DeviceMesh,
        units: range,
        *,
        schedule: Schedule = "1f1b",
        autocast: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take over a stage; all ranks of the pipeline do so together.

        Args:
            model: cut to `units` by `keep_units`, on its device, frozen where it is to be frozen.
            mesh: the ranks of this pipeline, one dimension, a stage each.
            units: of this stage, see `split_points`.
            schedule: 1f1b keeps the activations of few micro batches, gpipe of all.
            autocast: compute products in bfloat16.
            dtype: of the activations that travel, alike on all ranks; None takes the parameters'.
        """
        self.model, self.units, self.autocast = model, units, autocast
        first = next(model.parameters())
        self.device, self.dtype = first.device, dtype or first.dtype
        self.group, self.schedule = mesh.get_group(), schedule
        self.stage, self.stages = mesh.get_local_rank(), mesh.size()
        self._trains = self._gather_trained()
        self._arrange = arrange_unit(model.config)
        self._ends = head_unit(model.config) in units
        self._shape: _Shape | None = None
        self._runner: Schedule1F1B | ScheduleGPipe | None = None
        self._step: _Step | None = None
        replace(model, "forward", self._forward)

    def step(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        *,
        tokens: int,
        rows: int,
        balance_scale: float = 1.0,
        pictures: bool = False,
        observe: Observe | None = None,
    ) -> PipelineStep:
        """Forward and backward of all micro batches of a step.

        The gradient is that of the summed token losses / `tokens` + the balance losses, weighted
        by the micro batch's rows / `rows`.

        Args:
            batches: the model's arguments for each micro batch; see `pad_micro_batches`.
            tokens: supervised tokens of the step on all data-parallel ranks together, at least 1.
            rows: rows of the step on all of them.
            balance_scale: factor of the balance loss.
            pictures: whether any data-parallel rank has a picture in this step.
            observe: is told of the routings of this stage's layers.

        Raises:
            ValueError: fewer micro batches than stages with 1f1b, micro batches that differ between
                the ranks of the pipeline, or what `pad_micro_batches` refuses.
        """
        if self.schedule == "1f1b" and len(batches) < self.stages:
            raise ValueError(
                f"{len(batches)} micro batches in a step for {self.stages} pipeline stages: 1f1b "
                "needs one for each, lower data.micro_batch or set parallel.schedule=gpipe"
            )
        micro = pad_micro_batches(batches, self.model.config, pictures=pictures)
        self._require_same(micro)
        step = _Step(
            micro=micro, tokens=tokens, rows=rows, balance_scale=balance_scale, observe=observe
        )
        runner, numbers = self._prepared(_shape(micro)), torch.arange(len(micro))
        self._step = step
        try:
            runner.step(
                number=numbers, target=numbers if self._ends else None, return_outputs=False
            )
        finally:
            self._step = None
        return self._result(step)

    def _forward(self, x: Tensor | None = None, *, number: Tensor) -> Tensor:
        """The stage's units on one micro batch: what the next stage needs, or the loss's share."""
        step = self._step
        assert step is not None
        micro = step.micro[int(number)]
        with self._precision():
            if self.units.start <= self._arrange:
                x = self._enter(x, micro)
            assert x is not None
            if self.units.stop <= self._arrange:
                return x
            return self._language(x, micro, step)

    def _enter(self, x: Tensor | None, micro: MicroBatch) -> Tensor:
        """The stage's part of vision tower and adaptor."""
        features = None
        if micro.tiles:
            features = run_tower(self.model, self.units, x, micro)
        if self._arrange in self.units:
            features = embed(self.model, features, micro)
        elif features is None:
            return torch.zeros(1, device=self.device)
        return features.to(self.dtype).contiguous()

    def _language(self, x: Tensor, micro: MicroBatch, step: _Step) -> Tensor:
        tensors = {k: send(v, self.device) for k, v in micro.tensors.items() if k != "labels"}
        context = {name: tensors[name] for name in CONTEXT if name in tensors}
        out = self.model.language(x, **context)
        real = tensors["attention_mask"].bool()
        hidden = out.hidden
        if out.routing:
            config = self.model.config.language_config
            penalty = torch.stack([balance_loss(r, real, config) for r in out.routing]).sum()
            share = penalty * (step.balance_scale * len(real) / step.rows)
            step.balance.append(share.detach())
            hidden = add_gradient(hidden, share)
            if step.observe is not None:
                step.observe(out.routing, real, tensors.get("images_seq_mask"))
        if not self._ends:
            return hidden.to(self.dtype).contiguous()
        losses = token_losses(hidden, self.model.language.lm_head.weight, micro.tensors["labels"])
        step.losses.append(losses.detach())
        return losses.sum() / step.tokens

    def _prepared(self, shape: _Shape) -> Schedule1F1B | ScheduleGPipe:
        """The schedule for this shape; that of the last step if it is the same.

        All shapes are known beforehand, which saves PyTorch a trial run.
        """
        if self._runner is None or shape != self._shape:
            stage = PipelineStage(
                self.model,
                self.stage,
                self.stages,
                self.device,
                input_args=self._message(shape, self.units.start, self.stage),
                output_args=self._message(shape, self.units.stop, self.stage + 1),
                group=self.group,
            )
            kind = SCHEDULES[self.schedule]
            self._runner = kind(stage, shape.micro_batches, loss_fn=_as_it_is, scale_grads=False)
            self._shape = shape
        return self._runner

    def _message(self, shape: _Shape, unit: int, stages: int) -> tuple[Tensor, ...]:
        """What the first `stages` stages send to a unit: shape, dtype and gradient."""
        if unit == 0:
            return ()
        vision, language = self._trains[:stages].any(dim=0).tolist()
        if unit > head_unit(self.model.config):
            size, trains = (), language or vision
        elif unit > self._arrange:
            size = (shape.rows, shape.length, self.model.config.language_config.hidden_size)
            trains = language or (vision and shape.tiles > 0)
        elif shape.tiles:
            vision_config = self.model.config.vision_config
            size = (shape.tiles, vision_config.patches_per_side**2, vision_config.width)
            trains = vision
        else:
            return (torch.empty(1, device="meta"),)
        dtype = self.dtype if size else torch.float32
        return (torch.empty(size, dtype=dtype, device="meta", requires_grad=trains),)

    def _gather_trained(self) -> Tensor:
        """For each stage: whether it trains something of the vision side, and of the language."""
        own = torch.zeros(2, dtype=torch.int32)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                own[int(name.startswith("language."))] = 1
        found = torch.zeros(self.stages, 2, dtype=torch.int32, device=self.device)
        found[self.stage] = own.to(self.device)
        dist.all_reduce(found, group=self.group)
        return found.cpu().bool()

    def _require_same(self, micro: Sequence[MicroBatch]) -> None:
        """Other micro batches on another rank would hang the step, or spoil it in silence."""
        ids = sum(int(m.tensors["input_ids"].sum()) for m in micro)
        own = torch.tensor([*_shape(micro), ids], device=self.device)
        ends = torch.cat((own, -own))
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self.group)
        most, least = ends.chunk(2)
        if not torch.equal(most, -least):
            raise ValueError(
                "the ranks of a pipeline got different micro batches (from "
                f"{(-least).tolist()} to {most.tolist()}): give all of them the same data rank"
            )

    def _result(self, step: _Step) -> PipelineStep:
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for place, parts in enumerate((step.losses, step.balance)):
            for part in parts:
                sums[place] += part.sum()
        dist.all_reduce(sums, group=self.group)
        loss, balance = sums.tolist()
        return PipelineStep(loss, balance, tuple(step.losses))

    def _precision(self) -> AbstractContextManager:
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext()


def _shape(micro: Sequence[MicroBatch]) -> _Shape:
    rows, length = micro[0].tensors["input_ids"].shape
    return _Shape(len(micro), rows, length, micro[0].tiles)


def _as_it_is(output: Tensor, _target: Tensor) -> Tensor:
    return output
