"""Products with held weights: linear layers, and the experts of a mixture.

`product` of a kind takes rows [n, in], `others` of the same width, whose results stand beside (not
with a bias), the `dtype` of the result, a `bias`, an `activation` that is applied to the rows first
(ops/weight.py), `groups` of rows by the expert that they meet, and the number of `tokens` where
rows are copies of them. Where gradients pass, ops/frozen.py comes first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vl2.ops.frozen import frozen_experts, frozen_linear, gradients_pass
from vl2.ops.groups import in_order
from vl2.ops.kinds import Weight
from vl2.ops.moe import ExpertChange, Routing, combine_experts, group_rows, matmul_dtype


def linear(
    x: Float[Tensor, "*lead i"],
    weight: Weight,
    bias: Float[Tensor, " o"] | None = None,
    *others: Weight,
) -> Float[Tensor, "*lead total"]:
    """Return x @ weight.T + bias in the dtype of x; gradients pass to x and the bias.

    Args:
        x: activations.
        weight: frozen, of any kind.
        bias: may train.
        others: of the same kind and width, without bias and gradients: results stand beside.
    """
    if torch.is_grad_enabled() and gradients_pass(x, bias):
        return frozen_linear(x, weight, bias, dtype=matmul_dtype(x))
    out = weight.product(x.flatten(0, -2), others, bias=bias, dtype=x.dtype)
    return out.view(*x.shape[:-1], out.shape[-1])


def experts(
    x: Float[Tensor, "n h"],
    routing: Routing,
    weights: tuple[Weight, Weight, Weight],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs; only experts that have tokens are touched.

    Args:
        x: activations.
        routing: its weights may have a gradient.
        weights: gate, up and down of every expert, of one kind, frozen.
        change: low-rank changes of these matrices, applied to the activations.
    """
    if change is not None or gradients_pass(x, routing.weights):
        return frozen_experts(x, routing, weights, change, dtype=matmul_dtype(x))
    gate, up, down = weights
    dtype = torch.float32 if gate.through_float32 else x.dtype
    order, groups = group_rows(routing, len(gate.values))
    each = routing.experts.numel() // len(gate.values)
    out = gate.experts(x, (up, down), groups, each)
    if out is not None:
        return combine_experts(out, order, routing.weights).to(x.dtype)
    both = gate.product(x, (up,), groups=groups, dtype=dtype)
    out = down.product(
        both, activation="swiglu", groups=in_order(groups), tokens=len(x), dtype=dtype
    )
    return combine_experts(out, order, routing.weights).to(x.dtype)
