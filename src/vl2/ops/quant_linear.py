"""Products with quantised weights: linear layers and experts.

int8: activations are rounded on the way, one scale per token, and the product is an exact integer
one, so that a token's result does not depend on what else is in the batch. int4: activations are
not rounded; few rows meet nibbles, many rows meet weights that are dequantised some at a time.

Fast paths are the C functions of ops/native, where they are there, and PyTorch's kernels; both read
the one row-major copy. Each has a plain twin (`*_ref`) that any device can run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.backend import INT4_KERNEL_ROWS, in_c
from vl2.ops.groups import Groups, in_order, split_rows
from vl2.ops.moe import Routing, combine_experts, group_rows
from vl2.ops.native import kernels
from vl2.ops.weight import (
    DEQUANTIZE_NUMBERS,
    Int4Weight,
    Int8Weight,
    at_expert,
    dequantize_int4,
    dequantize_rows,
    quantize_int8,
    quantize_int8_ref,
)

log = get_logger(__name__)
aten = torch.ops.aten


def int8_linear(
    x: Float[Tensor, "*lead i"],
    weight: Int8Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    activation: str = "none",
) -> Float[Tensor, "*lead o"]:
    """Return x @ weight.T + bias with x quantised per token; the result has the dtype of x.

    Each token's result depends on that token alone, whatever the batch. `activation` is applied to
    x first, see `int8_products`; with "swiglu" x is twice as wide as the weight.
    """
    out = int8_products(
        x.flatten(0, -2), (weight,), bias=bias, activation=activation, dtype=x.dtype
    )
    return out.unflatten(0, x.shape[:-1])


def int8_linear_ref(
    x: Float[Tensor, "*lead i"],
    weight: Int8Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    activation: str = "none",
) -> Float[Tensor, "*lead o"]:
    """The plain twin of `int8_linear`: both sides dequantised, one float64 product."""
    rounded = dequantize_rows(quantize_int8_ref(activated(x.float(), activation)))
    out = rounded.double() @ dequantize_rows(weight).double().T
    return (out if bias is None else out + bias).to(x.dtype)


def int8_products(
    x: Float[Tensor, "n i"],
    weights: Sequence[Int8Weight],
    *,
    bias: Float[Tensor, " o"] | None = None,
    activation: str = "none",
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "m total"]:
    """Rows, rounded once, times matrices of one width, whose results stand side by side.

    Args:
        x: activations.
        weights: matrices, or with `groups` one per expert.
        bias: of the only matrix.
        activation: applied before rounding, in float32: "swiglu" makes silu(gate) * up of rows that
            hold gate and then up.
        groups: which rows meet which expert.
        dtype: of the result.
    """
    if in_c("int8 linear", x):
        return kernels.int8_linear(
            x, weights, bias=bias, activation=activation, groups=groups, dtype=dtype
        )
    steps, scale = quantize_int8(activated(x.float(), activation))
    parts = [(steps, ())] if groups is None else split_rows(steps, groups)
    if groups is not None and groups.tokens is not None:
        scale = scale[groups.tokens]
    outs = [
        torch.cat([_int_product(part, *at_expert(weight, expert)) for part, expert in parts])
        for weight in weights
    ]
    out = torch.cat(outs, dim=1).mul_(scale[:, None])
    return (out if bias is None else out.add_(bias)).to(dtype)


def activated(x: Float[Tensor, "*lead i"], activation: str) -> Float[Tensor, "*lead w"]:
    """What happens to activations before they are rounded."""
    if activation == "none":
        return x
    assert activation == "swiglu", activation
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@cache
def has_int_matmul(device: str) -> bool:
    """Whether `torch._int_mm` multiplies any number of rows exactly on this kind of device.

    Found by trying the largest values: kernels for CPUs without VNNI saturate, CUDA's refuses few
    rows. Without it the same integers are multiplied as floats.
    """
    if device != "cpu":
        return False
    steps, values = torch.full((1, 64), -127).to(torch.int8), torch.full((16, 64), 127)
    product = aten._int_mm(steps, values.to(torch.int8).t())
    exact = bool((product == -127 * 127 * 64).all())
    if not exact:
        log.warning("this CPU has no exact int8 products: int8 weights are multiplied as floats")
    return exact


def _int_product(
    steps: Int8[Tensor, "n i"], values: Int8[Tensor, "o i"], scale: Float[Tensor, " o"]
) -> Float[Tensor, "n o"]:
    """Return steps @ values.T * scale, in integers as long as possible."""
    if has_int_matmul(steps.device.type):
        return aten._int_mm(steps, values.t()) * scale
    rows = max(1, DEQUANTIZE_NUMBERS // values.shape[1])
    product = [F.linear(steps.float(), part.float()) for part in values.split(rows)]
    return torch.cat(product, dim=1) * scale


def int4_linear(
    x: Float[Tensor, "*lead i"],
    weight: Int4Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    out_features: int,
) -> Float[Tensor, "*lead {out_features}"]:
    """Return x @ weight.T + bias in the dtype of x."""
    rows = x.flatten(0, -2)
    if in_c("int4 linear", rows):
        out = kernels.int4_linear(rows, *weight)
    elif len(rows) <= INT4_KERNEL_ROWS and has_int4_kernel(x.device.type):
        out = _int4_kernel(rows.bfloat16(), weight)
    else:
        out = _int4_dequantized(rows, weight)
    out = out[:, :out_features].to(x.dtype)
    return (out if bias is None else out + bias).unflatten(0, x.shape[:-1])


def int4_linear_ref(
    x: Float[Tensor, "*lead i"],
    weight: Int4Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    out_features: int,
) -> Float[Tensor, "*lead {out_features}"]:
    """The plain twin of `int4_linear`: dequantised whole, one product."""
    matrix = dequantize_int4(weight)[:out_features].to(x.dtype)
    return F.linear(x, matrix, None if bias is None else bias.to(x.dtype))


@cache
def has_int4_kernel(device: str) -> bool:
    """Whether PyTorch's int4 kernel is there and lays nibbles out as `Int4Weight` does.

    The layout is that of AVX-512; elsewhere weights are dequantised for every product.
    """
    if device != "cpu":
        return False
    steps = torch.arange(64 * 64, dtype=torch.int32).mul(7).bitwise_right_shift(2) % 16
    steps = steps.view(64, 64)
    try:
        packed = aten._convert_weight_to_int4pack_for_cpu(steps, 1)
    except (AttributeError, NotImplementedError, RuntimeError):
        packed = torch.empty(0, dtype=torch.uint8)
    low, high = steps.t().to(torch.uint8).chunk(2, dim=1)
    same = packed.numel() == 64 * 32 and torch.equal(packed.view(64, 32), low | (high << 4))
    if not same:
        log.warning("no int4 kernel for this CPU: int4 weights are dequantised for every product")
    return same


def _int4_kernel(rows: Float[Tensor, "n i"], weight: Int4Weight) -> Float[Tensor, "n o"]:
    groups, out, _ = weight.scale.shape
    packed = weight.values.view(out, -1)
    group = rows.shape[1] // groups
    return aten._weight_int4pack_mm_for_cpu(rows, packed, group, weight.scale)


def _int4_dequantized(rows: Float[Tensor, "n i"], weight: Int4Weight) -> Float[Tensor, "n o"]:
    """The product with floats of some blocks at a time."""
    return torch.cat([F.linear(rows, part) for part in weight.blocks(rows.dtype)], dim=1)


def int8_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Int8Weight,
    up: Int8Weight,
    down: Int8Weight,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs; only experts that have tokens are touched."""
    order, groups = group_rows(routing, len(gate.values))
    both = int8_products(x, (gate, up), groups=groups)
    out = int8_products(both, (down,), activation="swiglu", groups=in_order(groups))
    return combine_experts(out, order, routing.weights).to(x.dtype)


def int4_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Int4Weight,
    up: Int4Weight,
    down: Int4Weight,
    *,
    inner: int,
) -> Float[Tensor, "n h"]:
    """As `int8_expert_mlp`; `inner` is the width of an expert without padded rows."""
    order, groups = group_rows(routing, len(gate.values))
    if in_c("int4 linear", x):
        sides = (kernels.int4_linear(x, *weight, groups=groups) for weight in (gate, up))
        first, second = (side[:, :inner].to(x.dtype) for side in sides)
        hidden = F.silu(first).mul_(second)
        out = kernels.int4_linear(hidden, *down, groups=in_order(groups))
        out = out[:, : x.shape[1]].to(x.dtype)
    else:
        out = torch.cat(
            [
                _int4_expert(rows, *(at_expert(w, e) for w in (gate, up, down)), inner=inner)
                for rows, e in split_rows(x, groups)
            ]
        )
    return combine_experts(out, order, routing.weights).to(x.dtype)


def _int4_expert(
    rows: Float[Tensor, "n h"], gate: Int4Weight, up: Int4Weight, down: Int4Weight, *, inner: int
) -> Float[Tensor, "n h"]:
    hidden = F.silu(int4_linear(rows, gate, out_features=inner))
    hidden = hidden * int4_linear(rows, up, out_features=inner)
    return int4_linear(hidden, down, out_features=rows.shape[1])


def quantized_expert_mlp_ref(
    x: Float[Tensor, "n h"],
    routing: Routing,
    linears: tuple[Callable[[Tensor, int], Tensor], ...],
) -> Float[Tensor, "n h"]:
    """The plain twin of both expert MLPs: one choice of one token after the other.

    `linears` are gate, up and down as functions of a row [1, in] and an expert.
    """
    gate, up, down = linears
    out = torch.zeros_like(x, dtype=torch.float32)
    for n in range(len(x)):
        for e, weight in zip(routing.experts[n].tolist(), routing.weights[n], strict=True):
            row = x[n : n + 1]
            hidden = F.silu(gate(row, e)) * up(row, e)
            out[n] += weight * down(hidden, e)[0].float()
    return out.to(x.dtype)
