"""What NVIDIA cards can do, by compute capability: products in bfloat16, of experts, in float8.

PyTorch calls AMD's cards CUDA, too, and their numbers look alike (an MI300 is 9.4): they have none
of these products here and go the plain way, which every card can.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

EMPTY_GROUPS_UNSET = 10
"""Major compute capability on which PyTorch (2.13) leaves the gradient of the weights of experts
without tokens unset, and sometimes NaN: pytorch#172439, pytorch#193633."""
GROUPS_ON_CARD = (9, 10)
"""Major compute capabilities whose kernel reads the sizes of groups itself, in bfloat16; elsewhere
PyTorch's (2.13) grouped matmul is a loop of the host, which waits for them."""


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """(major, minor) of an NVIDIA card; None for every other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16: all but NVIDIA's cards below 8.0 (Volta, Turing)."""
    held = compute_capability(device)
    return held is None or held >= (8, 0)


def has_grouped_matmul(x: Float[Tensor, "n h"], gate: Float[Tensor, "e i h"]) -> bool:
    """Whether PyTorch has a right grouped matmul for these: CPU, or CUDA from 8.0.

    Its kernels want rows of a multiple of 16 bytes, which every released width is, and on a card
    at least one row (torchtitan#1166). Where the gradient of experts without tokens is wrong there
    is none going backward.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in gate.shape[1:])
    if not aligned or x.device.type == "cpu":
        return aligned
    held = compute_capability(x.device)
    if held is None or held < (8, 0) or len(x) == 0:
        return False
    return not (held[0] == EMPTY_GROUPS_UNSET and torch.is_grad_enabled())


def groups_on_card(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a grouped matmul of these runs without the host, so that a CUDA graph can hold it."""
    held = compute_capability(device)
    return held is not None and held[0] in GROUPS_ON_CARD and dtype == torch.bfloat16
