"""GELU, SiLU and SwiGLU; training in bfloat16 on a CPU looks the first two up."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.native import small, training


def gelu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """GELU in its tanh form; the same bits either way."""
    return training.activate(x, "gelu") if in_c("activations", x) else F.gelu(x, approximate="tanh")


def silu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """X times its sigmoid; the same bits either way."""
    return training.activate(x, "silu") if in_c("activations", x) else F.silu(x)


def swiglu(
    gate: Float[Tensor, "*lead w"], up: Float[Tensor, "*lead w"]
) -> Float[Tensor, "*lead w"]:
    """silu(gate) * up; in C it is rounded once."""
    return small.swiglu(gate, up) if in_c("SwiGLU", gate, up) else silu(gate) * up
