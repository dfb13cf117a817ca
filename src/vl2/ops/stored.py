"""Products in the dtype of the activations with weights that stay as a file holds them.

Released checkpoints hold bfloat16. Widening a bfloat16 number to float32 changes nothing, so under
float32 these are the products of a float32 load, from half the bytes. Few rows on a CPU go through
C, which widens a weight in a register; many rows meet weights that are widened some at a time.
Under bfloat16 nothing is widened: rows go to tiles of AMX, where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.native import kernels
from vl2.ops.native.tiles import tile_linear
from vl2.ops.row_sizes import filled_up
from vl2.ops.weight import DEQUANTIZE_NUMBERS


def stored_linears(
    x: Float[Tensor, "*lead i"],
    weights: Sequence[Float[Tensor, "_ i"]],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*lead total"]:
    """Return x @ weight.T + bias of matrices side by side, in the dtype of x.

    Args:
        x: activations.
        weights: of one dtype, which need not be that of x.
        bias: of the only matrix.
    """
    rows = x.flatten(0, -2)
    if in_c("linear on tiles", rows, *weights):
        out = tile_linear(rows, weights, bias=bias)
    elif in_c("stored linear", rows, *weights):
        out = kernels.wide_linear(rows, weights, bias=bias, dtype=x.dtype)
    else:
        outs = [_widened(rows, weight, bias) for weight in weights]
        out = torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]
    return out.unflatten(0, x.shape[:-1])


def stored_linears_ref(
    x: Float[Tensor, "*lead i"],
    weights: Sequence[Float[Tensor, "_ i"]],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*lead total"]:
    """The plain twin of `stored_linears`: one product with everything widened."""
    return F.linear(x, torch.cat(list(weights)).to(x.dtype), bias)


def _widened(
    rows: Float[Tensor, "n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "n o"]:
    """The product with a matrix of which some rows are widened at a time."""
    bias = None if bias is None else bias.to(rows.dtype)
    if weight.dtype == rows.dtype:
        return F.linear(filled_up(rows), weight, bias)[: len(rows)]
    count = max(1, DEQUANTIZE_NUMBERS // weight.shape[1])
    parts = weight.split(count)
    shifts = [None] * len(parts) if bias is None else bias.split(count)
    pairs = zip(parts, shifts, strict=True)
    outs = [F.linear(rows, part.to(rows.dtype), shift) for part, shift in pairs]
    return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]
