"""Parameters, gradients and moments in parts, one part per rank (FSDP2, `fully_shard`).

Gradients are added up over the ranks and not averaged: each rank's loss is its share of the mean
over the tokens of all ranks. A block is gathered before it runs and dropped afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from vl2.model.moe import expert_stacks
from vl2.model.vl2 import VL2Model
from vl2.parallel.mesh import Meshes


def shard_parameters(model: VL2Model, meshes: Meshes, *, autocast: bool = False) -> None:
    """Shard every block, layer and stack of experts, and at last what lies around them.

    Args:
        model: its parameters become DTensors.
        meshes: routed experts are sharded over `shard`, everything else over shard x expert.
        autocast: the run multiplies in bfloat16, so experts, which autocast would cast anyway, are
            gathered in it; routers, norms and the rest stay float32.
    """
    # What a stage hands on may be a view; nothing here changes one in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dense = _axes(meshes.dense)
    for experts in expert_stacks(model):
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if autocast else None,
            reduce_dtype=torch.float32 if autocast else None,
            cast_forward_inputs=False,
        )
        _shard(experts, _axes(meshes.experts), policy)
    for block in _blocks(model):
        _shard(block, dense)
    _shard(model, dense)
    model.embed_inputs = _Embed(model)  # pyright: ignore[reportAttributeAccessIssue]


def _axes(mesh: DeviceMesh) -> DeviceMesh:
    """What FSDP2 shards over; it also replicates when there are copies."""
    return mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None) -> None:
    sharded = fully_shard(
        module,
        mesh=mesh,
        mp_policy=policy or MixedPrecisionPolicy(),
        shard_placement_fn=partial(_placement, parts=mesh["shard"].size()),
    )
    assert isinstance(sharded, FSDPModule)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def _placement(parameter: nn.Parameter, *, parts: int) -> Shard | None:
    """The dimension that a parameter is cut along; None is the first.

    A stack of fewer experts than ranks would be mostly padding: it is cut along the second.
    """
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    stacked = local.ndim == 3 and local.shape[0] % parts and local.shape[1] % parts == 0
    return Shard(1) if stacked else None


def reduce_over_replicas(model: VL2Model, now: bool) -> None:
    """Whether the next backward pass adds up gradients over replicas; once per step is enough."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(now)


def _blocks(model: VL2Model) -> Iterator[nn.Module]:
    """Everything that runs once per forward pass and is worth a gathering of its own."""
    yield from model.vision.blocks
    if model.vision_high is not None:
        yield from model.vision_high.blocks
    yield from model.language.model.layers


class _Embed:
    """`embed_inputs` that runs the tower on a blank tile for a batch of text alone.

    Every rank has to gather and reduce the same parameters, whatever samples it got. The features
    count for nothing. In a step without any picture on any rank the tower rests.
    """

    def __init__(self, model: VL2Model) -> None:
        self.model, self.embed = model, model.embed_inputs
        self.pictures = True

    def __call__(self, input_ids: Tensor, images: Tensor | None = None, *rest: Any) -> Tensor:
        embeds = self.embed(input_ids, images, *rest)
        if images is not None or not self.pictures:  # given images hold a real picture
            return embeds
        return embeds + 0.0 * self._blank().to(embeds.dtype)

    def _blank(self) -> Tensor:
        """One number that depends on every parameter that a picture uses."""
        side, newline = self.model.config.vision_config.image_size, self.model.image_newline
        tiles = torch.zeros(1, 2, 3, side, side, dtype=newline.dtype, device=newline.device)
        grid = torch.ones(1, 1, 2, dtype=torch.int64, device=newline.device)
        return torch.cat(self.model.encode_images(tiles, grid)).sum()


def expect_pictures(model: VL2Model, pictures: bool) -> None:
    """Say whether any rank has a picture in the coming step; a model of one rank need not know."""
    if isinstance(model.embed_inputs, _Embed):
        model.embed_inputs.pictures = pictures
