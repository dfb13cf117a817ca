"""Products with float8 (e4m3) weights: linear layers and experts, for cards that multiply float8.

Activations are rounded on the way, one scale per token, so that both sides of a product are float8
with a scale per row (arXiv 2209.05433). Cards without such products, and CPUs, multiply the same
rounded numbers as floats: the answers are the same but for the order of sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.cards import compute_capability
from vl2.ops.groups import Groups, in_order, sort_by_expert, split_rows
from vl2.ops.moe import Routing, combine_experts, group_rows
from vl2.ops.weight import (
    DEQUANTIZE_NUMBERS,
    Float8Weight,
    at_expert,
    dequantize_rows,
    quantize_float8,
)

aten = torch.ops.aten
log = get_logger(__name__)

_TRIED: dict[int | None, bool] = {}
"""By the number of a card: whether a product of float8 succeeded."""

ALIGNED = 16
"""What the widths of a product on a card are multiples of."""


def has_float8_products(x: Tensor, weight: Float8Weight) -> bool:
    """Whether the card multiplies float8: NVIDIA's from 8.9 on, if a first product succeeds."""
    aligned = all(width % ALIGNED == 0 for width in weight.values.shape[-2:])
    held = compute_capability(x.device)
    return held is not None and held >= (8, 9) and aligned and _multiplies(x.device)


def has_float8_experts(x: Tensor, *weights: Float8Weight) -> bool:
    """Whether PyTorch (2.13) has a grouped product of float8 rows for the card: Hopper (9.x)."""
    if not all(has_float8_products(x, weight) for weight in weights):
        return False
    held = compute_capability(x.device)
    return held is not None and held[0] == 9


def _multiplies(device: torch.device) -> bool:
    """Whether one small product succeeds; on 12.x cuBLAS refuses a scale per row: pytorch#192707.

    It is tried once per card, and a failure is told once.
    """
    if device.index not in _TRIED:  # a dict, since the compiler reads one and no cached function
        _TRIED[device.index] = _try(device)
    return _TRIED[device.index]


def _try(device: torch.device) -> bool:
    with torch.inference_mode():
        one = quantize_float8(torch.ones(2 * ALIGNED, 2 * ALIGNED, device=device))
        try:
            scaled_product(one, one)
        except RuntimeError as error:
            reason = str(error).split("\n")[0][:200]
            log.warning("%s multiplies float8 as floats, which is slower: %s", device, reason)
            return False
    return True


def float8_linear(
    x: Float[Tensor, "*lead i"], weight: Float8Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """Return x @ weight.T + bias with x rounded per token; the result has the dtype of x."""
    out = _product(quantize_float8(x.flatten(0, -2)), weight).to(x.dtype)
    return (out if bias is None else out + bias.to(x.dtype)).unflatten(0, x.shape[:-1])


def float8_linear_ref(
    x: Float[Tensor, "*lead i"], weight: Float8Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """The plain twin of `float8_linear`: both sides dequantised, one float64 product."""
    rounded = dequantize_rows(quantize_float8(x)).double()
    out = rounded @ dequantize_rows(weight).double().T
    return (out if bias is None else out + bias).to(x.dtype)


def _product(rows: Float8Weight, weight: Float8Weight) -> Float[Tensor, "n o"]:
    """Rounded rows times a matrix: bfloat16 from a card's own product, else float32."""
    if has_float8_products(rows.values, weight):
        return scaled_product(rows, weight)
    count = max(1, DEQUANTIZE_NUMBERS // weight.values.shape[1])
    parts = zip(weight.values.split(count), weight.scale.split(count), strict=True)
    x = rows.values.float()
    outs = [F.linear(x, values.float()) * scale for values, scale in parts]
    return (torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]) * rows.scale[:, None]


def scaled_product(rows: Float8Weight, weight: Float8Weight) -> Float[Tensor, "n o"]:
    """The product of float8 as PyTorch has it, in bfloat16."""
    return aten._scaled_mm(
        rows.values.contiguous(),
        weight.values.t(),
        scale_a=rows.scale[:, None],
        scale_b=weight.scale[None],
        out_dtype=torch.bfloat16,
    )


def float8_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float8Weight,
    up: Float8Weight,
    down: Float8Weight,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs; the host learns of no choice on Hopper."""
    if has_float8_experts(x, gate, up, down):
        return _grouped_experts(x, routing, gate, up, down)
    order, groups = group_rows(routing, len(gate.values))
    both = [_each(x, weight, groups) for weight in (gate, up)]
    out = _each(F.silu(both[0]).mul_(both[1]), down, in_order(groups))
    return combine_experts(out, order, routing.weights).to(x.dtype)


def _each(x: Float[Tensor, "n i"], weight: Float8Weight, groups: Groups) -> Float[Tensor, "m o"]:
    """One expert after the other."""
    parts = split_rows(x, groups)
    return torch.cat([float8_linear(rows, at_expert(weight, expert)) for rows, expert in parts])


def _grouped_experts(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float8Weight,
    up: Float8Weight,
    down: Float8Weight,
) -> Float[Tensor, "n h"]:
    """All experts in one product; their sizes stay on the card."""
    order, counts = sort_by_expert(routing.experts, len(gate.values))
    ends = counts.cumsum(0).to(torch.int32)
    rows = quantize_float8(x[order // routing.experts.shape[1]])
    hidden = F.silu(_grouped(rows, gate, ends)) * _grouped(rows, up, ends)
    out = _grouped(quantize_float8(hidden), down, ends)
    return combine_experts(out, order, routing.weights).to(x.dtype)


def _grouped(
    rows: Float8Weight, weight: Float8Weight, ends: Int[Tensor, " e"]
) -> Float[Tensor, "m o"]:
    """Each row times its expert's matrix, in bfloat16."""
    return aten._scaled_grouped_mm(
        rows.values.contiguous(),
        weight.values.transpose(-1, -2),
        rows.scale,
        weight.scale,
        offs=ends,
        out_dtype=torch.bfloat16,
    )
