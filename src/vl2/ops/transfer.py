"""How tensors of the host come to a card without the host waiting for the card."""

from __future__ import annotations

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the host to a card by pinned memory, behind what runs there.

    A copy from other memory would wait until the card has come to it.
    """
    if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
