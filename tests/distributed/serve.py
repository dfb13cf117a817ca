"""The process that ranks are forked from: importing torch takes longer than most tests.

It reads requests from its input, one JSON object a line, and answers each with a line.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PR_SET_PDEATHSIG = 1  # a rank does not outlive this process
PRELOAD = ("pytest", "pydantic", "vl2.train.setup", "vl2.parallel.pipeline", "vl2.recipes.stages")


def serve() -> None:
    """Fork a rank for a request that says what it runs; else say who has ended and how."""
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # so that collecting garbage does not copy the memory that forks share
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            pid = os.fork()
            if pid == 0:
                _run(**request)
            answer = str(pid)
        else:
            answer = json.dumps(_ended())
        answers.write(answer + "\n")
        answers.flush()


def _ended() -> dict[int, int]:
    """Exit codes of the children that have ended since."""
    found: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (pair := os.waitpid(-1, os.WNOHANG))[0]:
            found[pair[0]] = os.waitstatus_to_exitcode(pair[1])
    return found


def _run(words: list[str], env: dict[str, str], log: str) -> None:
    """One rank: a call or a command, then end as a Python process does."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out, null = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, 0)
    for number, descriptor in enumerate((null, out, out)):
        os.dup2(descriptor, number)
    os.environ.update(env)
    faulthandler.enable()
    torch.set_num_threads(1)
    kind, first, *words = words
    if kind == "call":
        _call(Path(first))
        sys.exit(0)
    from vl2.cli import main

    sys.exit(main(_function(*first.split(":"))(words) if first else words))


def _function(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), name)


def _call(work: Path) -> None:
    """Run the function and keep what it returns."""
    module, name, args, group, timeout = torch.load(work / "in", weights_only=True)
    function = _function(module, name)
    if group:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    result = function(*args)
    torch.save(result, work / f"out{os.environ['RANK']}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    serve()
