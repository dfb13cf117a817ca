"""Processes beside the trainer's: started so that signals and the trainer's end do no harm."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

TRAINER_SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1"))
"""Signals for the trainer, as far as the platform has them: Windows has no SIGUSR1."""


def worker_context() -> Any:
    """Starts processes from a server that has imported what they need; on Windows from nothing.

    Forking the trainer itself could copy a lock that one of its threads holds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vl2.data.decode", "vl2.data.counting"])
    return context


@contextmanager
def sheltered() -> Iterator[None]:
    """Start processes that are deaf to signals for the trainer, which a scheduler sends to all.

    A blocked signal stays blocked in them; here it arrives afterwards. PyTorch's handler of SIGCHLD
    is taken out again: it raises wherever the trainer happens to be when a worker dies, instead of
    where the next batch is asked for.
    """
    if "pthread_sigmask" not in dir(signal):  # Windows sends no signal to a group of processes
        yield
        return
    resource_tracker.ensure_running()  # when that starts, it unblocks signals
    in_main = threading.current_thread() is threading.main_thread()
    child_handler = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINER_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main and child_handler is not None:
            signal.signal(signal.SIGCHLD, child_handler)
