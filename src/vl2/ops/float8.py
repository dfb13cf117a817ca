"""Weights in float8 (e4m3), a float32 scale per row, and products with them on cards that have one.

Activations are rounded on the way, one scale per token, so that both sides of a product are float8
with a scale per row (arXiv 2209.05433). Cards without such products, and CPUs, multiply the same
rounded numbers as floats: the answers are the same but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.cards import compute_capability
from vl2.ops.groups import Groups, split_rows
from vl2.ops.weight import (
    DEQUANTIZE_NUMBERS,
    activated,
    expert_of,
    row_scale,
    scaled_blocks,
    scaled_floats,
    store_rows,
)

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MOST = 448.0
"""The largest number of it."""
ALIGNED = 16
"""What the widths of a product on a card are multiples of."""

aten = torch.ops.aten
log = get_logger(__name__)

_TRIED: dict[int | None, bool] = {}
"""By the number of a card: whether a product of float8 succeeded."""


class Float8Weight(NamedTuple):
    """A matrix, or one per expert, as values * scale[..., None]; also rows of activations."""

    values: Tensor  # float8 (e4m3) [*experts, out, in]
    scale: Tensor  # float32 [*experts, out]
    kind = "float8"
    through_float32 = False
    joins = False

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return self.values.shape[-2]

    @staticmethod
    def pack(weight: Float[Tensor, "*lead i"]) -> Float8Weight:
        """Nearest float8 of each number, rows scaled to +-448; an all-zero row keeps zeros."""
        weight = weight.float()
        scale = row_scale(weight, FLOAT8_MOST)
        return Float8Weight((weight / scale[..., None]).to(FLOAT8), scale)

    @staticmethod
    def empty(*shape: int) -> Float8Weight:
        """Unset tensors for a weight of this shape."""
        return Float8Weight(torch.empty(shape, dtype=FLOAT8), torch.empty(shape[:-1]))

    @staticmethod
    def of(values: Tensor, scale: Tensor, rows: int) -> Float8Weight:
        """The weight of these tensors."""
        return Float8Weight(values, scale)

    at = expert_of
    floats = scaled_floats
    blocks = scaled_blocks
    store = store_rows

    def experts(
        self, x: Float[Tensor, "n h"], others: Sequence[Any], groups: Groups, each: int
    ) -> Tensor | None:
        """See ops/linear.py; there is no such way."""
        return None

    def product(
        self,
        x: Float[Tensor, "n i"],
        others: Sequence[Any] = (),
        *,
        dtype: torch.dtype,
        bias: Float[Tensor, " o"] | None = None,
        activation: str = "none",
        groups: Groups | None = None,
        tokens: int | None = None,
    ) -> Float[Tensor, "m total"]:
        """See ops/linear.py; on Hopper the host learns of no choice of an expert."""
        x, weights = activated(x, activation), (self, *others)
        if groups is not None and has_float8_experts(x, *weights):
            rows = Float8Weight.pack(x if groups.tokens is None else x[groups.tokens])
            ends = groups.ends.to(torch.int32)
            outs = [_grouped(rows, weight, ends) for weight in weights]
        elif groups is not None:
            parts = split_rows(x, groups)
            outs = [
                torch.cat([_times(rows, weight.at(expert)).to(dtype) for rows, expert in parts])
                for weight in weights
            ]
        else:
            outs = [_times(x, weight).to(dtype) for weight in weights]
        out = torch.cat(outs, dim=1).to(dtype) if others else outs[0].to(dtype)
        return out if bias is None else out + bias.to(dtype)


def _times(x: Float[Tensor, "n i"], weight: Float8Weight) -> Float[Tensor, "n o"]:
    """Rows, rounded, times a matrix: bfloat16 from a card's own product, else float32."""
    rows = Float8Weight.pack(x)
    if has_float8_products(rows.values, weight):
        return scaled_product(rows, weight)
    count = max(1, DEQUANTIZE_NUMBERS // weight.values.shape[1])
    parts = zip(weight.values.split(count), weight.scale.split(count), strict=True)
    floats = rows.values.float()
    outs = [F.linear(floats, values.float()) * scale for values, scale in parts]
    return (torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]) * rows.scale[:, None]


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
        one = Float8Weight.pack(torch.ones(2 * ALIGNED, 2 * ALIGNED, device=device))
        try:
            scaled_product(one, one)
        except RuntimeError as error:
            reason = str(error).split("\n")[0][:200]
            log.warning("%s multiplies float8 as floats, which is slower: %s", device, reason)
            return False
    return True


def scaled_product(rows: Float8Weight, weight: Float8Weight) -> Float[Tensor, "n o"]:
    """The product of float8 as PyTorch has it, in bfloat16."""
    return aten._scaled_mm(
        rows.values.contiguous(),
        weight.values.t(),
        scale_a=rows.scale[:, None],
        scale_b=weight.scale[None],
        out_dtype=torch.bfloat16,
    )


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


def pack_float8_ref(weight: Float[Tensor, "*lead i"]) -> Float8Weight:
    """The plain twin of `Float8Weight.pack`: the nearest of all 254 finite float8, searched for."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    every = every[every.isfinite()]
    rows = weight.float().flatten(0, -2)
    scale = torch.tensor([max(float(row.abs().max()) / FLOAT8_MOST, 1e-30) for row in rows])
    shares = rows / scale[:, None]
    nearest = [every[(share[:, None] - every).abs().argmin(dim=1)] for share in shares]
    values = torch.stack(nearest).to(FLOAT8)
    return Float8Weight(values.view(weight.shape), scale.view(weight.shape[:-1]))


def float8_linear_ref(
    x: Float[Tensor, "*lead i"], weight: Float8Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """The plain twin of a product: both sides as floats, one float64 product."""
    out = Float8Weight.pack(x).floats().double() @ weight.floats().double().T
    return (out if bias is None else out + bias).to(x.dtype)
