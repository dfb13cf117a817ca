"""Signals: what was begun is finished, the rest is told, nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, image_part, read_all, request, serving

CHAT = "/v1/chat/completions"
PICTURE = image_part(Image.new("RGB", (90, 60), "red"))
END = b"data: [DONE]\r\n\r\n"


class Stream:
    """A streamed answer, read in a thread."""

    def __init__(self, server: Server, tokens: int) -> None:
        limits = {"max_tokens": tokens, "min_tokens": tokens, "stream": True}
        body = {"model": "test", "messages": [asks(PICTURE, f"Count to {tokens}.")], **limits}
        self.connection = server.dial()
        self.connection.sendall(request(CHAT, body))
        self.status, self.data = 0, self.connection.recv(1)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self.connection:
            self.status, rest = read_all(self.connection)
        self.data += rest

    def text(self) -> bytes:
        self._thread.join(60)
        return self.data


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def nothing_stays(before: set[Path]) -> None:
    """No new file in shared memory; tests beside this one make some there, for a moment."""
    wait_until(lambda: set(Path("/dev/shm").iterdir()) <= before, 5)


def test_what_can_be_finished_in_time_is(shared_memory: set[Path]):
    with serving("nano", "--name", "test", "limits.drain_timeout=60") as server:
        streams = [Stream(server, 60 + 20 * n) for n in range(8)]
        pids = list(server.children())
        assert len(pids) >= 2
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.raw(request("/health/ready"))[0] == 503)
        assert server.raw(request("/health/live"))[0] == 200
        late = server.chat(asks("Hi"))
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in late.headers
        for stream in streams:
            told = stream.text()
            assert END in told
            assert b'"finish_reason": "length"' in told
        assert server.process.wait(30) == 0
        wait_until(lambda: gone(pids), 5)
    server.check_log()
    nothing_stays(shared_memory)


def test_what_outlasts_the_drain_is_told(shared_memory: set[Path]):
    with serving("nano", "--name", "test", "limits.drain_timeout=1.5") as server:
        short = [Stream(server, 2) for _ in range(2)]
        long = [Stream(server, 1800) for _ in range(3)]
        stuck = server.dial()
        stuck.sendall(request(CHAT, {"model": "test"})[:-3])
        pids = list(server.children())
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for stream in short:
            assert b'"finish_reason": "length"' in stream.text()
        for stream in long:
            told = stream.text()
            assert END in told
            assert b'"code": "shutting_down"' in told
        assert server.process.wait(30) == 0
        assert time.monotonic() - begun < 1.5 + 2 + 3  # of a busy machine
        with stuck:
            assert b'"shutting_down"' in read_all(stuck)[1]
        wait_until(lambda: gone(pids), 5)
    server.check_log()
    nothing_stays(shared_memory)


@pytest.mark.parametrize("last", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_signal_or_a_kill_leaves_nothing(shared_memory: set[Path], last: signal.Signals):
    with serving("nano", "--name", "test", "limits.drain_timeout=60") as server:
        streams = [Stream(server, 1800) for _ in range(2)]
        pids = list(server.children())
        if last == signal.SIGTERM:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for(lambda: server.raw(request("/health/ready"))[0] == 503)
        begun = time.monotonic()
        server.process.send_signal(last)
        assert server.process.wait(10) == (1 if last == signal.SIGTERM else -signal.SIGKILL)
        assert time.monotonic() - begun < 1
        wait_until(lambda: gone(pids), 3)
        for stream in streams:
            assert END not in stream.text()
    nothing_stays(shared_memory)


def test_a_kill_while_the_model_is_loaded_leaves_nothing():
    command = [sys.executable, "-m", "vl2", "serve", "nano", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True) as process:
        server = Server("", process)
        server.wait_for(lambda: any("engine" in module for module in server.children().values()))
        pids = list(server.children())
        process.kill()
        process.wait()
        wait_until(lambda: gone(pids), 30)  # it notices once its modules are imported
