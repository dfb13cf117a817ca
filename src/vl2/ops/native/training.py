"""GELU, SiLU and softmax with their gradients for training in bfloat16 on a CPU: training.c.

The twins in PyTorch are where these are called: ops/activations.py and ops/attention.py. Compiled
code leaves them out: it was not faster with them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vl2.ops.native.kernels import available, ready


def takes(x: Tensor) -> bool:
    """Whether the functions take `x`: it is trained, in bfloat16, on a CPU, and C is there."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and available()


def _operator(name: str, schema: str) -> Any:
    """A decorator; the schema is written out, as annotations are strings here."""
    return torch.library.custom_op(f"vl2::{name}", mutates_args=(), schema=schema)


@_operator("activate", "(Tensor x, str name) -> Tensor")
def activate(x: Tensor, name: str) -> Tensor:
    """A bfloat16 tensor through one of `TABLES`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    table = TABLES[name]()[0].data_ptr()
    ready().activate(x.data_ptr(), x.numel(), table, out.data_ptr(), torch.get_num_threads())
    return out


@_operator("activate_backward", "(Tensor x, Tensor change, str name) -> Tensor")
def activate_backward(x: Tensor, change: Tensor, name: str) -> Tensor:
    """The change of `x` from that of its function."""
    x, change = x.contiguous(), change.contiguous()
    out = torch.empty_like(x)
    ready().activate_backward(
        x.data_ptr(),
        change.data_ptr(),
        x.numel(),
        TABLES[name]()[1].data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@_operator("scaled_softmax", "(Tensor x, float scale, Tensor? mask) -> Tensor")
def scaled_softmax(x: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Rows of `scale` x, a bfloat16 tensor [..., t, s], to shares.

    Args:
        x: scores; with a mask they are [b, h, t, s].
        scale: positive.
        mask: bool [b or 1, 1, t, s], True where a share is left: at least once in each row.
    """
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
    return out


@_operator("scaled_softmax_backward", "(Tensor shares, Tensor change, float scale) -> Tensor")
def scaled_softmax_backward(shares: Tensor, change: Tensor, scale: float) -> Tensor:
    """The change of `x` from that of its shares."""
    shares, change = shares.contiguous(), change.contiguous()
    out = torch.empty_like(shares)
    ready().softmax_backward(
        shares.data_ptr(),
        change.data_ptr(),
        *_rows(shares),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


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


@activate.register_fake
@activate_backward.register_fake
@scaled_softmax.register_fake
@scaled_softmax_backward.register_fake
def _like_the_first(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_input(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.name = inputs[1]


def _keep_shares(ctx: Any, inputs: tuple[Tensor, float, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.scale = inputs[1]


def _through_activation(ctx: Any, change: Tensor) -> tuple[Tensor, None]:
    return activate_backward(*ctx.saved_tensors, change, ctx.name), None


def _through_softmax(ctx: Any, change: Tensor) -> tuple[Tensor, None, None]:
    return scaled_softmax_backward(*ctx.saved_tensors, change, ctx.scale), None, None


activate.register_autograd(_through_activation, setup_context=_keep_input)
scaled_softmax.register_autograd(_through_softmax, setup_context=_keep_shares)
