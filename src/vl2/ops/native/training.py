"""GELU, SiLU and softmax with their gradients for training in bfloat16 on a CPU: training.c.

The twins in PyTorch are where these are called: ops/activations.py and ops/attention.py. Compiled
code leaves them out: it was not faster with them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Bool
from torch import Tensor

from vl2.ops.native.kernels import ready


def activate(x: BFloat16[Tensor, "*any"], name: str) -> BFloat16[Tensor, "*any"]:
    """Every number through one of `TABLES`."""
    return _Activated.apply(x, name)


def scaled_softmax(
    x: BFloat16[Tensor, "*lead t s"], scale: float, mask: Bool[Tensor, "#b 1 t s"] | None
) -> BFloat16[Tensor, "*lead t s"]:
    """Rows of `scale` x to shares.

    Args:
        x: scores; with a mask they are [b, h, t, s].
        scale: positive.
        mask: True where a share is left: at least once in each row.
    """
    return _Shares.apply(x, scale, mask)


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.name = name
        out = torch.empty_like(x)
        table = TABLES[name]()[0].data_ptr()
        ready().activate(x.data_ptr(), x.numel(), table, out.data_ptr(), torch.get_num_threads())
        return out

    @staticmethod
    def backward(ctx: Any, *changes: Tensor) -> tuple[Tensor, None]:
        [x], change = ctx.saved_tensors, changes[0].contiguous()
        out = torch.empty_like(x)
        ready().activate_backward(
            x.data_ptr(),
            change.data_ptr(),
            x.numel(),
            TABLES[ctx.name]()[1].data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out, None


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, mask: Tensor | None) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        heads, queries = x.shape[1:3] if mask is not None else (1, 1)
        mask = None if mask is None else mask.contiguous()
        ready().softmax(
            x.data_ptr(),
            *_rows(x),
            scale,
            None if mask is None else mask.data_ptr(),
            heads,
            queries,
            0 if mask is None or len(mask) == 1 else mask.stride(0),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *changes: Tensor) -> tuple[Tensor, None, None]:
        [shares], change = ctx.saved_tensors, changes[0].contiguous()
        out = torch.empty_like(shares)
        ready().softmax_backward(
            shares.data_ptr(),
            change.data_ptr(),
            *_rows(shares),
            ctx.scale,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out, None, None


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _all_numbers() -> tuple[Tensor, Tensor]:
    """Every bfloat16 number in the order of their bits, and as many ones, in float32."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return x, torch.ones_like(x)


@cache
def _gelu_table() -> tuple[Tensor, Tensor]:
    x, ones = _all_numbers()
    slopes = torch.ops.aten.gelu_backward(ones, x, approximate="tanh")
    return F.gelu(x, approximate="tanh").bfloat16(), slopes


@cache
def _silu_table() -> tuple[Tensor, Tensor]:
    x, ones = _all_numbers()
    return F.silu(x).bfloat16(), torch.ops.aten.silu_backward(ones, x)


TABLES = {"gelu": _gelu_table, "silu": _silu_table}
"""GELU (in its tanh form) and SiLU of every bfloat16 number, and their slopes in float32."""
