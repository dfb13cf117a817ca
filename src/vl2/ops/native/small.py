"""The library's small functions on tensors: norms, rotary positions, attention, sums.

Each has a twin in PyTorch where it is called: ops/norm.py, rope.py, moe.py, attention.py, paged.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vl2.ops.native.kernels import DTYPES, check, check_width, ready

LANES = 16
"""What the widths of `decode_attention` are multiples of."""


def rms_norm(
    x: Float[Tensor, "*lead w"], weight: Float[Tensor, " w"], eps: float
) -> Float[Tensor, "*lead w"]:
    """Rows over the root of their mean square, in float32, cast back, times the weight.

    Args:
        x: float32 or bfloat16, as the weight.
        weight: a factor per column.
        eps: added to the mean square.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    ready().rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        DTYPES.index(x.dtype),
        x.numel() // width,
        width,
        eps,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def swiglu(
    gate: Float[Tensor, "*lead w"], up: Float[Tensor, "*lead w"]
) -> Float[Tensor, "*lead w"]:
    """silu(gate) * up, in float32, rounded once.

    Args:
        gate: float32 or bfloat16; it may be a part of wider rows.
        up: as the gate, with the same strides.
    """
    width, lead = gate.shape[-1], gate.shape[:-1]
    gate, up = gate.reshape(-1, width), up.reshape(-1, width)
    if gate.stride() != up.stride() or gate.stride(1) != 1:
        gate, up = gate.contiguous(), up.contiguous()
    out = gate.new_empty((len(gate), width))
    ready().swiglu(
        gate.data_ptr(),
        up.data_ptr(),
        DTYPES.index(gate.dtype),
        len(gate),
        width,
        gate.stride(0),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.view(*lead, width)


def rope(
    x: Float[Tensor, "b t h d"], cos: Float[Tensor, "b t d"], sin: Float[Tensor, "b t d"]
) -> Float[Tensor, "b t h d"]:
    """See `apply_rope`; the same bits.

    Args:
        x: float32 or bfloat16.
        cos: float32.
        sin: float32.
    """
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    ready().rope(
        x.data_ptr(),
        DTYPES.index(x.dtype),
        x.shape[0] * x.shape[1],
        *x.shape[2:],
        cos.data_ptr(),
        sin.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def head_linear(
    x: Float[Tensor, "n h i"], weight: Float[Tensor, "h a b"], *, turned: bool
) -> Float[Tensor, "n h o"]:
    """Each head's rows times its matrix, summed in float32: few rows.

    Args:
        x: float32 or bfloat16, as the weight.
        weight: [o, i] of every head, or if `turned` [i, o]; matrices may lie apart.
        turned: the product is x @ weight, not x @ weight.T.

    Raises:
        ValueError: the matrices have another width, or their rows are not one behind the other.
    """
    x = x.contiguous()
    rows, columns = weight.shape[1:]
    check_width(rows if turned else columns, x.shape[2])
    if weight.stride()[1:] != (columns, 1):
        raise ValueError(f"strides are {weight.stride()}: expected contiguous rows")
    out = x.new_empty((*x.shape[:2], columns if turned else rows))
    failed = ready().head_linear(
        x.data_ptr(),
        DTYPES.index(x.dtype),
        *x.shape,
        weight.data_ptr(),
        weight.stride(0),
        out.shape[2],
        turned,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def combine(
    rows: Float[Tensor, "m h"], order: Int[Tensor, " m"] | None, weights: Float[Tensor, "n k"]
) -> Float[Tensor, "n h"]:
    """See `combine_experts`: one choice after the other, where PyTorch may take another order.

    Args:
        rows: float32 or bfloat16.
        order: int64; None where rows stand in the order of the choices.
        weights: float32.
    """
    rows, weights = rows.contiguous(), weights.contiguous()
    out = torch.empty((len(weights), rows.shape[1]))
    failed = ready().combine(
        rows.data_ptr(),
        DTYPES.index(rows.dtype),
        None if order is None else order.data_ptr(),
        weights.data_ptr(),
        *weights.shape,
        rows.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def decode_attention(
    query: Float[Tensor, "n h d"],
    pool: Float[Tensor, "slots w"],
    slots: Int[Tensor, " s"],
    ends: Int[Tensor, " n"],
    *,
    scale: float,
) -> Float[Tensor, "n h d"]:
    """Attention of one token of each of n sequences, which sees all of its sequence's rows.

    Args:
        query: float32 or bfloat16, as the pool; d is a multiple of `LANES`.
        pool: a row is the keys and then the values of all key heads, which divide h.
        slots: of the rows of each sequence, one sequence behind the other.
        ends: behind the last slot of each sequence.
        scale: of the scores.
    """
    query = query.contiguous()
    count, heads, width = query.shape
    out = torch.empty_like(query)
    failed = ready().decode_attention(
        query.data_ptr(),
        pool.data_ptr(),
        DTYPES.index(query.dtype),
        heads,
        pool.shape[1] // (2 * width),
        width,
        scale,
        slots.data_ptr(),
        ends.data_ptr(),
        count,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out
