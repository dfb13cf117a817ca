"""A Ray Serve application of two servers, one of which is killed under load.

Ray lives in an environment of its own, as a user's would: `make scale-ray` makes it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

pytestmark = [pytest.mark.scale, pytest.mark.timeout(900)]

SERVE = Path(__file__).parents[2] / ".venv-scale" / "bin" / "serve"
START_SECONDS = 300
END_SECONDS = 240
LONG, SHORT = 600, 60
"""Tokens of streams and of whole answers."""


@dataclass
class Application:
    """A running application; `log` is Ray's and the servers'."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=END_SECONDS)

    def servers(self) -> dict[psutil.Process, psutil.Process]:
        """Replicas that have a running `vl2 serve`, and it."""
        found = {}
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "serve" in one.cmdline()[1:5] and "vl2" in one.cmdline():
                    found[one.parent()] = one
        return found

    def await_servers(self, seconds: float = START_SECONDS) -> None:
        """Wait until requests reach two servers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(httpx2.TransportError, psutil.Error), self.client() as client:
                for _ in range(8):
                    client.get("/v1/models", timeout=5)
                if [reached(one) for one in self.servers().values()] == [True, True]:
                    return
            time.sleep(1)
        raise AssertionError(f"no two servers after {seconds:g} s:\n{self.log.read_text()}")


def reached(server: psutil.Process) -> bool:
    """Whether a server has answered a request for its models."""
    ports = [one.laddr.port for one in server.net_connections("tcp") if one.status == "LISTEN"]
    metrics = [httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text for port in ports]
    return any('route="/v1/models"' in one for one in metrics)


@dataclass
class Outcome:
    """What came of a request."""

    status: int = 0
    begun: float = 0.0  # when a stream's first event came
    events: list[Any] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Code of the error by which a stream ended."""
        return next((one["error"]["code"] for one in self.events if "error" in one), None)


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """Two servers of the embedded model on this machine."""
    assert SERVE.is_file(), "Ray's environment is missing: run `make scale-ray`"
    folder = tmp_path_factory.mktemp("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = {"name": "vl2", "import_path": "vl2.serve.ray_app:build"}
    settings = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{**app, "args": {"model": "nano", "replicas": 2}}],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [SERVE, "run", folder / "serve.yaml"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    running = Application(f"http://127.0.0.1:{port}", process, log)
    try:
        running.await_servers()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()


def ask(application: Application, outcome: Outcome, *, stream: bool) -> None:
    """One request to its end."""
    tokens = LONG if stream else SHORT
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": "What do you see?"}],
        "stream": stream,
        "min_tokens": tokens,
        "max_tokens": tokens,
        "repetition_guard": False,
    }
    with application.client() as client:
        if not stream:
            response = client.post("/v1/chat/completions", json=body)
            outcome.status, outcome.events = response.status_code, [response.json()]
            return
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            outcome.status = response.status_code
            for line in response.iter_lines():
                if line.startswith("data:"):
                    outcome.begun = outcome.begun or time.monotonic()
                    data = line.removeprefix("data:").strip()
                    outcome.events.append({"done": True} if data == "[DONE]" else json.loads(data))


@pytest.mark.parametrize("victim", ["replica", "server"])
def test_no_request_is_lost_or_hangs_when_one_of_two_is_killed(
    application: Application, victim: str
):
    application.await_servers()
    streams, whole = [Outcome() for _ in range(8)], [Outcome() for _ in range(8)]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, application, one, stream=True) for one in streams]
        while not all(one.begun for one in streams):
            time.sleep(0.01)
        asked += [pool.submit(ask, application, one, stream=False) for one in whole]
        time.sleep(0.5)
        assert not any({"done": True} in one.events for one in streams)
        replica, server = next(iter(application.servers().items()))
        (replica if victim == "replica" else server).kill()
        for future in asked:
            future.result(END_SECONDS)
    assert [one.status for one in whole] == [200] * 8
    assert [one.events[0]["usage"]["completion_tokens"] for one in whole] == [SHORT] * 8
    assert [one.status for one in streams] == [200] * 8
    assert all(one.events[-1] == {"done": True} for one in streams)
    errors = [one.error for one in streams]
    assert set(errors) == {None, "engine_restarted"}
    for one in streams:
        last = one.events[-2]
        assert one.error or last["choices"][0]["finish_reason"] == "length"
    psutil.wait_procs([replica, server], 60)
    assert not replica.is_running()
    assert not server.is_running()
    application.await_servers()


def test_an_answer_that_nobody_reads_is_given_up(application: Application):
    application.await_servers()
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": "What do you see?"}],
        "stream": True,
        "min_tokens": 4000,
        "repetition_guard": False,
    }
    with (
        application.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert next(response.iter_lines())
    end, calm = time.monotonic() + 60, 0
    while calm < 10 and time.monotonic() < end:
        with application.client() as client:
            calm = calm + 1 if "\nvl2_inflight 0.0" in client.get("/metrics").text else 0
        time.sleep(0.2)
    assert calm == 10


def test_refusals_come_through_as_the_servers_made_them(application: Application):
    with application.client() as client:
        unknown = client.post("/v1/chat/completions", json={"model": "other", "messages": []})
        page = client.get("/")
    assert unknown.status_code == 400
    assert unknown.json()["error"]["type"] == "invalid_request_error"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
