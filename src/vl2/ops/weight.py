"""Weights in int8, float8 and int4: how they are held, made and read.

int8, float8: one row-major copy with a float32 scale per output row. int4: unsigned nibbles with a
bfloat16 scale and zero point per group along the row. Stacked experts carry a leading axis in every
tensor. Each kind answers for itself, so that nobody asks which it is; products with them are in
ops/held.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

INT4_ROWS = 64
"""Output rows that are packed together: byte j of a block holds rows j (low) and j + 32 (high)."""
INT4_GROUPS = (128, 64, 32)
"""Lengths of a group that the kernel knows, best first."""
DEQUANTIZE_NUMBERS = 2**23
"""Most weights that are held as floats at a time: 32 MiB in float32."""
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MOST = 448.0
"""The largest number of it."""


class Int8Weight(NamedTuple):
    """A matrix, or one per expert, as values * scale[..., None]."""

    values: Tensor  # int8 [*experts, out, in]
    scale: Tensor  # float32 [*experts, out]
    kind = "int8"
    through_float32 = True

    @staticmethod
    def pack(weight: Tensor) -> Int8Weight:
        """The nearest of a float matrix, or stack of them."""
        return quantize_int8(weight)

    @staticmethod
    def empty(*shape: int) -> Int8Weight:
        """Unset tensors for a weight of this shape."""
        return Int8Weight(torch.empty(shape, dtype=torch.int8), torch.empty(shape[:-1]))

    def floats(self) -> Tensor:
        """The float32 numbers that it stands for."""
        return dequantize_rows(self)

    def blocks(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """Rows of a matrix as floats, at most `DEQUANTIZE_NUMBERS` at a time."""
        return _row_blocks(self, dtype)

    def store(self, part: QuantWeightData, row: int) -> None:
        """Copy rows into a matrix from `row` on."""
        _store_rows(self, part, row)


class Float8Weight(NamedTuple):
    """A matrix, or one per expert, as values * scale[..., None]; also rows of activations."""

    values: Tensor  # float8 (e4m3) [*experts, out, in]
    scale: Tensor  # float32 [*experts, out]
    kind = "float8"
    through_float32 = False

    @staticmethod
    def pack(weight: Tensor) -> Float8Weight:
        """The nearest of a float matrix, or stack of them."""
        return quantize_float8(weight)

    @staticmethod
    def empty(*shape: int) -> Float8Weight:
        """Unset tensors for a weight of this shape."""
        return Float8Weight(torch.empty(shape, dtype=FLOAT8), torch.empty(shape[:-1]))

    def floats(self) -> Tensor:
        """The float32 numbers that it stands for."""
        return dequantize_rows(self)

    def blocks(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """Some rows of a matrix as floats at a time."""
        return _row_blocks(self, dtype)

    def store(self, part: QuantWeightData, row: int) -> None:
        """Copy rows into a matrix from `row` on."""
        _store_rows(self, part, row)


class Int4Weight(NamedTuple):
    """A matrix, or one per expert, as (nibble - 8) * scale + zero; rows are padded to whole blocks.

    The layout is that of PyTorch's kernel on CPUs with AVX-512, so that files need no repacking.
    """

    values: Tensor  # uint8 [*experts, blocks, in, 32]
    scale: Tensor  # bfloat16 [*experts, groups, blocks * 64, 2]: scale, zero
    kind = "int4"
    through_float32 = False

    @staticmethod
    def pack(weight: Tensor) -> Int4Weight:
        """The nearest of a float matrix, or stack of them, whose rows a group divides."""
        return quantize_int4(weight)

    @staticmethod
    def empty(*shape: int) -> Int4Weight:
        """Unset tensors for a weight of this shape."""
        *lead, out, width = shape
        group, blocks = int4_group(width), -(-out // INT4_ROWS)
        assert group is not None
        values = torch.empty(*lead, blocks, width, INT4_ROWS // 2, dtype=torch.uint8)
        scale = torch.empty(*lead, width // group, blocks * INT4_ROWS, 2, dtype=torch.bfloat16)
        return Int4Weight(values, scale)

    def floats(self) -> Tensor:
        """The float32 numbers that it stands for, padded rows included."""
        return dequantize_int4(self)

    def blocks(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """Some rows of a matrix as floats at a time, padded rows included."""
        count = max(1, DEQUANTIZE_NUMBERS // (INT4_ROWS * self.values.shape[1]))
        scales = self.scale.split(count * INT4_ROWS, dim=1)
        parts = zip(self.values.split(count), scales, strict=True)
        return (dequantize_int4(Int4Weight(*part), dtype) for part in parts)

    def store(self, part: QuantWeightData, row: int) -> None:
        """Copy rows into a matrix from `row` on, which is a multiple of a block."""
        block, count = row // INT4_ROWS, len(part.values)
        self.values[block : block + count] = part.values
        self.scale[:, row : row + count * INT4_ROWS] = part.scale


def _store_rows(target: Int8Weight | Float8Weight, part: QuantWeightData, row: int) -> None:
    target.values[row : row + len(part.values)] = part.values
    target.scale[row : row + len(part.scale)] = part.scale


def _row_blocks(weight: Int8Weight | Float8Weight, dtype: torch.dtype) -> Iterable[Tensor]:
    count = max(1, DEQUANTIZE_NUMBERS // weight.values.shape[1])
    parts = zip(weight.values.split(count), weight.scale.split(count), strict=True)
    return (dequantize_rows(weight._replace(values=v, scale=s), dtype) for v, s in parts)


QuantWeightData = Int8Weight | Float8Weight | Int4Weight
KINDS: dict[str, type[QuantWeightData]] = {
    "int8": Int8Weight,
    "float8": Float8Weight,
    "int4": Int4Weight,
}
"""What holds a weight, by the name of its scheme."""
W = TypeVar("W", bound=Int8Weight | Float8Weight | Int4Weight)


def at_expert(weight: W, index: int | tuple[int, ...]) -> W:
    """Views of one expert's tensors; () is the whole."""
    return weight._replace(values=weight.values[index], scale=weight.scale[index])


def quantize_int8(weight: Float[Tensor, "*lead i"]) -> Int8Weight:
    """Nearest of 255 steps between +-max of each row; an all-zero row keeps zeros."""
    weight = weight.float()
    scale = _row_scale(weight, 127)
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


def _row_scale(weight: Float[Tensor, "*lead i"], most: float) -> Float[Tensor, "*lead"]:
    """What takes the largest number of each row to `most`."""
    largest = torch.maximum(weight.amax(dim=-1), weight.amin(dim=-1).neg_())
    return largest.div_(most).clamp_(min=1e-30)


def dequantize_rows(
    weight: Int8Weight | Float8Weight, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead i"]:
    """The floats that a weight with a scale per row stands for."""
    return (weight.values.float() * weight.scale[..., None]).to(dtype)


def quantize_float8(weight: Float[Tensor, "*lead i"]) -> Float8Weight:
    """Nearest float8 of each number, rows scaled to +-448; an all-zero row keeps zeros."""
    weight = weight.float()
    scale = _row_scale(weight, FLOAT8_MOST)
    return Float8Weight((weight / scale[..., None]).to(FLOAT8), scale)


def quantize_float8_ref(weight: Float[Tensor, "*lead i"]) -> Float8Weight:
    """The plain twin of `quantize_float8`: the nearest of all 254 finite float8, searched for."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    every = every[every.isfinite()]
    rows = weight.float().flatten(0, -2)
    scale = torch.tensor([max(float(row.abs().max()) / FLOAT8_MOST, 1e-30) for row in rows])
    shares = rows / scale[:, None]
    nearest = [every[(share[:, None] - every).abs().argmin(dim=1)] for share in shares]
    values = torch.stack(nearest).to(FLOAT8)
    return Float8Weight(values.view(weight.shape), scale.view(weight.shape[:-1]))


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
