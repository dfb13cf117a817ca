"""A card that is not there: tensors without data, and what would make the host wait for them.

The meta device stands for it. Its tensors have shapes alone, so that a copy to the host, a number
read from a tensor, and a shape that depends on numbers fail by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vl2.ops.cards import groups_on_card

WAITS = ("_local_scalar_dense", "item", "nonzero", "bincount", "unique", "masked_select", "equal")
"""Operations whose result, or its shape, the host has to wait for."""


class HostWaits(RuntimeError):
    """The host would have to wait for the card."""


WAITING = (HostWaits, RuntimeError, NotImplementedError)
"""What meta tensors raise, too."""


class NeverWait(TorchDispatchMode):
    """Refuses operations that read from the card, and remembers the names of all."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        self.names.append(name)
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        if name in WAITS and any(tensor.device.type != "cpu" for tensor in tensors):
            raise HostWaits(name)
        if name == "_grouped_mm" and not groups_on_card(args[0].device, args[0].dtype):
            raise HostWaits("_grouped_mm reads its sizes on this card")
        return func(*args, **kwargs)


@contextmanager
def absent_card() -> Iterator[NeverWait]:
    """Tensors that are made inside are on the card; what reads from one raises `WAITING`."""
    with torch.device("meta"), NeverWait() as mode:
        yield mode
