"""Expert parallelism: each rank keeps some experts of every layer, and tokens travel to them.

A token is copied for each of its k experts. A copy goes to the rank that has the expert and comes
back; weighting and summing stay with the rank that owns the token. For each token of `hidden`
values of `width` bytes (2 under bfloat16 autocast) each MoE layer sends

    2 * k * hidden * width    going forward: one half out (dispatch), one half back (combine)
    2 * k * hidden * width    going backward
    2 * k * hidden * width    once more if the layer is computed again going backward

of which (ep - 1) / ep leaves a rank under even load. Beside it go as many int64 counts as there are
routed experts, from every rank. A rank computes on as many copies as its experts were chosen: the
busiest rank of the mesh sets the pace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from vl2.model.moe import Experts, expert_stacks
from vl2.model.vl2 import VL2Model
from vl2.ops.groups import inverse_permutation, sort_by_expert
from vl2.ops.moe import ExpertChange, LowRank, Routing, combine_experts, expert_swiglu, matmul_dtype


def shard_experts(model: VL2Model, mesh: DeviceMesh) -> None:
    """Deal the routed experts of every layer out to the ranks of a mesh, each rank's contiguous.

    The stacked weights become DTensors, Shard(0) on the mesh, under their names. From then on every
    rank of the mesh has to run the model equally often, forward and backward; how many tokens it
    has is its own affair.

    Args:
        model: the same on every rank, or on the meta device; before recomputing, compiling and
            FSDP.
        mesh: of one dimension.

    Raises:
        ValueError: the model has no routed experts, or their number does not divide.
    """
    assert mesh.ndim == 1, mesh
    ranks, total = mesh.size(), model.config.language_config.n_routed_experts
    if total is None:
        raise ValueError(
            f"parallel.expert is {ranks}, but the model has no routed experts: set it to 1"
        )
    if total % ranks:
        raise ValueError(
            f"{total} routed experts do not divide over parallel.expert {ranks}: "
            f"set it to a divisor of {total}"
        )
    for experts in expert_stacks(model):
        _keep_own(experts, mesh)
        experts.forward = _spread(experts, mesh)


def _keep_own(experts: Experts, mesh: DeviceMesh) -> None:
    """Keep this rank's part of each stack."""
    for name, parameter in list(experts.named_parameters()):
        own = parameter.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
        part = DTensor.from_local(own, mesh, (Shard(0),), run_check=False)
        setattr(experts, name, nn.Parameter(part, requires_grad=parameter.requires_grad))


def _spread(experts: Experts, mesh: DeviceMesh) -> Callable[..., Any]:
    """The forward pass of experts that are spread over the mesh."""
    why = "the compiled backward pass of a grouped matmul fails if no token came"
    return torch.compiler.disable(partial(_forward, experts, mesh), reason=why)


def _forward(
    experts: Experts,
    mesh: DeviceMesh,
    x: Float[Tensor, "n h"],
    routing: Routing,
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """`Experts.forward` with tokens that travel to their experts."""
    dtype = matmul_dtype(x)
    weights = (experts.gate_proj, experts.up_proj, experts.down_proj)
    gate, up, down = (_local(weight).to(dtype) for weight in weights)
    order, counts = sort_by_expert(routing.experts, len(gate) * mesh.size())
    rows = x.to(dtype)[order // routing.experts.shape[1]]
    if torch.is_grad_enabled():
        rows.requires_grad_()  # a rank whose input is frozen joins the others going backward
    came, sent, received = _announce(counts, mesh)
    rows = _exchange(rows, sent, received, mesh)
    out = _own_experts(rows, came, (gate, up, down), _own_change(change, mesh))
    out = _exchange(out, received, sent, mesh)
    return combine_experts(out, order, routing.weights).to(dtype).to(x.dtype)


def _announce(
    counts: Int[Tensor, " e"], mesh: DeviceMesh
) -> tuple[Int[Tensor, "ranks own"], list[int], list[int]]:
    """Copies that come from each rank for each own expert, and rows to send and to receive."""
    ranks = mesh.size()
    own = [len(counts) // ranks] * ranks
    came = _exchange(counts, own, own, mesh).view(ranks, -1)
    sent, received = torch.stack((counts.view_as(came).sum(1), came.sum(1))).tolist()
    return came, sent, received


def _own_experts(
    rows: Float[Tensor, "m h"],
    came: Int[Tensor, "ranks own"],
    weights: tuple[Tensor, Tensor, Tensor],
    change: ExpertChange | None,
) -> Float[Tensor, "m h"]:
    """This rank's experts on the copies that came, which are ordered by rank, then by expert."""
    ranks, own = came.shape
    experts = torch.arange(own, device=rows.device).repeat(ranks)
    experts = experts.repeat_interleave(came.flatten(), output_size=len(rows))  # (M,)
    order, counts = sort_by_expert(experts[:, None], own)
    return expert_swiglu(rows[order], counts, *weights, change)[inverse_permutation(order)]


def _exchange(rows: Tensor, sent: list[int], received: list[int], mesh: DeviceMesh) -> Tensor:
    """Send the first sent[0] rows to the first rank, and so on; what came, in the ranks' order."""
    return all_to_all_single_autograd(rows, received, sent, mesh.get_group())


def _own_change(change: ExpertChange | None, mesh: DeviceMesh) -> ExpertChange | None:
    """The part of a change for this rank's experts; every rank has the whole change."""
    if change is None:
        return None
    ranks, rank = mesh.size(), mesh.get_local_rank()
    return ExpertChange(
        *(LowRank(*(factor.chunk(ranks)[rank] for factor in low)) for low in change)
    )


def _local(weight: Tensor) -> Tensor:
    """This rank's part of a parameter; its gradient becomes the parameter's."""
    assert isinstance(weight, DTensor), type(weight)
    return weight.to_local()
