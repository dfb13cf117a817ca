"""The pool of processes that decode pictures and PDFs: one job at a time each, killed when late."""

from __future__ import annotations

import asyncio
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from subprocess import Popen

from vl2.logs import get_logger
from vl2.processing.image_error import ImageError
from vl2.processing.pdf_error import PdfError
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError, server_error
from vl2.serve.wire import Link, Message, start_process

log = get_logger(__name__)

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Each thread of a library for products reserves memory, which is limited."""

GRACE = 5.0
"""Seconds beyond its processor time that a job may take, for a busy machine."""

TRIES = 2
"""Processes that are asked to take a job: the first may have been killed while it had none."""


class Workers:
    """Runs jobs; one that dies or is late is answered with an error and its process replaced.

    A process that had died before it took the job has not died of it: another one does the job.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="vl2-pictures")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(limits.workers):
            self._idle.put(_Worker(limits))
        self.restarts = 0

    async def run(self, job: Message, data: int) -> tuple[Message, list[int]]:
        """The answer to a job, and descriptors of shared memory that are the caller's.

        Args:
            job: for `worker.JOBS`.
            data: descriptor of what it is about, which the caller keeps.

        Raises:
            ApiError: the picture or PDF is refused, its process died of it, or none can be had.
        """
        copy = os.dup(data)
        work = self._threads.submit(self._run, job, copy)
        try:
            answer, made = await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            work.add_done_callback(partial(_discard, copy))
            raise
        if answer.get("refused"):
            raise refusal(answer)
        return answer, made

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()

    def _run(self, job: Message, data: int) -> tuple[Message, list[int]]:
        worker = self._idle.get()
        try:
            for _ in range(TRIES):
                if self._hand(worker, job, data):
                    return worker.answer()
            log.error("a process for pictures cannot be started, or takes no work")
            raise server_error()
        except (
            EOFError,
            OSError,
            ValueError,
            LookupError,
        ):  # of a process that was taken over, too
            self._replace(worker)
            raise ApiError(
                422,
                "image_undecodable",
                "the picture cannot be decoded within the server's limits of time and memory: save "
                "it again as PNG or JPEG, or send a smaller one",
            ) from None
        finally:
            os.close(data)
            self._idle.put(worker)

    def _hand(self, worker: _Worker, job: Message, data: int) -> bool:
        """Give a worker a job; False if its process had ended, or did not take it."""
        try:
            worker.take(job, data)
        except (EOFError, OSError, ValueError, LookupError):
            self._replace(worker)
            return False
        return True

    def _replace(self, worker: _Worker) -> None:
        worker.stop()
        self.restarts += 1


class _Worker:
    """One process, started when it is first needed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._started: tuple[Popen, Link] | None = None

    def take(self, job: Message, data: int) -> None:
        """Hand a job over.

        Raises:
            EOFError, OSError, ValueError, LookupError: the process has died, or must be stopped.
        """
        if self._started is None:
            limits = (str(self._limits.worker_seconds), str(self._limits.worker_bytes))
            self._started = start_process("vl2.serve.worker", ONE_THREAD, limits)
        self._started[1].send(job, [data])
        self.answer()

    def answer(self) -> tuple[Message, list[int]]:
        """What it says next.

        Raises:
            EOFError, OSError, ValueError, LookupError: the process has died, or must be stopped.
        """
        assert self._started is not None
        return self._started[1].receive(self._limits.worker_seconds + GRACE)

    def stop(self) -> None:
        """Kill the process; the next job starts another."""
        if self._started is not None:
            process, link = self._started
            process.kill()
            process.wait()
            link.close()
        self._started = None


def refusal(answer: Message) -> ApiError:
    """The error that a worker's refusal stands for."""
    code, values = answer["code"], answer["values"]
    if answer["refused"] == "pdf":
        return ApiError(400, "invalid_pdf", str(PdfError(code, **values)))
    status = 415 if code in ("unsupported", "pdf") else 400
    return ApiError(status, "invalid_image", str(ImageError(code, **values)))


def _discard(data: int, work: Future[tuple[Message, list[int]]]) -> None:
    """Close what nobody waits for any longer; `data` where the work has not begun."""
    if work.cancelled():
        os.close(data)
    elif work.exception() is None:
        for descriptor in work.result()[1]:
            os.close(descriptor)
