"""Experts of few tokens in batched products, for cards whose grouped matmul asks the host.

No shape depends on what the router chose, so the host never waits and a CUDA graph can hold a step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vl2.ops.activations import silu
from vl2.ops.cards import groups_on_card, has_grouped_matmul
from vl2.ops.moe import ExpertChange, LowRank, Routing, combine_experts

FEW_TOKENS = 256
"""More than these share experts so often that a loop over experts is faster."""
COPY = 3
"""What a chosen matrix costs that is copied first: it is read, written, and read again."""


def batches_experts(x: Float[Tensor, "n h"], gate: Float[Tensor, "e i h"]) -> bool:
    """Whether `batched_expert_mlp` is the way to go: few tokens in inference, no kernel for groups.

    A step that is being recorded must not ask the host, however many tokens it has.
    """
    if x.device.type == "cpu" or torch.is_grad_enabled():
        return False
    if groups_on_card(x.device, x.dtype) and has_grouped_matmul(x, gate):
        return False
    if len(x) <= FEW_TOKENS:
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def batched_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """As `expert_mlp`; the twin of both is `expert_mlp_ref`.

    Each choice meets a copy of its expert's matrices, or, if that moves more bytes, every token
    every expert: few rows cost what reading the matrices costs.
    """
    tokens, k = routing.experts.shape
    total = len(gate)
    changes: tuple[LowRank | None, ...] = change or (None, None, None)
    if COPY * tokens * k <= total:
        chosen = routing.experts.flatten()
        weights = [weight[chosen] for weight in (gate, up, down)]
        changes = tuple(low and LowRank(low.a[chosen], low.b[chosen]) for low in changes)
        rows = x[:, None].expand(-1, k, -1).reshape(tokens * k, 1, -1)
        out = batched_swiglu(rows, weights, changes)[:, 0]  # (N*k, H)
    else:
        everywhere = batched_swiglu(x.expand(total, -1, -1), [gate, up, down], changes)  # (E, N, H)
        token = torch.arange(tokens, device=x.device)[:, None]
        out = everywhere[routing.experts, token].flatten(0, 1)
    return combine_experts(out, None, routing.weights).to(x.dtype)


def batched_swiglu(
    rows: Float[Tensor, "b m h"], weights: list[Tensor], changes: tuple[LowRank | None, ...]
) -> Float[Tensor, "b m h"]:
    """The rows [b, m, h] that belong to each of b experts through its SwiGLU (gate, up, down)."""
    gate, up, down = weights
    hidden = silu(_product(rows, gate, changes[0])) * _product(rows, up, changes[1])
    return _product(hidden, down, changes[2])


def _product(
    rows: Float[Tensor, "b m w"], weight: Float[Tensor, "b v w"], change: LowRank | None
) -> Float[Tensor, "b m v"]:
    """Rows times matrices, one with one, with the change of each matrix if there is one."""
    out = torch.bmm(rows, weight.transpose(1, 2))
    if change is None:
        return out
    inner = torch.bmm(rows, change.a.transpose(1, 2))  # (B, M, rank)
    return out + torch.bmm(inner, change.b.transpose(1, 2))
