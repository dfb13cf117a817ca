"""The processor's cores that this process may use, and what its control group says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def read_or_empty(file: Path) -> str:
    """A file of the system, empty where there is none."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""
