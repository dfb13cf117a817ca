"""Clients that send too much, too slowly, or nothing, or that do not read what they asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, image_part, read_all, read_one, request, serving

BODY = 200_000
LIMITS = ("header_timeout=1", "body_timeout=1", "send_timeout=1", f"max_body={BODY}")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("nano", "--name", "test", *(f"limits.{limit}" for limit in LIMITS)) as running:
        yield running


@pytest.fixture(autouse=True)
def still_answers(server: Server) -> Iterator[None]:
    """Whatever a client did, the next one is served, and nothing went wrong in our code."""
    yield
    assert server.chat(asks("Hi")).status_code == 200
    server.check_log()


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"a" * 17_000,
        b"".join(b"x-%d: %s\r\n" % (n, b"a" * 20) for n in range(700)),
        b"x: " + b"a" * 2_000_000,
        b"\r\n".join([b"a:"] * 9000),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_headers_are_bounded(server: Server, head: bytes, ended: bool):
    data = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\n" * ended
    status, answer = server.raw(data)
    assert status == 431
    assert b"headers_too_large" in answer


def test_headers_within_the_bound_are_read(server: Server):
    assert server.raw(request("/health/live", x="a" * 15_000))[0] == 200


def test_a_long_target_is_refused(server: Server):
    assert server.raw(request("/" + "a" * 20_000))[0] == 431


def test_of_a_long_method_no_more_is_told_than_is_needed(server: Server):
    status, answer = server.raw(request("/health/live").replace(b"GET", b"G" * 9000))
    assert status == 405
    assert b"GGGG is not allowed here: use GET" in answer
    assert len(answer) < 2000


def drip(server: Server, pieces: Iterator[bytes]) -> tuple[int, bytes, float]:
    """What comes of a client that sends a piece each 50 ms, and after how many seconds."""
    with server.dial() as connection:
        begun = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        for piece in pieces:
            try:
                connection.sendall(piece)
                answer += connection.recv(65536)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        took = time.monotonic() - begun
        connection.settimeout(30)
        status, answer = read_all(connection, answer)
    return status, answer, took


def bytes_of(data: bytes) -> Iterator[bytes]:
    for byte in data:
        yield bytes([byte])
    while True:
        yield b"x"


def test_slow_headers_are_cut(server: Server):
    def pieces() -> Iterator[bytes]:
        yield b"GET / HTTP/1.1\r\nhost: localhost\r\nx:"
        yield from bytes_of(b"")

    status, answer, took = drip(server, pieces())
    assert status == 408
    assert b"headers_timeout" in answer
    assert 0.9 < took < 10


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_beginning(server: Server):
    """Which a kernel puts off for 40 ms on a connection that has been open for a while."""
    times = []
    with server.dial() as connection:
        for _ in range(60):
            begun = time.monotonic()
            connection.sendall(request("/health/live", connection="keep-alive"))
            assert read_one(connection) == 200
            times.append(time.monotonic() - begun)
    assert min(times[30:]) < 0.02


def test_a_second_request_s_headers_are_timed_too(server: Server):
    with server.dial() as connection:
        connection.sendall(request("/health/live", connection="keep-alive"))
        assert read_one(connection) == 200
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert read_all(connection)[0] == 408


def test_line_ends_alone_end_headers_too(server: Server):
    """h11 takes them; the clock for headers must not go on while the answer is made."""
    body = request(
        "/v1/chat/completions",
        {"model": "test", "messages": [asks("Go on.")], "max_tokens": 400, "min_tokens": 400},
    )
    head, _, rest = body.partition(b"\r\n\r\n")
    status, answer = server.raw(head.replace(b"\r\n", b"\n") + b"\n\n" + rest)
    assert status == 200
    assert answer.count(b"HTTP/1.1") == 1


def test_idle_connections_are_closed_and_disturb_nobody(server: Server, full: bool):
    with ExitStack() as stack:
        idle = [stack.enter_context(server.dial()) for _ in range(1000 if full else 50)]
        for connection in idle[::2]:
            connection.sendall(b"GET / HT")
        times = []
        for _ in range(10):
            begun = time.monotonic()
            assert server.raw(request("/health/live"))[0] == 200
            times.append(time.monotonic() - begun)
        assert sorted(times)[5] < 0.1
        statuses = [read_all(connection)[0] for connection in idle]
    assert statuses == [408, 0] * (len(idle) // 2)


def test_more_connections_than_there_are_files_keep_nobody_out():
    """The one that was quiet for longest makes room; pictures still find files for their pixels."""
    with serving("nano", "--name", "test", files=256) as few, ExitStack() as stack:
        idle = [stack.enter_context(few.dial()) for _ in range(200)]
        for connection in idle[::3]:
            connection.sendall(b"GET / HT")
        kept = stack.enter_context(few.dial())
        kept.sendall(request("/health/live", connection="keep-alive"))
        assert read_one(kept) == 200
        idle += [stack.enter_context(few.dial()) for _ in range(100)]
        begun = time.monotonic()
        assert few.raw(request("/health/live"))[0] == 200
        assert time.monotonic() - begun < 1
        picture = image_part(Image.new("RGB", (64, 48), "red"))
        body = {"model": "test", "messages": [asks(picture, "Hi")], "max_tokens": 2}
        kept.sendall(request("/v1/chat/completions", body))
        assert read_one(kept) == 200
        few.check_log()
        assert not any("out of system resource" in line for line in few.log)


CHAT = "/v1/chat/completions"


def chunked(path: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b" " * size)


@pytest.mark.parametrize("path", [CHAT, "/tokenize", "/v1/layout", "/v1/pages", "/v1/completions"])
def test_a_large_body_is_refused(server: Server, path: str):
    told = request(path, "x" * (2 * BODY))
    for data in (told, chunked(path) + chunk(BODY) + chunk(BODY) + b"0\r\n\r\n"):
        status, answer = server.raw(data)
        assert status == 413
        assert b"body_too_large" in answer


def test_who_sends_a_refused_body_to_its_end_reads_why(server: Server):
    """Though the connection ends with the answer: a reset would have stopped the sender."""
    with server.dial() as connection:
        connection.sendall(chunked(CHAT))
        for _ in range(15):  # three times what a body may be
            connection.sendall(chunk(BODY // 5))
            time.sleep(0.02)
        connection.sendall(b"0\r\n\r\n")
        status, answer = read_all(connection)
    assert (status, b"body_too_large" in answer) == (413, True)


def test_a_body_announced_too_large_is_refused_unsent(server: Server):
    for length in ("200001", "9" * 20):
        head = request(CHAT, {}, content_length=length)
        assert server.raw(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")[0] == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 21, "9" * 5000, "0x10", "", "1, 2", "+5"])
def test_a_length_that_is_none_is_refused(server: Server, length: str):
    status, answer = server.raw(request(CHAT, {}, content_length=length))
    assert status == 400
    assert b"malformed_request" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
        chunked("/tokenize") + b"zz\r\n\r\n",
        chunked("/tokenize") + b"1\r\n" + b"x" * 99,
    ],
)
def test_what_is_no_http_gets_our_error(server: Server, data: bytes):
    status, answer = server.raw(data)
    assert status in (400, 501)
    assert b"malformed_request" in answer
    assert b"x-request-id" not in answer


def test_a_slow_body_is_cut(server: Server):
    status, answer, took = drip(server, bytes_of(request(CHAT, "x" * 9000)[:300]))
    assert status == 408
    assert b"_timeout" in answer
    assert took < 10

    def pieces() -> Iterator[bytes]:
        yield request(CHAT, "x" * 9000)[:300]
        yield from bytes_of(b"")

    status, answer, took = drip(server, pieces())
    assert status == 408
    assert b"body_timeout" in answer
    assert 0.9 < took < 10


@pytest.mark.parametrize("path", [CHAT, "/none", "/health/live"])
def test_an_endless_body_is_cut(server: Server, path: str):
    """Whether it is read or was refused long ago; fast, or a byte at a time."""

    def fast() -> bytes:
        return chunk(65_000)

    def slow() -> bytes:
        time.sleep(0.05)
        return chunk(1)

    for make in (fast, slow):
        assert cut_after(server, chunked(path).replace(b"close", b"keep-alive"), make) < 10


def cut_after(server: Server, head: bytes, make: Callable[[], bytes]) -> float:
    """Seconds until the server ends the connection of a client that never stops sending."""
    with server.dial(5) as connection:
        begun = time.monotonic()
        try:
            connection.sendall(head)
            while time.monotonic() - begun < 30:
                connection.sendall(make())
        except (ConnectionError, TimeoutError):
            pass
        return time.monotonic() - begun


def test_an_answer_that_nobody_reads_is_cut(server: Server):
    """A stream to a client whose buffers are full already."""
    body = {
        "model": "test",
        "messages": [asks("Go on.")],
        "max_tokens": 400,
        "min_tokens": 400,
        "stream": True,
    }
    free = server.free_blocks()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        begun = server.metrics()["vl2_accepted_total"]
        pages = request("/openapi.json", connection="keep-alive") * 100
        connection.sendall(pages + request(CHAT, body) + pages * 30)
        server.wait_for(lambda: server.metrics()["vl2_accepted_total"] > begun)
        assert server.free_blocks() == free
        assert read_all(connection)[1].count(b"HTTP/1.1 200") < 3000
