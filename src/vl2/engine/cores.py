"""What this process really has of the processor: threads for its cores, products in bfloat16.

PyTorch counts the machine's cores. In a container that may use two of sixty-four, sixty-four
threads wait for each other in every small product.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    linux = sys.platform == "linux"  # elsewhere Python knows no affinity
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    quota = _core_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def _core_quota() -> float | None:
    """Cores that the control group grants, version 2 or 1; None without a limit."""
    limit = read_or_empty(CGROUP / "cpu.max").split()
    if len(limit) == 2 and limit[0] != "max":
        return int(limit[0]) / int(limit[1])
    quota = read_or_empty(CGROUP / "cpu/cpu.cfs_quota_us").strip()
    period = read_or_empty(CGROUP / "cpu/cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


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


def read_or_empty(file: Path) -> str:
    """A file of the system, empty where there is none."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def emulates_bfloat16() -> bool:
    """Whether this CPU has no products in bfloat16 of its own: they are slower than in float32.

    Known of x86 alone, where AMX and AVX512-BF16 have them; of others it is not said.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
