"""Experts of many tokens as batched products over rows padded to one capacity, to train on AMX.

On such a CPU bfloat16 products of a few hundred rows, one expert after the other, reach a third of
what one batched product does; and each product of a shape not seen before costs milliseconds and
keeps memory. The capacity is therefore one of few sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vl2.ops.batched_experts import batched_swiglu
from vl2.ops.groups import sort_by_expert
from vl2.ops.moe import ExpertChange, Routing, combine_experts
from vl2.ops.row_sizes import next_size


def pads_experts(x: Float[Tensor, "n h"]) -> bool:
    """Whether `padded_expert_mlp` is the way to go: training in bfloat16 on a CPU with AMX."""
    trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    wanted = trains and x.device.type == "cpu" and x.dtype == torch.bfloat16
    return wanted and torch.cpu._is_amx_tile_supported()


def padded_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """As `expert_mlp`; the twin of both is `expert_mlp_ref`.

    Rows that fill up are zeros: they add nothing to any gradient.
    """
    total, k = len(gate), routing.experts.shape[1]
    order, counts = sort_by_expert(routing.experts, total)
    room = next_size(int(counts.max()))
    places = torch.empty_like(order).scatter_(0, order, _places(counts, room))  # of each choice
    copies = x[:, None].expand(-1, k, -1).flatten(0, 1)
    padded = x.new_zeros(total * room, x.shape[1]).index_copy(0, places, copies)
    changes = change or (None, None, None)
    out = batched_swiglu(padded.unflatten(0, (total, room)), [gate, up, down], changes)
    out = _PickedOnce.apply(out.flatten(0, 1), places)
    return combine_experts(out, None, routing.weights).to(x.dtype)


class _PickedOnce(torch.autograd.Function):
    """Rows of x, each at most once: the gradient is a copy, where that of an index adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x[places]

    @staticmethod
    def backward(ctx: Any, *changes: Tensor) -> tuple[Tensor, None]:
        [places], [change] = ctx.saved_tensors, changes
        return change.new_zeros(ctx.rows, change.shape[1]).index_copy_(0, places, change), None


def _places(counts: Int[Tensor, " e"], room: int) -> Int[Tensor, " m"]:
    """Where each of the rows that are sorted by expert goes: `room` places an expert."""
    ends = counts.cumsum(0)
    rows = torch.arange(int(ends[-1]), device=counts.device)
    expert = torch.repeat_interleave(counts)
    return expert * room + rows - (ends - counts)[expert]
