"""A bfloat16 twin of a float32 module: products run on the twin, the optimiser moves the master.

Under autocast every product casts its weights anew, forward and backward. The twin's weights are
cast once per step. Its gradients are added up in float32, so that many micro batches lose nothing.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

FULL_PRECISION = ("mlp.gate.weight",)
"""Ends of names that stay float32: near ties of a router decide the choice of experts."""


class WorkingCopy(Generic[M]):
    """A module in bfloat16 whose weights follow those of `master`, its buffers are the master's."""

    def __init__(self, master: M) -> None:
        """Copy the module with rounded weights; buffers, quantised weights too, are shared."""
        self.master = master
        pairs = [(_twin(name, p), p) for name, p in master.named_parameters()]
        known: dict[int, object] = {id(buffer): buffer for buffer in master.buffers()}
        known |= {id(p): twin for twin, p in pairs}
        self.module: M = copy.deepcopy(master, known)
        self._pairs = pairs

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the master's weights; called before each step, since a run may have resumed."""
        self.module.train(self.master.training)
        for twin, master in self._pairs:
            twin.copy_(master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the twin's gradients to the master's and forget them; called once per micro batch."""
        for twin, master in self._pairs:
            if twin.grad is None:
                continue
            if master.grad is None:
                master.grad = twin.grad.to(master.dtype, copy=True)
            else:
                master.grad += twin.grad
            twin.grad = None


def _twin(name: str, parameter: nn.Parameter) -> nn.Parameter:
    """A parameter rounded to bfloat16, or a copy of one that stays in float32."""
    dtype = parameter.dtype if name.endswith(FULL_PRECISION) else torch.bfloat16
    rounded = parameter.detach().to(dtype, copy=True)
    return nn.Parameter(rounded, requires_grad=parameter.requires_grad)
