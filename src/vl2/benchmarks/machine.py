"""What this machine offers: cores that are really free to use, memory, the processor's name."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from vl2.core_count import CGROUP, available_cores, read_or_empty
from vl2.ops.native import kernels

PROC = Path("/proc")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", read_or_empty(PROC / "meminfo"))
    free = int(found[1]) * 1024 if found else None
    limit, used = (
        read_or_empty(CGROUP / name).strip() for name in ("memory.max", "memory.current")
    )
    if limit.isdecimal() and used.isdecimal():
        left = int(limit) - int(used)
        return left if free is None else min(free, left)
    return free


def resident_bytes(*, peak: bool = True) -> int | None:
    """Resident memory of this process: the most so far, or now; None on Windows.

    The kernel's mark is per program, that of `getrusage` would include what started it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB" if peak else r"VmRSS:\s+(\d+) kB", _status())
    if found:
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - Windows lacks it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gib(count: int | None) -> float | None:
    """Bytes in GiB, as reports show them."""
    return None if count is None else round(count / 2**30, 3)


def describe_machine() -> dict[str, Any]:
    """Facts that a figure of speed needs beside it."""
    memory = available_memory()
    return {
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
        "c_functions": kernels.describe(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_available_gib": gib(memory),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    found = re.search(r"model name\s*:\s*(.+)", read_or_empty(PROC / "cpuinfo"))
    return found[1].strip() if found else platform.processor() or platform.machine()


def has_amx() -> bool:
    """Whether the processor multiplies int8 tiles."""
    return torch.cpu._is_amx_tile_supported()


def _status() -> str:
    return read_or_empty(PROC / "self/status")
