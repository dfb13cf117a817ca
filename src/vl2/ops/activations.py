"""GELU and SiLU; training in bfloat16 on a CPU looks them up."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.native import training


def gelu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """GELU in its tanh form; the same bits either way."""
    return training.activate(x, "gelu") if in_c("activations", x) else F.gelu(x, approximate="tanh")


def silu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """X times its sigmoid; the same bits either way."""
    return training.activate(x, "silu") if in_c("activations", x) else F.silu(x)
