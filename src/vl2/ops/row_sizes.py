"""Numbers of rows from a short list, for products whose every new shape costs.

On a CPU with AMX, oneDNN compiles a bfloat16 product for its shape: 1 to 2 ms, and a megabyte that
is kept. Prompts have as many lengths as there are, so rows of zeros fill them up to few sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

STEPS_PER_OCTAVE = 4
SMALLEST = 16


def next_size(rows: int) -> int:
    """The next of the sizes 16, 20, 24, 28, 32, 40 ...: at most a quarter more than `rows`."""
    size = SMALLEST
    while size < rows:
        octave = 1 << (size.bit_length() - 1)
        size += max(1, octave // STEPS_PER_OCTAVE)
    return size


def few_sizes(x: Tensor) -> bool:
    """Whether x goes into products whose shapes must be few: in inference on such a CPU."""
    plain = x.device.type == "cpu" and x.dtype == torch.bfloat16
    plain = plain and not torch.compiler.is_compiling()  # it cannot trace the question below
    return plain and torch.is_inference_mode_enabled() and torch.cpu._is_amx_tile_supported()


def filled_up(x: Float[Tensor, "n i"]) -> Float[Tensor, "m i"]:
    """x, where sizes must be few with rows of zeros up to the next size."""
    return F.pad(x, (0, 0, 0, next_size(len(x)) - len(x))) if few_sizes(x) else x
