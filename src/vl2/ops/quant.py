"""Weights in int8 and int4, and products with them.

int8: one row-major copy with a float32 scale per output row. Activations are quantised on the way,
one scale per token, and the product is an exact integer one (`torch._int_mm`), for one token as for
many. int4: weights only, unsigned nibbles with a bfloat16 scale and zero point per group along the
row; few rows run through PyTorch's bfloat16 x int4 kernel, many through dequantised weights.

Stacked experts carry a leading axis in every tensor. Each fast path has a plain twin (`*_ref`) that
any device can run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.moe import Routing, combine_experts, sort_by_expert

log = get_logger(__name__)
aten = torch.ops.aten

INT4_ROWS = 64
"""Output rows that are packed together: byte j of a block holds rows j (low) and j + 32 (high)."""
INT4_GROUPS = (128, 64, 32)
"""Lengths of a group that the kernel knows, best first."""
INT4_KERNEL_ROWS = 64
"""Activations up to which the int4 kernel is faster than dequantising the weights."""
DEQUANTIZE_NUMBERS = 2**23
"""Most weights that are held as floats at a time: 32 MiB in float32."""


class Int8Weight(NamedTuple):
    """A matrix, or one per expert, as values * scale[..., None]."""

    values: Tensor  # int8 [*experts, out, in]
    scale: Tensor  # float32 [*experts, out]


class Int4Weight(NamedTuple):
    """A matrix, or one per expert, as (nibble - 8) * scale + zero; rows are padded to whole blocks.

    The layout is that of PyTorch's kernel on CPUs with AVX-512, so that files need no repacking.
    """

    values: Tensor  # uint8 [*experts, blocks, in, 32]
    scale: Tensor  # bfloat16 [*experts, groups, blocks * 64, 2]: scale, zero


QuantWeightData = Int8Weight | Int4Weight


def at_expert(weight: QuantWeightData, index: int | tuple[int, ...]) -> QuantWeightData:
    """Views of one expert's tensors; () is the whole."""
    return type(weight)(weight.values[index], weight.scale[index])


def quantize_int8(weight: Float[Tensor, "*lead i"]) -> Int8Weight:
    """Nearest of 255 steps between +-max of each row; an all-zero row keeps zeros."""
    weight = weight.float()
    largest = torch.maximum(weight.amax(dim=-1), weight.amin(dim=-1).neg_())
    scale = largest.div_(127).clamp_(min=1e-30)
    return Int8Weight((weight / scale[..., None]).round_().to(torch.int8), scale)


def quantize_int8_ref(weight: Float[Tensor, "*lead i"]) -> Int8Weight:
    """The plain twin of `quantize_int8`: one row after the other."""
    rows = weight.float().flatten(0, -2)
    scales = [max(float(row.abs().max()), 127e-30) / 127 for row in rows]
    steps = [(row / scale).round() for row, scale in zip(rows, scales, strict=True)]
    return Int8Weight(
        torch.stack(steps).to(torch.int8).view(weight.shape),
        torch.tensor(scales, device=weight.device).view(weight.shape[:-1]),
    )


def dequantize_int8(
    weight: Int8Weight, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead i"]:
    """The floats that the weight stands for."""
    return (weight.values.float() * weight.scale[..., None]).to(dtype)


def int8_linear(
    x: Float[Tensor, "*lead i"], weight: Int8Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """Return x @ weight.T + bias with x quantised per token; the result has the dtype of x.

    Each token's result depends on that token alone, whatever the batch.
    """
    steps, scale = quantize_int8(x.flatten(0, -2))
    out = (_int_product(steps, weight.values) * weight.scale).mul_(scale[:, None])
    if bias is not None:
        out += bias
    return out.to(x.dtype).unflatten(0, x.shape[:-1])


def int8_linear_ref(
    x: Float[Tensor, "*lead i"], weight: Int8Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """The plain twin of `int8_linear`: both sides dequantised, one float64 product."""
    rounded = dequantize_int8(quantize_int8_ref(x))
    out = rounded.double() @ dequantize_int8(weight).double().T
    return (out if bias is None else out + bias).to(x.dtype)


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
    steps: Int8[Tensor, "n i"], values: Int8[Tensor, "o i"]
) -> Int[Tensor, "n o"] | Float[Tensor, "n o"]:
    """Return steps @ values.T of integers."""
    if has_int_matmul(steps.device.type):
        return aten._int_mm(steps, values.t())
    rows = max(1, DEQUANTIZE_NUMBERS // values.shape[1])
    return torch.cat([F.linear(steps.float(), v.float()) for v in values.split(rows)], dim=1)


def int4_group(width: int) -> int | None:
    """Length of the groups of a row of `width`, or None where no length divides it."""
    return next((group for group in INT4_GROUPS if width % group == 0), None)


def quantize_int4(weight: Float[Tensor, "*lead o i"]) -> Int4Weight:
    """Nearest of 16 steps between the least and the largest weight of each group.

    Raises:
        ValueError: no group divides the rows.
    """
    group = _group(weight)
    weight = F.pad(weight.float(), (0, 0, 0, -weight.shape[-2] % INT4_ROWS))
    parts = weight.unflatten(-1, (-1, group))  # (*, O, G, g)
    scale, zero = _int4_scales(parts)
    steps = ((parts - zero[..., None]) / scale[..., None]).round_().add_(8).clamp_(0, 15)
    steps = steps.to(torch.uint8).flatten(-2).unflatten(-2, (-1, INT4_ROWS)).transpose(-1, -2)
    low, high = steps.chunk(2, dim=-1)  # (*, blocks, I, 32)
    both = torch.stack((scale, zero), dim=-1).transpose(-3, -2)
    return Int4Weight((low | (high << 4)).contiguous(), both.to(torch.bfloat16).contiguous())


def _int4_scales(parts: Float[Tensor, "*lead g"]) -> tuple[Tensor, Tensor]:
    """Step and zero point of each group, already rounded to bfloat16 as they are kept.

    A step is at least what the rounding of the zero point may shift.
    """
    least, most = parts.aminmax(dim=-1)
    largest = torch.maximum(least.abs(), most.abs())
    scale = torch.maximum((most - least) / 15, largest * 2**-9).clamp_(min=1e-30)
    scale = scale.bfloat16().float()
    return scale, (least + 8 * scale).bfloat16().float()


def quantize_int4_ref(weight: Float[Tensor, "*lead o i"]) -> Int4Weight:
    """The plain twin of `quantize_int4`: one group and one byte after the other."""
    group, out = _group(weight), weight.shape[-2]
    blocks = -(-out // INT4_ROWS)
    width, lead = weight.shape[-1], weight.shape[:-2]
    matrices = weight.float().reshape(-1, out, width)
    values = torch.zeros(len(matrices), blocks, width, INT4_ROWS // 2, dtype=torch.uint8)
    scales = torch.zeros(len(matrices), width // group, blocks * INT4_ROWS, 2)
    for e, matrix in enumerate(matrices):
        for row in range(blocks * INT4_ROWS):
            block, place = divmod(row, INT4_ROWS)
            for g in range(width // group):
                span = slice(g * group, (g + 1) * group)
                part = matrix[row, span] if row < out else torch.zeros(group)
                scale, zero = _int4_scales(part)
                scales[e, g, row] = torch.stack((scale, zero))
                steps = (((part - zero) / scale).round() + 8).clamp(0, 15).to(torch.uint8)
                values[e, block, span, place % 32] |= steps << (4 * (place // 32))
    return Int4Weight(
        values.view(*lead, *values.shape[1:]), scales.bfloat16().view(*lead, *scales.shape[1:])
    )


def _group(weight: Tensor) -> int:
    group = int4_group(weight.shape[-1])
    if group is None:
        raise ValueError(
            f"rows of {weight.shape[-1]} weights cannot be held in int4: expected a multiple of "
            f"{INT4_GROUPS[-1]}; use int8"
        )
    return group


def dequantize_int4(
    weight: Int4Weight, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead o i"]:
    """The floats that the weight stands for, padded rows included."""
    values = weight.values
    steps = torch.cat((values & 15, values >> 4), dim=-1).transpose(-1, -2).flatten(-3, -2)
    group = values.shape[-2] // weight.scale.shape[-3]
    scale, zero = weight.scale.transpose(-3, -2).float().unbind(-1)  # (*, O, G)
    parts = steps.to(torch.float32).sub_(8).unflatten(-1, (-1, group))
    return parts.mul_(scale[..., None]).add_(zero[..., None]).flatten(-2).to(dtype)


def int4_linear(
    x: Float[Tensor, "*lead i"],
    weight: Int4Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    out_features: int,
) -> Float[Tensor, "*lead {out_features}"]:
    """Return x @ weight.T + bias in the dtype of x; few rows are multiplied in bfloat16."""
    rows = x.flatten(0, -2)
    if len(rows) <= INT4_KERNEL_ROWS and has_int4_kernel(x.device.type):
        out = _int4_kernel(rows.bfloat16(), weight)[:, :out_features]
    else:
        out = _int4_dequantized(rows, weight)[:, :out_features]
    out = out.to(x.dtype)
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
    count = max(1, DEQUANTIZE_NUMBERS // (INT4_ROWS * rows.shape[1]))
    blocks = weight.values.split(count)
    scales = weight.scale.split(count * INT4_ROWS, dim=1)
    return torch.cat(
        [
            F.linear(rows, dequantize_int4(Int4Weight(values, scale), rows.dtype))
            for values, scale in zip(blocks, scales, strict=True)
        ],
        dim=1,
    )


def int8_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Int8Weight,
    up: Int8Weight,
    down: Int8Weight,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs; only experts that have tokens are touched."""
    order, counts = sort_by_expert(routing.experts, len(gate.values))
    token = order // routing.experts.shape[1]
    steps, scale = quantize_int8(x)
    chosen, sizes = _with_tokens(counts)
    rows, scale = steps[token].split(sizes), scale[token][:, None]

    def product(parts: tuple[Tensor, ...], weight: Int8Weight) -> Tensor:
        """Float32 rows, still without the scale of the activations."""
        outs = [
            _int_product(part, weight.values[e]) * weight.scale[e]
            for part, e in zip(parts, chosen, strict=True)
        ]
        return torch.cat(outs)

    hidden = F.silu(product(rows, gate).mul_(scale)).mul_(product(rows, up).mul_(scale))
    steps, scale = quantize_int8(hidden)
    out = product(steps.split(sizes), down).mul_(scale[:, None])
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
    order, counts = sort_by_expert(routing.experts, len(gate.values))
    chosen, sizes = _with_tokens(counts)
    rows = x[order // routing.experts.shape[1]].split(sizes)
    width = x.shape[1]
    outs = []
    for part, e in zip(rows, chosen, strict=True):
        gate_e, up_e, down_e = (Int4Weight(w.values[e], w.scale[e]) for w in (gate, up, down))
        hidden = F.silu(int4_linear(part, gate_e, out_features=inner))
        hidden = hidden * int4_linear(part, up_e, out_features=inner)
        outs.append(int4_linear(hidden, down_e, out_features=width))
    return combine_experts(torch.cat(outs), order, routing.weights).to(x.dtype)


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


def _with_tokens(counts: Int[Tensor, " e"]) -> tuple[list[int], list[int]]:
    """Experts that have tokens, and how many."""
    sizes = counts.tolist()
    chosen = [e for e, size in enumerate(sizes) if size]
    return chosen, [sizes[e] for e in chosen]
