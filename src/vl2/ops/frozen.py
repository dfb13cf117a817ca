"""Products with held weights that gradients pass; the weights stay as they are.

Going backward, x @ W.T with a frozen W needs `gradient @ W` and nothing else. So neither inputs,
unless an activation is applied to them, nor floats of W are kept: W is dequantised once more,
`DEQUANTIZE_NUMBERS` of it at a time. The rounding of activations counts as the identity
(straight-through estimator, arXiv 1308.3432).

Forward passes are those of inference, bit for bit but for float8 experts on Hopper, which go one
by one here. Each function has a plain twin (`*_ref`) on whole matrices, whose gradients are
autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vl2.ops.float8 import float8_linear_ref
from vl2.ops.groups import sort_by_expert
from vl2.ops.int8 import int8_linear_ref
from vl2.ops.kinds import KINDS, Weight
from vl2.ops.moe import ExpertChange, LowRank, Routing, combine_experts
from vl2.ops.weight import activated

ROUNDING_TWINS: dict[str, Callable[..., Tensor]] = {
    "int8": int8_linear_ref,
    "float8": float8_linear_ref,
}
"""Plain twins of the products that round activations, by the kind of the weight."""


def gradients_pass(*inputs: Tensor | None) -> bool:
    """Whether autograd wants a gradient of any of them."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def frozen_linear(
    x: Float[Tensor, "*lead i"],
    weight: Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    dtype: torch.dtype,
    activation: str = "none",
) -> Float[Tensor, "*lead o"]:
    """Return x @ weight.T + bias in the dtype of x, with gradients of x and of the bias.

    Args:
        x: activations.
        weight: frozen.
        bias: may train.
        dtype: of the product going backward.
        activation: applied to x first, see `activated`.
    """
    if not weight.through_float32:  # such a product applies it inside
        x, activation = activated(x, activation), "none"
    held = weight.values, weight.scale
    return _Frozen.apply(x, *held, bias, (weight.kind, weight.rows, dtype, activation))


def frozen_linear_ref(
    x: Float[Tensor, "*lead i"], weight: Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """The plain twin of `frozen_linear`: a product with floats, moved to the rounded result."""
    out = F.linear(x, weight.floats().to(x.dtype), bias)
    twin = ROUNDING_TWINS.get(weight.kind)
    if twin is None:
        return out
    rounded = twin(x.detach(), weight, None if bias is None else bias.detach())
    return out + (rounded - out.detach())


def input_gradient(
    gradient: Float[Tensor, "n o"], weight: Weight, dtype: torch.dtype
) -> Float[Tensor, "n i"]:
    """Return gradient @ weight as float32, from products in `dtype` of some rows at a time."""
    total = None
    first = 0
    for part in weight.blocks(dtype):
        rows = gradient[:, first : first + len(part)].to(dtype)
        first += len(part)
        product = (rows @ part[: rows.shape[1]]).float()  # the last block may have padded rows
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def frozen_experts(
    x: Float[Tensor, "n h"],
    routing: Routing,
    weights: tuple[Weight, Weight, Weight],
    change: ExpertChange | None = None,
    *,
    dtype: torch.dtype,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs, with gradients of x, routing and change.

    Args:
        x: activations.
        routing: its weights may have a gradient.
        weights: gate, up and down of every expert, frozen.
        change: low-rank changes of these matrices, applied to the activations.
        dtype: of the changes and of the products going backward.
    """
    order, counts = sort_by_expert(routing.experts, len(weights[0].values))
    sizes = counts.tolist()
    rows = x[order // routing.experts.shape[1]]
    # int8 gives float32 rows, which inference does not round on the way through an expert
    rows = rows.float() if weights[0].through_float32 else rows
    changes = zip(*map(_by_expert, change), strict=True) if change else repeat((None,) * 3)
    outs = []
    for expert, (part, low) in enumerate(zip(rows.split(sizes), changes, strict=False)):
        if not len(part):
            continue
        gate, up, down = (
            partial(_changed, weight=weight.at(expert), change=own, dtype=dtype)
            for weight, own in zip(weights, low, strict=True)
        )
        both = torch.cat((gate(part), up(part)), dim=1)
        outs.append(down(both, activation="swiglu"))
    return combine_experts(torch.cat(outs), order, routing.weights).to(x.dtype)


def frozen_experts_ref(
    x: Float[Tensor, "n h"],
    routing: Routing,
    weights: tuple[Weight, Weight, Weight],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """The plain twin of `frozen_experts`: one choice of one token after the other."""

    def product(row: Tensor, matrix: int, expert: int) -> Tensor:
        out = frozen_linear_ref(row, weights[matrix].at(expert))
        if change is None:
            return out
        return out + row @ change[matrix].a[expert].T @ change[matrix].b[expert].T

    rows = []
    for token, row in enumerate(x):
        total = torch.zeros_like(row, dtype=torch.float32)
        for slot, expert in enumerate(routing.experts[token].tolist()):
            hidden = F.silu(product(row[None], 0, expert)) * product(row[None], 1, expert)
            total = total + routing.weights[token, slot] * product(hidden, 2, expert)[0].float()
        rows.append(total)
    return torch.stack(rows).to(x.dtype)


class _Frozen(torch.autograd.Function):
    """See `frozen_linear`; inputs are kept for an activation's gradient alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        how: tuple[str, int, torch.dtype, str],
    ) -> Tensor:
        """The product of inference."""
        kind, rows, _, activation = how
        kept = () if activation == "none" else (x,)
        ctx.save_for_backward(values, scale, *kept)
        ctx.how, ctx.bias_dtype = how, None if bias is None else bias.dtype
        weight = KINDS[kind].of(values, scale, rows)
        out = weight.product(x.flatten(0, -2), bias=bias, activation=activation, dtype=x.dtype)
        return out.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - it names ctx otherwise
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Times the weight for x, summed over rows for the bias."""
        [gradient] = gradients
        rows = gradient.flatten(0, -2)
        of_x = of_bias = None
        values, scale, *kept = ctx.saved_tensors
        kind, out, dtype, activation = ctx.how
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(rows, KINDS[kind].of(values, scale, out), dtype)
            of_x = of_x.to(gradient.dtype).unflatten(0, gradient.shape[:-1])
            if kept:
                of_x = _through(kept[0], activation, of_x)
        if ctx.needs_input_grad[3]:
            of_bias = rows.float().sum(0).to(ctx.bias_dtype)
        return of_x, None, None, of_bias, None


def _through(x: Tensor, activation: str, gradient: Tensor) -> Tensor:
    """The gradient before an activation from that after it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        [found] = torch.autograd.grad(activated(x, activation), x, gradient)
    return found


def _changed(
    x: Float[Tensor, "m i"],
    *,
    weight: Weight,
    change: LowRank | None,
    dtype: torch.dtype,
    activation: str = "none",
) -> Float[Tensor, "m o"]:
    """One matrix of one expert with its change."""
    out = frozen_linear(x, weight, dtype=dtype, activation=activation)
    if change is None:
        return out
    inner = F.linear(activated(x, activation).to(dtype), change.a)
    return out + F.linear(inner, change.b).to(out.dtype)


def _by_expert(change: LowRank) -> Iterator[LowRank]:
    """Changes one by one; of unbound stacks the gradients become one stack again."""
    return map(LowRank, change.a.unbind(), change.b.unbind())
