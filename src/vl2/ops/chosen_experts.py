"""Routed experts on a CPU, in inference: one chosen expert after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.groups import Groups, in_order, split_rows
from vl2.ops.moe import ExpertChange, LowRank, Routing, combine_experts, group_rows
from vl2.ops.native import kernels
from vl2.ops.native.tiles import tile_experts
from vl2.ops.row_sizes import filled_up

COLUMN_ROWS = range(9, 65)
"""Numbers of rows that a CPU multiplies faster as columns: w @ x.T instead of x @ w.T."""


def chosen_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """As `expert_mlp`, one chosen expert after the other: for inference on a CPU.

    The grouped matmul there is a loop, too, but over all experts; and a few dozen rows are
    multiplied a fifth faster as columns. Few tokens that meet weights in bfloat16, and more of them
    in float32, go through C, which reads each weight where it lies. The twin is `expert_mlp_ref`.
    """
    order, groups = group_rows(routing, gate.shape[0])
    if change is None and in_c("experts on tiles", x, gate, up, down):
        out = tile_experts(x, groups, (gate, up, down))
    elif in_c("stored experts", x, gate, up, down):
        both, ordered = kernels.wide_linear(x, (gate, up), groups=groups), in_order(groups)
        if change is not None:
            parts = [_low_ranks(x, low, groups) for low in (change.gate, change.up)]
            both = both + torch.cat(parts, dim=1)
        out = kernels.wide_linear(both, (down,), activation="swiglu", groups=ordered)
        if change is not None:
            left, right = both.chunk(2, dim=1)
            out = out + _low_ranks((F.silu(left) * right).to(x.dtype), change.down, ordered)
    elif change is None and in_c("float32 experts", x, gate, up, down):
        out = kernels.float_experts(x, groups, gate, up, down)
    else:
        out = torch.cat(
            [
                _swiglu(rows, *(w[e].to(x.dtype) for w in (gate, up, down)), change=_one(change, e))
                for rows, e in split_rows(x, groups)
            ]
        )
    return combine_experts(out, order, routing.weights).to(x.dtype)


def _swiglu(
    x: Float[Tensor, "m h"],
    gate: Float[Tensor, "i h"],
    up: Float[Tensor, "i h"],
    down: Float[Tensor, "h i"],
    *,
    change: ExpertChange | None,
) -> Float[Tensor, "m h"]:
    """One expert, in the orientation that is faster for so many rows; a `change` is its alone."""
    rows = filled_up(x)
    if change is not None:
        left = F.linear(rows, gate) + _low_rank(rows, change.gate)
        hidden = F.silu(left) * (F.linear(rows, up) + _low_rank(rows, change.up))
        out = F.linear(hidden, down) + _low_rank(hidden, change.down)
    elif len(rows) in COLUMN_ROWS:
        columns = rows.T
        out = (down @ (F.silu(gate @ columns) * (up @ columns))).T
    else:
        out = F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
    return out[: len(x)]


def _one(change: ExpertChange | None, expert: tuple[int]) -> ExpertChange | None:
    """The change of one expert's matrices."""
    if change is None:
        return None
    return ExpertChange(*(LowRank(low.a[expert], low.b[expert]) for low in change))


def _low_rank(x: Tensor, low: LowRank) -> Tensor:
    return F.linear(F.linear(x, low.a), low.b)


def _low_ranks(x: Float[Tensor, "n i"], low: LowRank, groups: Groups) -> Float[Tensor, "m o"]:
    """What the changes of their experts add to the rows of each group."""
    parts = split_rows(x, groups)
    return torch.cat([_low_rank(rows, LowRank(low.a[e], low.b[e])) for rows, e in parts])
