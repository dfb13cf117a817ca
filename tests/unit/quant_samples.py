"""Matrices to quantise, and how far results are from what is wanted."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(out: int, width: int, *, experts: int | None = None) -> Tensor:
    """Rows of different sizes, one of them all zero."""
    shape = (out, width) if experts is None else (experts, out, width)
    weight = torch.randn(shape) * torch.logspace(-3, 1, out)[:, None]
    weight[..., out // 2, :] = 0
    return weight


def relative(found: Tensor, wanted: Tensor) -> float:
    """The error as a share of the size of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
