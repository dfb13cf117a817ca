"""The pool of processes that decode pictures and PDFs: one job at a time each, killed when late."""

from __future__ import annotations

import asyncio
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from subprocess import Popen

from vl2.processing.image_error import ImageError
from vl2.processing.pdf_error import PdfError
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError
from vl2.serve.wire import Link, Message, start_process

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Each thread of a library for products reserves memory, which is limited."""

GRACE = 5.0
"""Seconds beyond its processor time that a job may take, for a busy machine."""


class Workers:
    """Runs jobs; one that dies or is late is answered with an error and its process replaced."""

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
            ApiError: the picture or PDF is refused, or its process died of it.
        """
        work = self._threads.submit(self._run, job, os.dup(data))
        try:
            answer, made = await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            work.add_done_callback(_discard)
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
            return worker.run(job, data)
        except (EOFError, OSError, TimeoutError):
            worker.stop()
            self.restarts += 1
            raise ApiError(
                422,
                "image_undecodable",
                "the picture cannot be decoded within the server's limits of time and memory: save "
                "it again as PNG or JPEG, or send a smaller one",
            ) from None
        finally:
            os.close(data)
            self._idle.put(worker)


class _Worker:
    """One process, started when it is first needed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._started: tuple[Popen, Link] | None = None

    def run(self, job: Message, data: int) -> tuple[Message, list[int]]:
        """The answer to a job.

        Raises:
            EOFError, OSError, TimeoutError: the process has died, or must be stopped.
        """
        if self._started is None:
            limits = (str(self._limits.worker_seconds), str(self._limits.worker_bytes))
            self._started = start_process("vl2.serve.worker", ONE_THREAD, limits)
        link = self._started[1]
        link.send(job, [data])
        return link.receive(self._limits.worker_seconds + GRACE)

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
    status = 415 if code == "unsupported" else 400
    return ApiError(status, "invalid_image", str(ImageError(code, **values)))


def _discard(work: Future[tuple[Message, list[int]]]) -> None:
    """Close what nobody waits for any longer."""
    if not work.cancelled() and work.exception() is None:
        for descriptor in work.result()[1]:
            os.close(descriptor)
