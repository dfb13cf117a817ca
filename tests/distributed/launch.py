"""Runs a function in several processes that form one gloo group, as torchrun would start them.

    from tests.distributed.launch import run_ranks

    def sums(start: int) -> int:
        total = torch.tensor(start + dist.get_rank())
        dist.all_reduce(total)
        return int(total)

    def test_sums():
        assert run_ranks(2, sums, 10) == [21, 21]

Each process is a fresh interpreter: no pytest, no fixtures, no shape checks, one thread. It imports
the test's module by its name, so the function stands at the top of a test module.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GRACE = 3.0  # seconds that the other ranks have to end by themselves when one failed


def run_ranks(
    n: int, function: Callable[..., Any], *args: Any, timeout: float = 90.0, group: bool = True
) -> list[Any]:
    """What `function(*args)` returns on each of n ranks.

    Args:
        n: number of processes; each has RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
        function: of the top level of a test module.
        *args: pickled, as are the results.
        timeout: seconds for all; then every process is stopped.
        group: whether the process group is there when the function starts. False leaves that to
            the function.

    Raises:
        AssertionError: a rank failed or did not end; has the traceback of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        call = (function.__module__, function.__qualname__, args, group, timeout)
        (work / "call").write_bytes(pickle.dumps(call))
        port = _free_port()
        ranks = [_start(rank, n, port, work) for rank in range(n)]
        late = _wait(ranks, timeout)
        if late or any(process.returncode for process in ranks):
            raise AssertionError(_story(ranks, late, work, timeout))
        return [pickle.loads((work / f"result{rank}").read_bytes()) for rank in range(n)]


def _start(rank: int, n: int, port: int, work: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.distributed.launch", str(work)]
    with (work / f"log{rank}").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def _wait(ranks: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    """Wait for all; the ranks that had to be stopped."""
    end = time.monotonic() + timeout
    failed = False
    while any(process.poll() is None for process in ranks) and time.monotonic() < end:
        if not failed and any(process.returncode for process in ranks):
            failed, end = True, min(end, time.monotonic() + GRACE)
        time.sleep(0.02)
    late = [rank for rank, process in enumerate(ranks) if process.poll() is None]
    for rank in late:
        ranks[rank].send_signal(signal.SIGABRT)  # faulthandler writes where it stands
    for rank in late:
        try:
            ranks[rank].wait(timeout=5)
        except subprocess.TimeoutExpired:
            ranks[rank].kill()
            ranks[rank].wait()
    return late


def _story(
    ranks: list[subprocess.Popen[bytes]], late: list[int], work: Path, timeout: float
) -> str:
    lines = []
    for rank, process in enumerate(ranks):
        if not process.returncode:
            continue
        how = f"did not end within {timeout:g} s, or {GRACE:g} s after another failed"
        how = how if rank in late else f"ended with exit code {process.returncode}"
        log = (work / f"log{rank}").read_text(encoding="utf-8", errors="replace")
        lines.append(f"rank {rank} {how}:\n{log[-6000:]}")
    return "\n".join(lines)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(work: Path) -> None:
    """One process: run the call and keep what it returns."""
    import torch
    import torch.distributed as dist

    module, name, args, group, timeout = pickle.loads((work / "call").read_bytes())
    torch.set_num_threads(1)
    function = getattr(importlib.import_module(module), name)
    if group:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    result = function(*args)
    (work / f"result{os.environ['RANK']}").write_bytes(pickle.dumps(result))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
