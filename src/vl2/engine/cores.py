"""How PyTorch uses the processor: threads for the cores of this process, products in bfloat16.

PyTorch counts the machine's cores. In a container that may use two of sixty-four, sixty-four
threads wait for each other in every small product.
"""

from __future__ import annotations

import os
import platform

import torch

from vl2.core_count import available_cores


def choose_threads(wanted: int | None) -> int:
    """Set the threads of PyTorch and return them: those asked for, OMP_NUM_THREADS, or the cores.

    Raises:
        ValueError: fewer than one.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"threads is {wanted}: expected at least 1")
    stated = os.environ.get("OMP_NUM_THREADS", "")
    threads = wanted or (int(stated) if stated.isdecimal() else 0) or available_cores()
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def emulates_bfloat16() -> bool:
    """Whether this CPU has no products in bfloat16 of its own: they are slower than in float32.

    Known of x86 alone, where AMX and AVX512-BF16 have them; of others it is not said.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
