"""What the kinds of held weights share: ops/int8.py, float8.py and int4.py, by name in kinds.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

W = TypeVar("W", bound=Any)
DEQUANTIZE_NUMBERS = 2**23
"""Most weights that are held as floats at a time: 32 MiB in float32."""


def activated(x: Float[Tensor, "*lead i"], activation: str) -> Float[Tensor, "*lead w"]:
    """Activations as they are multiplied; "swiglu": silu(gate) * up of rows that hold both."""
    if activation == "none":
        return x
    assert activation == "swiglu", activation
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def row_scale(weight: Float[Tensor, "*lead i"], most: float) -> Float[Tensor, "*lead"]:
    """What takes the largest number of each row to `most`."""
    largest = torch.maximum(weight.amax(dim=-1), weight.amin(dim=-1).neg_())
    return largest.div_(most).clamp_(min=1e-30)


def expert_of(weight: W, index: int | tuple[int, ...]) -> W:
    """Views of one expert's tensors; () is the whole. `at` of every kind."""
    return weight._replace(values=weight.values[index], scale=weight.scale[index])


def scaled_rows(
    values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead i"]:
    """The floats that values with a scale per row stand for."""
    return (values.float() * scale[..., None]).to(dtype)


def scaled_floats(weight: Any) -> Tensor:
    """`floats` of a kind with a scale per row."""
    return scaled_rows(weight.values, weight.scale)


def scaled_blocks(weight: Any, dtype: torch.dtype) -> Iterable[Tensor]:
    """`blocks` of a kind with a scale per row."""
    count = max(1, DEQUANTIZE_NUMBERS // weight.values.shape[1])
    parts = zip(weight.values.split(count), weight.scale.split(count), strict=True)
    return (scaled_rows(*part, dtype) for part in parts)


def store_rows(weight: Any, part: Any, row: int) -> None:
    """`store` of a kind with a scale per row."""
    weight.values[row : row + len(part.values)] = part.values
    weight.scale[row : row + len(part.scale)] = part.scale
