"""The library's products on tiles of AMX: linear layers and experts of many rows.

Matrices are bfloat16 [out, in], read where they lie, or the nibbles of `Int4Weight`, whose scales
are given then. When the functions run is in ops/backend.py; the twins in PyTorch are in
ops/stored.py, int4.py and moe.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from vl2.ops.groups import Groups
from vl2.ops.native.kernels import DTYPES, Matrix, check, check_width, ready

Scales = Sequence[Tensor] | None


def tile_linear(
    x: BFloat16[Tensor, "n i"],
    matrices: Sequence[Tensor],
    scales: Scales = None,
    *,
    bias: Float[Tensor, " o"] | None = None,
) -> BFloat16[Tensor, "n total"]:
    """Rows times matrices, rounded to bfloat16 once; the results stand side by side.

    Args:
        x: activations.
        matrices: contiguous.
        scales: of int4, whose padded rows are in the result.
        bias: of the only matrix.

    Raises:
        ValueError: a matrix has another width.
    """
    x = x.contiguous()
    count, width = x.shape
    shift = None if bias is None else bias.float().contiguous()
    for matrix in matrices:
        check_width(matrix.shape[-1 if scales is None else -2], width)
    found = _array(matrices, scales, _rows(matrices if scales is None else scales), shift)
    total = sum(one.out for one in found)
    out = torch.empty((count, total), dtype=torch.bfloat16)
    failed = ready().tile_linear(
        x.data_ptr(),
        count,
        width,
        found,
        len(found),
        scales is not None,
        _group(width, scales),
        out.data_ptr(),
        total,
        torch.get_num_threads(),
    )
    check(failed)
    return out


def tile_experts(
    x: BFloat16[Tensor, "n h"], groups: Groups, matrices: Sequence[Tensor], scales: Scales = None
) -> BFloat16[Tensor, "m h"]:
    """Each row of the groups through its expert's SwiGLU; the hidden layer is rounded to bfloat16.

    Args:
        x: activations.
        groups: which rows meet which expert, all experts in their order.
        matrices: gate, up and down of all experts, contiguous.
        scales: of int4; no row of a matrix is padding.
    """
    x = x.contiguous()
    found = _array(matrices, scales, _rows(matrices if scales is None else scales))
    width, inner = found[2].out, found[0].out
    assert groups.tokens is not None
    out = torch.empty((len(groups.tokens), width), dtype=torch.bfloat16)
    failed = ready().tile_experts(
        x.data_ptr(),
        groups.tokens.data_ptr(),
        groups.ends.data_ptr(),
        len(groups.ends),
        found,
        scales is not None,
        _group(width, scales),
        _group(inner, None if scales is None else scales[2:]),
        width,
        inner,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def tile_int8_experts(
    x: Float[Tensor, "n h"], groups: Groups, matrices: Sequence[Tensor], scales: Sequence[Tensor]
) -> Float[Tensor, "m h"]:
    """Each row of the groups through its expert's SwiGLU, rounded before each product.

    The same bits as `kernels.int8_linear` for gate and up, and once more for down.

    Args:
        x: float32 or bfloat16, others are cast.
        groups: which rows meet which expert, all experts in their order.
        matrices: gate, up and down of all experts in int8, contiguous.
        scales: of their rows.
    """
    x = (x if x.dtype in DTYPES else x.float()).contiguous()
    found = _array(matrices, scales, _rows(matrices))
    assert groups.tokens is not None
    out = torch.empty((len(groups.tokens), x.shape[1]))
    failed = ready().int8_experts(
        x.data_ptr(),
        DTYPES.index(x.dtype),
        *x.shape,
        groups.tokens.data_ptr(),
        groups.ends.data_ptr(),
        len(groups.ends),
        found,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def _array(
    matrices: Sequence[Tensor], scales: Scales, rows: Sequence[int], bias: Tensor | None = None
) -> ctypes.Array[Matrix]:
    """Matrices of so many rows, padded ones included, as the C files take them."""
    shift = None if bias is None else bias.data_ptr()
    made = (Matrix * len(matrices))()
    for place, matrix in enumerate(matrices):
        scale = None if scales is None else scales[place].data_ptr()
        made[place] = Matrix(matrix.data_ptr(), scale, shift, rows[place])
    return made


def _rows(matrices: Sequence[Tensor]) -> list[int]:
    """Rows of each, of which the scales of int4 have as many as its matrix."""
    return [matrix.shape[-2] for matrix in matrices]


def _group(width: int, scales: Scales) -> int:
    """Inputs that share a scale."""
    return 1 if scales is None else width // scales[0].shape[-3]
