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
        self.master = master
        self.module: M = copy.deepcopy(master)
        names = dict(self.module.named_parameters())
        for name, parameter in names.items():
            if not name.endswith(FULL_PRECISION):
                parameter.data = parameter.data.to(torch.bfloat16)
        for prefix, part in master.named_modules():
            twin = self.module.get_submodule(prefix)
            for name, buffer in part._buffers.items():
                twin._buffers[name] = buffer
        masters = dict(master.named_parameters())
        self._frozen = [(p, masters[n]) for n, p in names.items() if not p.requires_grad]
        self._trained = [(p, masters[n]) for n, p in names.items() if p.requires_grad]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the master's weights; called before each step, since a run may have resumed."""
        for twin, master in (*self._trained, *self._frozen):
            twin.copy_(master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the twin's gradients to the master's and forget them; called once per micro batch."""
        for twin, master in self._trained:
            if twin.grad is None:
                continue
            if master.grad is None:
                master.grad = twin.grad.to(master.dtype, copy=True)
            else:
                master.grad += twin.grad
            twin.grad = None
