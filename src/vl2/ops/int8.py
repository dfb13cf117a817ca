"""Weights in int8, a float32 scale per row, and products with them.

Activations are rounded on the way, one scale per token, and the product is an exact integer one, so
that a token's result does not depend on what else is in the batch. The fast path is the C function
of ops/native where it is there, else PyTorch's kernel; both read the one row-major copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.backend import in_c
from vl2.ops.groups import Groups, split_rows
from vl2.ops.native import kernels
from vl2.ops.native.tiles import tile_int8_experts
from vl2.ops.weight import (
    DEQUANTIZE_NUMBERS,
    activated,
    expert_of,
    row_scale,
    scaled_blocks,
    scaled_floats,
    store_rows,
)

log = get_logger(__name__)
aten = torch.ops.aten


class Int8Weight(NamedTuple):
    """A matrix, or one per expert, as values * scale[..., None]; also rows of activations."""

    values: Tensor  # int8 [*experts, out, in]
    scale: Tensor  # float32 [*experts, out]
    kind = "int8"
    through_float32 = True
    joins = True

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return self.values.shape[-2]

    @staticmethod
    def pack(weight: Float[Tensor, "*lead i"]) -> Int8Weight:
        """Nearest of 255 steps between +-max of each row; an all-zero row keeps zeros."""
        weight = weight.float()
        scale = row_scale(weight, 127)
        return Int8Weight((weight / scale[..., None]).round_().to(torch.int8), scale)

    @staticmethod
    def empty(*shape: int) -> Int8Weight:
        """Unset tensors for a weight of this shape."""
        return Int8Weight(torch.empty(shape, dtype=torch.int8), torch.empty(shape[:-1]))

    @staticmethod
    def of(values: Tensor, scale: Tensor, rows: int) -> Int8Weight:
        """The weight of these tensors."""
        return Int8Weight(values, scale)

    at = expert_of
    floats = scaled_floats
    blocks = scaled_blocks
    store = store_rows

    def experts(
        self, x: Float[Tensor, "n h"], others: Sequence[Any], groups: Groups, each: int
    ) -> Tensor | None:
        """See ops/linear.py."""
        if not in_c("int8 experts", x):
            return None
        weights = (self, *others)
        values = [weight.values for weight in weights]
        return tile_int8_experts(x, groups, values, [weight.scale for weight in weights])

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
        """See ops/linear.py; rows are rounded once for all matrices, after the activation."""
        weights = (self, *others)
        if in_c("int8 linear", x):
            return kernels.int8_linear(
                x, weights, bias=bias, activation=activation, groups=groups, dtype=dtype
            )
        steps, scale = Int8Weight.pack(activated(x.float(), activation))
        parts = [(steps, ())] if groups is None else split_rows(steps, groups)
        if groups is not None and groups.tokens is not None:
            scale = scale[groups.tokens]
        outs = [
            torch.cat([_integers(part, *weight.at(expert)) for part, expert in parts])
            for weight in weights
        ]
        out = torch.cat(outs, dim=1).mul_(scale[:, None])
        return (out if bias is None else out.add_(bias)).to(dtype)


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


def _integers(
    steps: Int8[Tensor, "n i"], values: Int8[Tensor, "o i"], scale: Float[Tensor, " o"]
) -> Float[Tensor, "n o"]:
    """Return steps @ values.T * scale, in integers as long as possible."""
    if has_int_matmul(steps.device.type):
        return aten._int_mm(steps, values.t()) * scale
    rows = max(1, DEQUANTIZE_NUMBERS // values.shape[1])
    product = [F.linear(steps.float(), part.float()) for part in values.split(rows)]
    return torch.cat(product, dim=1) * scale


def pack_int8_ref(weight: Float[Tensor, "*lead i"]) -> Int8Weight:
    """The plain twin of `Int8Weight.pack`: one row after the other."""
    rows = weight.float().flatten(0, -2)
    scales = [max(float(row.abs().max()), 127e-30) / 127 for row in rows]
    steps = [(row / scale).round() for row, scale in zip(rows, scales, strict=True)]
    return Int8Weight(
        torch.stack(steps).to(torch.int8).view(weight.shape),
        torch.tensor(scales, device=weight.device).view(weight.shape[:-1]),
    )


def int8_linear_ref(
    x: Float[Tensor, "*lead i"],
    weight: Int8Weight,
    bias: Float[Tensor, " o"] | None = None,
    *,
    activation: str = "none",
) -> Float[Tensor, "*lead o"]:
    """The plain twin of a product: both sides as floats, one float64 product."""
    rounded = pack_int8_ref(activated(x.float(), activation)).floats()
    out = rounded.double() @ weight.floats().double().T
    return (out if bias is None else out + bias).to(x.dtype)
