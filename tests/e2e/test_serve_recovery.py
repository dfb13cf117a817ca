"""Processes that are killed or frozen: every request ends, and the server comes back."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, data_url, image_part, serving
from tests.unit.pdf_files import endless_pdf

PICTURE = image_part(Image.new("RGB", (90, 60), "red"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = ("stall_seconds=1.5", "workers=1", "worker_seconds=1")
    with serving("nano", "--name", "test", *(f"limits.{limit}" for limit in limits)) as running:
        yield running


def status(server: Server, path: str) -> int:
    with server.client() as client:
        return client.get(path).status_code


def is_ready(server: Server) -> bool:
    return status(server, "/health/ready") == 200


def ask(server: Server, seed: int, **fields: object) -> tuple[int, str]:
    """Status and code of an answer; a stream that broke off has the code of its last event."""
    answer = server.chat(asks(PICTURE, f"Go on {seed}."), **fields)
    if fields.get("stream") and answer.status_code == 200:
        assert answer.text.endswith("data: [DONE]\r\n\r\n")
        return 200, "engine_restarted" if '"engine_restarted"' in answer.text else ""
    return answer.status_code, (answer.json().get("error") or {}).get("code", "")


def test_a_killed_engine_is_replaced_and_every_request_ends(server: Server, full: bool):
    found: list[tuple[int, str]] = []
    over = threading.Event()

    def load(worker: int) -> None:
        draw = random.Random(worker)
        while not over.is_set():
            tokens = draw.choice([1, 20, 60])
            limits = {"max_tokens": tokens, "min_tokens": tokens, "stream": draw.random() < 0.5}
            found.append(ask(server, draw.randrange(9), **limits))
            if found[-1][0] != 200:
                time.sleep(0.05)

    draw = random.Random(0)
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(load, worker) for worker in range(4)]
        try:
            for _ in range(20 if full else 2):
                answered = len(found)
                server.wait_for(lambda n=answered: (200, "") in found[n:])
                time.sleep(draw.random() * 0.3)
                pid = server.engine
                os.kill(pid, signal.SIGKILL)
                server.wait_for(lambda: not is_ready(server), 2)
                assert status(server, "/health/live") == 200
                begun = time.monotonic()
                server.wait_for(lambda: is_ready(server))
                assert time.monotonic() - begun < server.start_seconds + (5 if full else 30)
                assert server.engine != pid
        finally:
            over.set()
        for client in clients:
            client.result(60)
    known = {(200, ""), (200, "engine_restarted"), (500, "engine_restarted"), (500, "engine_error")}
    assert set(found) <= known | {(503, "engine_unavailable")}
    assert server.free_blocks() > 0
    told = server.metrics()
    assert told["vl2_engine_restarts"] == (20 if full else 2)
    ends = sum(told[f"vl2_{name}_total"] for name in ("finished", "aborted", "errored"))
    assert told["vl2_accepted_total"] == ends


def test_a_frozen_engine_is_not_ready_and_holds_nobody_for_ever(server: Server):
    server.wait_for(lambda: is_ready(server))
    pid = server.engine
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            late = pool.submit(ask, server, 1, timeout=0.5)
            server.wait_for(lambda: not is_ready(server), 5)
            assert status(server, "/health/live") == 200
            assert late.result() == (504, "timeout")
            assert time.monotonic() - begun < 15
    finally:
        os.kill(pid, signal.SIGCONT)
    server.wait_for(lambda: is_ready(server), 5)
    assert ask(server, 2) == (200, "")
    assert server.engine == pid
    server.check_log()


def test_a_request_s_time_runs_while_its_pictures_are_read(server: Server):
    """Also while they wait for a process that is busy with those of others."""
    data = data_url(endless_pdf(), "application/pdf")
    part = {"type": "file", "file": {"file_data": data, "dpi": 72}}
    files = server.descriptors()
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.chat, asks(part, "Hi"), timeout=0.5)
        late = pool.submit(server.chat, asks(PICTURE, "Hi"), timeout=0.5)
        answer = first.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert late.result().status_code in (200, 504)  # it may have been read before
    assert time.monotonic() - begun < 5
    answer = server.chat(asks(part, "Hi"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "image_undecodable")
    assert server.metrics()["vl2_inflight"] == 0
    server.wait_for(lambda: sum(server.descriptors().values()) <= sum(files.values()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_worker_that_dies_or_hangs_while_idle_costs_nothing(
    server: Server, number: signal.Signals
):
    assert ask(server, 3) == (200, "")
    before = server.metrics()["vl2_worker_restarts"]
    [pid] = [pid for pid, module in server.children().items() if module == "vl2.serve.worker"]
    os.kill(pid, number)
    assert ask(server, 4) == (200, "")
    assert server.metrics()["vl2_worker_restarts"] == before + 1
    assert pid not in server.children()
