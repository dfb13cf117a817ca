"""What stands before every route: who asks, from where, how often; and what every answer carries.

Everything needs a key unless it is listed as open, so that a new route is closed until someone
opens it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.logs import get_logger
from vl2.serve.admission import Rates
from vl2.serve.config import LOCAL_NAMES, ServeConfig
from vl2.serve.errors import ApiError, shown, shutting_down
from vl2.serve.metrics import Metrics

log = get_logger(__name__)

OPEN = ("/", "/health/live", "/health/ready")
OPEN_FOLDER = "/web/"
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses what may not come in, then counts and logs what happened to the rest."""

    app: ASGIApp
    config: ServeConfig
    rates: Rates
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        assert scope["type"] == "http", scope["type"]  # uvicorn is told to know no other
        began, number, status, begun = time.monotonic(), uuid.uuid4().hex, 500, False
        scope["state"]["request_id"] = number

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                told = (*message.get("headers", ()), *HEADERS, (b"x-request-id", number.encode()))
                message = {**message, "headers": told}
            await send(message)

        client = ""
        try:
            client = self._checked(scope)
            async with AsyncExitStack() as scope["state"]["cleanup"]:
                await self.app(scope, receive, answer)
        except ApiError as error:
            if error.status == 429:
                self.metrics.rejected.labels(error.code).inc()
            await error.response(scope, receive, answer)
        except asyncio.CancelledError:  # uvicorn's last means at the end of a drain
            if not begun:
                await shutting_down().response(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, str(status)).inc()
            seconds = round(time.monotonic() - began, 4)
            told = {"id": number, "route": route, "status": status, "seconds": seconds}
            log.info("request", extra={"fields": {**told, "client": client}})

    def _checked(self, scope: Scope) -> str:
        """The name of the client's key, or nothing where none is needed.

        Raises:
            ApiError: it may not ask this, or not now.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.config.keys.digests:
            self._check_host(host)
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(
                403,
                "forbidden_origin",
                f"origin is {shown(origin)}: expected that of host {shown(host)}; behind a proxy, "
                "let it pass on the Host header",
            )
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_FOLDER)):
            return ""
        client = self._client(headers.get(b"authorization", ""), scope["state"])
        if method == "POST":
            self.rates.take(client)
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":  # what a form of a foreign page cannot send
                raise ApiError(
                    415,
                    "unsupported_media",
                    f"content-type is {shown(kind)}: expected application/json",
                )
        return client

    def _check_host(self, host: str) -> None:
        """Refuse a name that another page's address may have been made to mean this machine."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in (
            *LOCAL_NAMES,
            *map(str.lower, (self.config.host, *self.config.names)),
        ):
            raise ApiError(
                403,
                "forbidden_host",
                f"host is {shown(host)}: expected a name of this server; use localhost, or start "
                "it with --allowed-host",
            )

    def _client(self, authorization: str, state: dict[str, Any]) -> str:
        keys = self.config.keys
        if not keys.digests:
            state["trusted"] = True
            return "local"
        scheme, _, key = authorization.partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        name, trusted = keys.name_of(key), self.config.trusted.name_of(key)
        state["trusted"] = trusted is not None
        if name is None:
            raise ApiError(
                401, "unauthorized", "no valid API key: send it as Authorization: Bearer KEY"
            )
        return name
