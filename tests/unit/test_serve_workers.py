"""Processes for pictures that die: before a job another one does it, of a job it is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from tests.unit.pdf_files import endless_pdf
from tests.unit.picture_files import to_bytes

from vl2.serve import workers as workers_module
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError
from vl2.serve.wire import to_memory
from vl2.serve.workers import Workers

PICTURE = to_bytes(Image.new("RGB", (30, 20), "red"), "PNG")
PAGES = {"max_pages": 1, "pages": None, "dpi": 72, "as": "png"}


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(Limits(workers=1, worker_seconds=1))
    yield made
    made.close()


def run(workers: Workers, kind: str = "size", data: bytes = PICTURE) -> Any:
    """The answer to a job, or the status of its error."""
    memory = to_memory(data)
    try:
        job = {"job": kind, "bytes": len(data), "max_pixels": 10**6, **PAGES}
        return asyncio.run(workers.run(job, memory))[0].get("size")
    except ApiError as error:
        return error.status
    finally:
        os.close(memory)


def process_of(workers: Workers) -> int:
    worker = workers._idle.get()
    assert worker._started is not None
    workers._idle.put(worker)
    return worker._started[0].pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("wait", [0, 0.2])
def test_one_that_was_killed_while_idle_costs_nothing(
    workers: Workers, number: signal.Signals, wait: float
):
    assert run(workers) == [30, 20]
    for killed in range(1, 3):
        os.kill(process_of(workers), number)
        time.sleep(wait)  # without it the job may be sent before the process has ended
        assert run(workers) == [30, 20]
        assert workers.restarts == killed


def test_a_job_that_kills_is_refused_and_not_tried_again(workers: Workers):
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert run(workers, "no such job") == 422
    assert workers.restarts == 1
    assert run(workers) == [30, 20]
    assert run(workers, "no such job") == 422
    assert workers.restarts == 2
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_a_page_that_never_ends_is_cut_by_the_processor_s_time(workers: Workers):
    assert run(workers, "pages", endless_pdf()) == 422
    assert run(workers) == [30, 20]
    assert workers.restarts == 1


def test_nothing_is_left_of_jobs_that_nobody_waits_for(workers: Workers):
    """Neither of the one that runs nor of those that have not begun."""
    assert run(workers) == [30, 20]
    files, stopped = len(os.listdir("/proc/self/fd")), process_of(workers)  # noqa: PTH208

    async def leave() -> None:
        memory = to_memory(PICTURE)
        job = {"job": "size", "bytes": len(PICTURE), "max_pixels": 10**6}
        os.kill(stopped, signal.SIGSTOP)
        asked = [asyncio.create_task(workers.run(job, memory)) for _ in range(9)]
        await asyncio.sleep(0.1)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        os.close(memory)

    asyncio.run(leave())
    os.kill(stopped, signal.SIGCONT)
    assert run(workers) == [30, 20]
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_where_none_can_be_had_it_is_not_the_picture_s_fault(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(workers_module, "start_process", none)
        assert run(workers) == 500
    assert run(workers) == [30, 20]
