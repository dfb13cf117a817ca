"""More requests than a server takes, requests that wait too long, clients that leave."""

from __future__ import annotations

import random
import re
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, image_part, read_all, request, serving

CHAT = "/v1/chat/completions"
RUNNING, WAITING = 2, 3
PICTURE = image_part(Image.new("RGB", (90, 60), "red"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    words = [f"limits.max_running={RUNNING}", f"limits.max_waiting={WAITING}"]
    with serving("nano", "--name", "test", f"engine.max_num_seqs={RUNNING}", *words) as running:
        yield running
        running.check_log()


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    words = ["limits.queue_timeout=0.7", "engine.max_num_seqs=1"]
    with serving("nano", "--name", "test", *words) as running:
        yield running
        running.check_log()


def long_talk(tokens: int, **fields: object) -> dict:
    limits = {"max_tokens": tokens, "min_tokens": tokens}
    return {"model": "test", "messages": [asks(PICTURE, "Go on.")], **limits, **fields}


def first_bytes(connections: list[socket.socket], data: list[bytes]) -> list[float]:
    """Send each its request, one after the other, and wait for all: seconds until each answers."""
    begun, took = [], [0.0] * len(connections)
    with selectors.DefaultSelector() as waiting:
        for number, (connection, sent) in enumerate(zip(connections, data, strict=True)):
            waiting.register(connection, selectors.EVENT_READ, number)
            begun.append(time.monotonic())
            connection.sendall(sent)
        while waiting.get_map():
            for key, _ in waiting.select(60):
                took[key.data] = time.monotonic() - begun[key.data]
                waiting.unregister(key.fileobj)
    return took


def test_exactly_as_many_as_run_and_wait_are_let_in(server: Server, full: bool):
    """The rest hears at once when to come again: in less than 50 ms on a machine that is quiet."""
    places, before = RUNNING + WAITING, server.metrics()
    talks = [request(CHAT, long_talk(100, stream=n % 2 == 0)) for n in range(4 * places)]
    rounds, late = 20 if full else 2, []
    for _ in range(rounds):
        with ExitStack() as stack:
            connections = [stack.enter_context(server.dial()) for _ in talks]
            took = first_bytes(connections, talks)
            answers = [read_all(connection) for connection in connections]
        assert Counter(status for status, _ in answers) == {200: places, 429: 3 * places}
        for (status, answer), seconds in zip(answers, took, strict=True):
            if status == 429:
                late.append(seconds)
                [after] = re.findall(rb"retry-after: (\d+)\r\n", answer)
                assert 1 <= int(after) <= 30
        server.free_blocks()
    assert max(late) < (0.05 if full else 1), sorted(late)[-9:]
    told = server.metrics()
    reason = 'vl2_rejected_total{reason="overloaded"}'
    assert told[reason] - before.get(reason, 0) == rounds * 3 * places
    assert told["vl2_inflight"] == 0


def test_every_answer_of_a_request_takes_a_place(server: Server):
    answer = server.chat(asks("Hi"), n=RUNNING + WAITING + 1)
    assert answer.status_code == 429
    assert server.chat(asks("Hi"), n=RUNNING + WAITING).status_code == 200


def test_other_work_takes_places_too(server: Server):
    """Bodies of all routes are held in memory, so that their number is bounded for all."""
    held = [server.dial() for _ in range(RUNNING + WAITING)]
    for connection, path in zip(
        held, [CHAT, "/tokenize", "/v1/layout", "/v1/pages", CHAT], strict=True
    ):
        connection.sendall(request(path, {"model": "test"})[:-3])
    server.wait_for(lambda: server.post("/tokenize", {"prompt": ""}).status_code == 429)
    for connection in held:
        connection.close()
    server.wait_for(lambda: server.post("/tokenize", {"prompt": ""}).status_code == 200)


def test_who_waits_too_long_is_not_begun(hasty: Server):
    assert hasty.post(CHAT, long_talk(1)).status_code in (200, 503)  # all is started now
    hasty.free_blocks()
    before = hasty.metrics()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(hasty.post, CHAT, long_talk(1500))  # outlasts the others' patience
        hasty.wait_for(lambda: hasty.metrics()["vl2_engine_running"] == 1)
        others = list(pool.map(lambda n: hasty.post(CHAT, long_talk(9, n=n)), (1, 1, 2)))
        done = first.result().json()["usage"]
    for answer in others:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "queue_timeout"
        assert int(answer.headers["retry-after"]) >= 1
    hasty.free_blocks()
    gained = {name: value - before.get(name, 0) for name, value in hasty.metrics().items()}
    assert gained["vl2_engine_generated_tokens"] == done["completion_tokens"]
    new = done["prompt_tokens"] - done["prompt_tokens_details"]["cached_tokens"]
    assert gained["vl2_engine_prompt_tokens"] == new


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends(server: Server, stream: bool):
    answer = server.post(CHAT, long_talk(1500, timeout=1.0, stream=stream))
    if answer.status_code == 200:  # the stream had begun
        assert stream
        assert '"code": "timeout"' in answer.text
        assert answer.text.endswith("data: [DONE]\r\n\r\n")
    else:
        assert answer.json()["error"]["code"] in ("timeout", "queue_timeout")


def test_a_client_that_leaves_stops_the_engine(server: Server):
    server.free_blocks()
    before = server.metrics()["vl2_engine_generated_tokens"]
    with server.dial() as connection:
        connection.sendall(request(CHAT, long_talk(1500, stream=True)))
        assert connection.recv(1)
    server.free_blocks()
    assert server.metrics()["vl2_engine_generated_tokens"] - before < 700


def leave(server: Server, seed: int) -> None:
    """Ask, and go at a random moment, politely or not."""
    draw = random.Random(seed)
    body = long_talk(draw.choice([1, 3, 40]), stream=draw.random() < 0.6, n=draw.choice([1, 1, 2]))
    if draw.random() < 0.5:
        body["messages"] = [asks(f"Go on {seed}.")]
    data = request(CHAT, body)
    with server.dial() as connection:
        if draw.random() < 0.3:
            connection.sendall(data[: draw.randrange(len(data))])
        else:
            connection.sendall(data)
            if draw.random() < 0.3:
                time.sleep(draw.random() * 0.2)
            else:
                left = draw.choice([1, 200, 1000, 10**9])
                while left > 0 and (part := connection.recv(min(left, 200))):
                    left -= len(part)
        if draw.random() < 0.4:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_nothing_is_left_of_clients_that_leave(server: Server, full: bool):
    """Places, blocks, files, tasks, memory; and every scrape on the way adds up."""
    with ThreadPoolExecutor(4) as pool:
        while len(server.children()) < 3:  # the engine and both workers
            list(pool.map(lambda _: server.chat(asks(PICTURE, "Hi"), max_tokens=1), range(4)))
    list(map(partial(leave, server), range(-24, 0)))  # what is made once is made now
    free, files, memory = server.free_blocks(), server.descriptors(), server.memory()
    over, before, scrapes = threading.Event(), server.metrics(), []

    def scrape() -> None:
        while not over.is_set():
            scrapes.append(server.metrics())

    watch = threading.Thread(target=scrape)
    watch.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: leave(server, seed), range(500 if full else 24)))
    finally:
        over.set()
        watch.join()
    assert server.free_blocks() == free
    told = server.metrics()
    assert told["vl2_accepted_total"] >= 10
    for found in [*scrapes, told]:
        ends = sum(found[f"vl2_{name}_total"] for name in ("finished", "aborted", "errored"))
        assert found["vl2_accepted_total"] == ends + found["vl2_inflight"]
    # Accepted requests err only where no place was left for their second answer.
    gained = {name: value - before.get(name, 0) for name, value in told.items()}
    late = gained.get('vl2_requests_total{code="429",route="/v1/chat/completions"}', 0)
    at_gate = gained.get('vl2_rejected_total{reason="overloaded"}', 0)
    assert gained["vl2_errored_total"] == late - at_gate
    server.wait_for(lambda: server.descriptors() == files)
    server.wait_for(lambda: server.metrics()["vl2_tasks"] <= before["vl2_tasks"])
    server.wait_for(lambda: server.memory() < 1.01 * memory + 8 * 2**20)
    assert server.chat(asks(PICTURE, "Hi")).status_code == 200
