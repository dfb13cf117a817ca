"""A real server in processes of its own, for tests."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

START_SECONDS = 90
LEAK = re.compile(rb'0x[0-9a-f]{6,}|/usr/|Traceback|File "')
"""What no client may see: addresses, paths, lines of our code."""


@dataclass
class Server:
    """A running `vl2 serve`."""

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    start_seconds: float = 0.0
    """How long the start took, the model's loading included."""

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        hooks = {"response": [_check_error]}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, event_hooks=hooks)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def dial(self, seconds: float = 60) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def raw(self, data: bytes, seconds: float = 60) -> tuple[int, bytes]:
        """Status and everything of the answer to bytes as they are, until the server closes."""
        with self.dial(seconds) as connection:
            connection.sendall(data)
            return read_all(connection)

    def wait_for(self, what: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"not within {seconds} s"
            time.sleep(0.02)

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        with self.client() as client:
            return client.post(path, json=body, **more)

    def chat(self, *messages: dict[str, Any], **fields: Any) -> httpx2.Response:
        body = {"model": "test", "messages": list(messages), "max_tokens": 8, **fields}
        return self.post("/v1/chat/completions", body)

    def children(self) -> dict[int, str]:
        """Numbers and modules of the processes that the server started."""
        return {
            pid: words[words.index("-m") + 1]
            for pid, parent, words in _processes()
            if parent == self.process.pid and "-m" in words
        }

    @property
    def engine(self) -> int:
        """The number of the engine's process."""
        [pid] = [pid for pid, module in self.children().items() if "engine" in module]
        return pid

    def memory(self, *pids: int) -> int:
        """Bytes that processes of the server have in memory; all of them if none is named."""
        pids = pids or (self.process.pid, *self.children())
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return os.sysconf("SC_PAGE_SIZE") * sum(pages)

    def descriptors(self) -> dict[int, int]:
        """How many files each process of the server has open."""
        pids = [self.process.pid, *self.children()]
        return {pid: sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in pids}

    def check_log(self) -> None:
        """Nothing went wrong in our own code."""
        wrong = [line for line in self.log if "Traceback" in line]
        assert not wrong, wrong[0].replace("\\n", "\n")

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }

    def free_blocks(self, seconds: float = 20) -> float:
        """Free cache blocks once nothing runs or waits any longer."""
        end, calm = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(0.2)
            found = self.metrics()
            busy = ("vl2_inflight", "vl2_engine_running", "vl2_engine_waiting")
            calm = 0 if any(found[name] for name in busy) else calm + 1
            if calm == 4:  # the engine tells its figures every half second
                return found["vl2_engine_blocks_free"]
        raise AssertionError(f"still busy after {seconds} s: {found}")


def request(path: str, body: object = None, **headers: str) -> bytes:
    """The bytes of a request, for `Server.raw`; a body makes it a POST."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    told = {"host": "localhost", "connection": "close", **headers}
    if body is not None:
        told = {"content-type": "application/json", "content-length": str(len(data)), **told}
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in told.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def read_all(connection: socket.socket, read: bytes = b"") -> tuple[int, bytes]:
    """Status and bytes of an answer, until the server closes; status 0 if there is none.

    ``read`` are the bytes of it that were received before.
    """
    parts = [read]
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    data = b"".join(parts)
    status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
    assert status < 400 or not LEAK.search(data), data
    return status, data


def read_one(connection: socket.socket) -> int:
    """Status of one answer, read to its end, on a connection that stays open.

    Headers and body may arrive apart: one ``recv`` can leave the body to the next answer.
    """
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def _processes() -> Iterator[tuple[int, int, list[str]]]:
    """Number, parent and command line of each process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        yield int(folder.name), parent, words


def _check_error(answer: httpx2.Response) -> None:
    if answer.status_code >= 400:
        assert not LEAK.search(answer.read()), answer.text


@contextmanager
def serving(
    *words: str, environment: dict[str, str] | None = None, files: int | None = None
) -> Iterator[Server]:
    """Run `vl2 serve` on a free port until the block ends; `files` is how many it may open."""
    most = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)) if files else None
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "vl2", "serve", "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        preexec_fn=most,
    )
    log: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    try:
        address = process.stdout.readline().strip()
        late.cancel()
        assert address, "".join(log)
        yield Server(address, process, log, time.monotonic() - begun)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        reader.join(5)
        process.stdout.close()
        process.stderr.close()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes | Path | Image.Image, kind: str = "image/png") -> str:
    if isinstance(data, Image.Image):
        data = png(data)
    if isinstance(data, Path):
        data = data.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes | Path | Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def asks(*parts: dict[str, Any] | str) -> dict[str, Any]:
    """A user message of pictures and texts."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}
