"""Several servers as one Ray Serve application: `serve run vl2.serve.ray_app:build model=tiny`.

A replica is a `vl2 serve` on a free port of its machine. One front takes the requests; it sends a
request that has not been answered yet to another replica when its own dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp  # pyright: ignore[reportMissingImports] - part of ray[serve]
from pydantic import BaseModel, Field
from ray import serve  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vl2.serve.engine_client import TRIES, engine_error

EVENT_END = b"\r\n\r\n"
OF_ONE_HOP = {"connection", "content-length", "date", "keep-alive", "transfer-encoding"}
NO_LIMIT = 10_000
"""Requests at once: the servers have limits of their own, and say so in OpenAI's shape."""

Headers = list[tuple[str, str]]


class Arguments(BaseModel, extra="forbid"):
    """What `serve run ... name=value` takes.

    Attributes:
        model: as `vl2 serve` takes it; every machine must find it.
        replicas: servers.
        cpus: cores, and so threads, of each.
        gpus: cards of each.
        options: further words of `vl2 serve`, such as "--quantization int8 limits.max_images=4".
    """

    model: str = "nano"
    replicas: int = Field(default=2, ge=1)
    cpus: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    options: str = ""


def build(given: dict[str, str]) -> Any:
    """The application, from the words of `serve run` or the `args` of Ray's configuration file."""
    arguments = Arguments.model_validate(given)
    server = serve.deployment(Server).options(
        num_replicas=arguments.replicas,
        max_ongoing_requests=NO_LIMIT,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )
    front = serve.deployment(Front).options(
        max_ongoing_requests=NO_LIMIT, ray_actor_options={"num_cpus": 0}
    )
    words = [arguments.model, *shlex.split(arguments.options)]
    return front.bind(server.bind(words))


class Server:
    """A replica: starts `vl2 serve` and passes requests on to it; they live and die together."""

    async def __init__(self, words: list[str]) -> None:
        # The kernel stops the server when this process is killed and can do so no more.
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "vl2", "serve"]
        self._process = await asyncio.create_subprocess_exec(
            *command, "--port", "0", *words, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._address = (await self._process.stdout.readline()).decode().strip()
        if not self._address:
            raise RuntimeError(f"vl2 serve {shlex.join(words)} did not start: see its log above")
        self._watch = asyncio.create_task(self._end_together())
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(),  # the server has deadlines
        )

    async def forward(
        self, method: str, target: str, headers: Headers, body: bytes
    ) -> AsyncIterator[Any]:
        """Status and headers, then the body: pieces of a stream, anything else as a whole."""
        asked = self._session.request(
            method, self._address + target, headers=headers, data=body, allow_redirects=False
        )
        async with asked as answer:
            yield answer.status, [*answer.headers.items()]
            if answer.content_type != "text/event-stream":
                yield await answer.read()
                return
            async for piece in answer.content.iter_any():
                yield piece

    async def check_health(self) -> None:
        """Ray starts another replica when this fails again and again."""
        limit = aiohttp.ClientTimeout(total=5)
        async with self._session.get(f"{self._address}/health/live", timeout=limit) as answer:
            answer.raise_for_status()

    async def __del__(self) -> None:
        """Ray has let this replica finish what it had: stop the server."""
        self._watch.cancel()
        self._process.terminate()
        await self._process.wait()

    async def _end_together(self) -> None:
        """A replica without a server fails requests fast, so that Ray would give it ever more."""
        await self._process.wait()
        os._exit(1)


class Front:
    """Takes the requests and gives each to a replica that Ray chooses."""

    def __init__(self, servers: Any) -> None:
        self._servers = servers.options(method_name="forward", stream=True)

    async def __call__(self, request: Request) -> Response:
        """One request; what no client has heard of yet is tried again."""
        query = request.url.query
        target = request.url.path + (f"?{query}" if query else "")
        headers = _end_to_end(request.headers.items())
        body = await request.body()
        for _ in range(TRIES):
            answer = self._servers.remote(request.method, target, headers, body)
            try:
                status, told = await anext(answer)
                first = await anext(answer, b"")
            except RayError:
                continue
            return StreamingResponse(_body(first, answer), status, dict(_end_to_end(told)))
        return engine_error().response


async def _body(held: bytes, answer: Any) -> AsyncIterator[bytes]:
    """The body from its first piece on; a stream whose replica dies ends with an error event."""
    try:
        async for piece in answer:
            whole, end, held = (held + piece).rpartition(EVENT_END)
            yield whole + end
        yield held
    except RayError:
        error = json.dumps(engine_error("engine_restarted").body)
        yield b"data: %b\r\n\r\ndata: [DONE]\r\n\r\n" % error.encode()
    finally:
        answer.cancel()


def _end_to_end(headers: Any) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in OF_ONE_HOP]
