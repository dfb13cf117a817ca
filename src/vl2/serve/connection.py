"""A connection of uvicorn's that bounds a request's headers in bytes and in time.

uvicorn answers every malformed request with a text of its own and waits for headers for ever; this
stands in front of its protocol for h11 and passes on what is within the limits.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vl2.serve.config import Limits
from vl2.serve.errors import ApiError

BODY_SLACK = 2**20
"""Bytes beyond the limit of a body after which its connection is cut, though it was answered."""

_END = b"\r\n\r\n"


class GuardedConnection(asyncio.Protocol):
    """Counts and times the headers of each request, then leaves the connection to uvicorn."""

    def __init__(self, inner: H11Protocol, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._limits = limits
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._head = b""  # of the request whose headers come now
        self._body = 0  # bytes since the headers
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Pass data on; while headers come they are counted."""
        assert self._transport is not None
        if self._timer is None and self._inner.conn.their_state is h11.IDLE:
            self._expect_headers()
        if self._timer is not None:
            self._head += data
            end = self._head.find(_END)
            size = len(self._head) if end < 0 else end
            if size > self._limits.header_bytes:
                limit = f"{self._limits.header_bytes:,} bytes"
                self._refuse(431, "headers_too_large", f"the headers have more than {limit}")
                return
            if end >= 0:
                self._stop_clock()
                self._body = len(data)
        else:
            self._body += len(data)
            if self._body > self._limits.max_body + BODY_SLACK:  # it was refused, and goes on
                self._transport.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_clock()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slower than it is written to."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._inner.resume_writing()

    def _expect_headers(self) -> None:
        self._head = b""
        self._timer = self._loop.call_later(self._limits.header_timeout, self._late)

    def _stop_clock(self) -> None:
        self._head = b""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _late(self) -> None:
        if self._head:
            seconds = self._limits.header_timeout
            self._refuse(408, "headers_timeout", f"the headers took longer than {seconds:g} s")
        elif self._transport is not None:
            self._transport.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        assert self._transport is not None
        response = ApiError(status, code, message).response
        reason = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        lines = [b"HTTP/1.1 %d %s" % (status, reason), b"connection: close"]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self._transport.write(b"\r\n".join(lines) + _END + bytes(response.body))
        self._stop_clock()
        self._transport.close()


def guarded(limits: Limits) -> Any:
    """A factory for uvicorn's `Config(http=...)`."""

    def make(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> asyncio.Protocol:
        loop = _loop or asyncio.get_running_loop()
        inner = H11Protocol(config, server_state, app_state, loop)
        return GuardedConnection(inner, limits, loop)

    return make
