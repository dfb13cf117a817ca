"""Runs a function in several processes that form one gloo group, as torchrun would start them.

    from tests.distributed.launch import run_ranks

    def sums(start: int) -> int:
        total = torch.tensor(start + dist.get_rank())
        dist.all_reduce(total)
        return int(total)

    def test_sums():
        assert run_ranks(2, sums, 10) == [21, 21]

Each process is forked from one that has imported torch and vl2 and done nothing (`serve`): no
pytest, no fixtures, no shape checks, one thread. It imports the test's module by its name, so the
function stands at the top of a test module. `job` runs the command in such processes.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
GRACE = 3.0  # seconds that the other ranks have to end by themselves when one failed


def run_ranks(
    n: int, function: Callable[..., Any], *args: Any, timeout: float = 90.0, group: bool = True
) -> list[Any]:
    """What `function(*args)` returns on each of n ranks.

    Args:
        n: number of processes; each has RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
        function: of the top level of a test module.
        *args: tensors, numbers, strings, None, and lists, tuples and dicts of these, as are the
            results: `torch.load` reads them with `weights_only`.
        timeout: seconds for all; then every process is stopped.
        group: whether the process group is there when the function starts. False leaves that to
            the function.

    Raises:
        AssertionError: a rank failed or did not end; has the traceback of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.save((function.__module__, function.__qualname__, args, group, timeout), work / "in")
        logs = [work / f"log{rank}" for rank in range(n)]
        ranks = [
            server().start(["call", str(work)], env, log)
            for env, log in zip(rank_envs(n), logs, strict=True)
        ]
        late = _wait(ranks, timeout)
        if late or any(server().codes.get(pid) for pid in ranks):
            raise AssertionError(_story(ranks, late, logs, timeout))
        return [torch.load(work / f"out{rank}", weights_only=True) for rank in range(n)]


def rank_envs(n: int) -> list[dict[str, str]]:
    """What torchrun would add to the environment of each of n ranks on one node."""
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(ranks: list[int], timeout: float) -> list[int]:
    """Wait for all; the ranks that had to be stopped."""
    forked, end, failed = server(), time.monotonic() + timeout, False
    while forked.running(ranks) and time.monotonic() < end:
        if not failed and any(forked.codes.get(pid) for pid in ranks):
            failed, end = True, min(end, time.monotonic() + GRACE)
        time.sleep(0.02)
    late = forked.running(ranks)
    for pid in late:
        os.kill(pid, signal.SIGABRT)  # faulthandler writes where it stands
        os.kill(pid, signal.SIGCONT)
    end = time.monotonic() + 5
    while (left := forked.running(late)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    while forked.running(late):
        time.sleep(0.02)
    return [ranks.index(pid) for pid in late]


def _story(ranks: list[int], late: list[int], logs: list[Path], timeout: float) -> str:
    lines = []
    for rank, pid in enumerate(ranks):
        code = server().codes[pid]
        if not code:
            continue
        how = f"did not end within {timeout:g} s, or {GRACE:g} s after another failed"
        how = how if rank in late else f"ended with exit code {code}"
        log = logs[rank].read_text(encoding="utf-8", errors="replace")
        lines.append(f"rank {rank} {how}:\n{log[-6000:]}")
    return "\n".join(lines)


class Server:
    """The process that ranks are forked from; importing torch takes longer than most tests."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}  # of the ranks that have ended; negative: of a signal
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.serve"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.kill)

    def start(self, words: list[str], env: dict[str, str], log: Path) -> int:
        """Fork a process for a call or a command; its number."""
        pid = int(self._ask({"words": words, "env": env, "log": str(log)}))
        self.codes.pop(pid, None)  # of an earlier process of this number
        return pid

    def running(self, pids: Sequence[int]) -> list[int]:
        """Those that have not ended."""
        self.codes |= {int(pid): code for pid, code in json.loads(self._ask({})).items()}
        return [pid for pid in pids if pid not in self.codes]

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that ranks are forked from has ended: {self._process.wait(5)}"
        return answer


@functools.cache
def server() -> Server:
    """The only one."""
    return Server()
