"""Weights in int4, a bfloat16 scale and zero point per group of a row, and products with them.

Activations are not rounded. Few rows meet nibbles, in C or in PyTorch's kernel; many rows meet
weights that are dequantised some at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.backend import INT4_KERNEL_ROWS, in_c
from vl2.ops.groups import Groups, split_rows
from vl2.ops.native import kernels
from vl2.ops.native.tiles import tile_experts, tile_linear
from vl2.ops.weight import DEQUANTIZE_NUMBERS, activated, expert_of

INT4_ROWS = 64
"""Output rows that are packed together: byte j of a block holds rows j (low) and j + 32 (high)."""
INT4_GROUPS = (128, 64, 32)
"""Lengths of a group that the kernel knows, best first."""

log = get_logger(__name__)
aten = torch.ops.aten


class Int4Weight(NamedTuple):
    """A matrix, or one per expert, as (nibble - 8) * scale + zero; rows are padded to whole blocks.

    The layout is that of PyTorch's kernel on CPUs with AVX-512, so that files need no repacking.
    """

    values: Tensor  # uint8 [*experts, blocks, in, 32]
    scale: Tensor  # bfloat16 [*experts, groups, blocks * 64, 2]: scale, zero
    rows: int
    kind = "int4"
    through_float32 = False
    joins = False

    @staticmethod
    def pack(weight: Float[Tensor, "*lead o i"]) -> Int4Weight:
        """Nearest of 16 steps between the least and the largest weight of each group.

        Raises:
            ValueError: no group divides the rows.
        """
        group, rows = _group(weight), weight.shape[-2]
        weight = F.pad(weight.float(), (0, 0, 0, -rows % INT4_ROWS))
        parts = weight.unflatten(-1, (-1, group))  # (*, O, G, g)
        scale, zero = _scales(parts)
        steps = ((parts - zero[..., None]) / scale[..., None]).round_().add_(8).clamp_(0, 15)
        steps = steps.to(torch.uint8).flatten(-2).unflatten(-2, (-1, INT4_ROWS)).transpose(-1, -2)
        low, high = steps.chunk(2, dim=-1)  # (*, blocks, I, 32)
        both = torch.stack((scale, zero), dim=-1).transpose(-3, -2)
        scales = both.to(torch.bfloat16).contiguous()
        return Int4Weight((low | (high << 4)).contiguous(), scales, rows)

    @staticmethod
    def empty(*shape: int) -> Int4Weight:
        """Unset tensors for a weight of this shape."""
        *lead, out, width = shape
        group, blocks = int4_group(width), -(-out // INT4_ROWS)
        assert group is not None
        values = torch.empty(*lead, blocks, width, INT4_ROWS // 2, dtype=torch.uint8)
        scale = torch.empty(*lead, width // group, blocks * INT4_ROWS, 2, dtype=torch.bfloat16)
        return Int4Weight(values, scale, out)

    @staticmethod
    def of(values: Tensor, scale: Tensor, rows: int) -> Int4Weight:
        """The weight of these tensors."""
        return Int4Weight(values, scale, rows)

    at = expert_of

    def experts(
        self, x: Float[Tensor, "n h"], others: Sequence[Any], groups: Groups, each: int
    ) -> Tensor | None:
        """See ops/linear.py; rows of padding would be in the way."""
        weights = (self, *others)
        if any(weight.rows < weight.scale.shape[-2] for weight in weights):
            return None
        if not in_c("int4 experts", x, rows=each):
            return None
        values = [weight.values for weight in weights]
        return tile_experts(x, groups, values, [weight.scale for weight in weights])

    def floats(self) -> Tensor:
        """The float32 numbers that it stands for."""
        return _floats(self.values, self.scale)[..., : self.rows, :]

    def blocks(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """Some rows of a matrix as floats at a time, padded rows included."""
        count = max(1, DEQUANTIZE_NUMBERS // (INT4_ROWS * self.values.shape[1]))
        scales = self.scale.split(count * INT4_ROWS, dim=1)
        parts = zip(self.values.split(count), scales, strict=True)
        return (_floats(*part, dtype) for part in parts)

    def store(self, part: Any, row: int) -> None:
        """Copy rows into a matrix from `row` on, which is a multiple of a block."""
        block, count = row // INT4_ROWS, len(part.values)
        self.values[block : block + count] = part.values
        self.scale[:, row : row + count * INT4_ROWS] = part.scale

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
        """See ops/linear.py."""
        x = activated(x, activation)
        outs = [_times(x, weight, groups, tokens).to(dtype) for weight in (self, *others)]
        out = torch.cat(outs, dim=1) if others else outs[0]
        return out if bias is None else out + bias


def _times(
    x: Float[Tensor, "n i"], weight: Int4Weight, groups: Groups | None, tokens: int | None
) -> Float[Tensor, "m o"]:
    """Rows times one matrix, or each group times that of its expert."""
    if groups is None and in_c("int4 linear of many", x):
        out = tile_linear(x, (weight.values,), (weight.scale,))
    elif in_c("int4 linear", x, rows=tokens):
        out = kernels.int4_linear(x, weight.values, weight.scale, groups=groups)
    elif groups is not None:
        parts = split_rows(x, groups)
        return torch.cat([_times(rows, weight.at(e), None, None).to(x.dtype) for rows, e in parts])
    elif len(x) <= INT4_KERNEL_ROWS and has_int4_kernel(x.device.type):
        length, out_rows, _ = weight.scale.shape
        group, packed = x.shape[1] // length, weight.values.view(out_rows, -1)
        out = aten._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, group, weight.scale)
    else:
        out = torch.cat([F.linear(x, part) for part in weight.blocks(x.dtype)], dim=1)
    return out[:, : weight.rows]


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


def int4_group(width: int) -> int | None:
    """Length of the groups of a row of `width`, or None where no length divides it."""
    return next((group for group in INT4_GROUPS if width % group == 0), None)


def _group(weight: Tensor) -> int:
    group = int4_group(weight.shape[-1])
    if group is None:
        raise ValueError(
            f"rows of {weight.shape[-1]} weights cannot be held in int4: expected a multiple of "
            f"{INT4_GROUPS[-1]}; use int8"
        )
    return group


def _scales(parts: Float[Tensor, "*lead g"]) -> tuple[Tensor, Tensor]:
    """Step and zero point of each group, already rounded to bfloat16 as they are kept.

    A step is at least what the rounding of the zero point may shift.
    """
    least, most = parts.aminmax(dim=-1)
    largest = torch.maximum(least.abs(), most.abs())
    scale = torch.maximum((most - least) / 15, largest * 2**-9).clamp_(min=1e-30)
    scale = scale.bfloat16().float()
    return scale, (least + 8 * scale).bfloat16().float()


def _floats(
    values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead o i"]:
    """The floats of nibbles, padded rows included."""
    steps = torch.cat((values & 15, values >> 4), dim=-1).transpose(-1, -2).flatten(-3, -2)
    group = values.shape[-2] // scale.shape[-3]
    scale, zero = scale.transpose(-3, -2).float().unbind(-1)  # (*, O, G)
    parts = steps.to(torch.float32).sub_(8).unflatten(-1, (-1, group))
    return parts.mul_(scale[..., None]).add_(zero[..., None]).flatten(-2).to(dtype)


def pack_int4_ref(weight: Float[Tensor, "*lead o i"]) -> Int4Weight:
    """The plain twin of `Int4Weight.pack`: one group and one byte after the other."""
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
                scale, zero = _scales(part)
                scales[e, g, row] = torch.stack((scale, zero))
                steps = (((part - zero) / scale).round() + 8).clamp(0, 15).to(torch.uint8)
                values[e, block, span, place % 32] |= steps << (4 * (place // 32))
    scales = scales.bfloat16().view(*lead, *scales.shape[1:])
    return Int4Weight(values.view(*lead, *values.shape[1:]), scales, out)


def int4_linear_ref(
    x: Float[Tensor, "*lead i"], weight: Int4Weight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """The plain twin of a product: dequantised whole, one product."""
    return F.linear(x, weight.floats().to(x.dtype), None if bias is None else bias.to(x.dtype))
