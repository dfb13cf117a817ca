"""Root-mean-square norm (arXiv 1910.07467)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.native import small


def rms_norm(
    x: Float[Tensor, "*lead w"], weight: Float[Tensor, " w"], eps: float
) -> Float[Tensor, "*lead w"]:
    """Statistics in float32, cast back to the dtype of x, then the weight.

    Without gradients on a CPU it is one call into C: PyTorch's own is nine operations there, half a
    percent of a decoded token each.
    """
    if in_c("norm", x, weight):
        return small.rms_norm(x, weight, eps)
    return rms_norm_ref(x, weight, eps)


def rms_norm_ref(
    x: Float[Tensor, "*lead w"], weight: Float[Tensor, " w"], eps: float
) -> Float[Tensor, "*lead w"]:
    """The plain twin of `rms_norm`."""
    normed = F.rms_norm(x.float(), (x.shape[-1],), eps=eps)
    return normed.to(x.dtype) * weight
