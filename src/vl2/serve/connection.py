"""A connection of uvicorn's that bounds a request's headers in bytes and in time.

uvicorn answers every malformed request with a text of its own and waits for headers for ever; this
stands in front of its protocol for h11 and passes on what is within the limits. Where too many are
open, one that does nothing makes room, since asyncio would take no other for a second at a time.
"""

from __future__ import annotations

import asyncio
import re
import resource
import socket
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vl2.serve.config import Limits
from vl2.serve.errors import ApiError

DISCARDED = 4
"""A refused body is read on, so that its sender comes to read why, up to so many times the largest
body; then the connection is cut."""
LINGER = 1.0
"""Seconds beyond a limit in which a refusal by the application itself is sent, and read."""

MOST_OPEN = 4096
"""Connections at a time, where the system lets a process have as many files."""

_END = re.compile(rb"\n\r?\n")
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _Transport:
    """uvicorn's view of a transport: to close it is the connection's affair."""

    def __init__(self, inner: asyncio.Transport, close: Callable[[], None]) -> None:
        self._inner, self._close, self._closed = inner, close, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def is_closing(self) -> bool:
        """Whether nothing more is written."""
        return self._closed or self._inner.is_closing()

    def close(self) -> None:
        """Write nothing more."""
        if not self._closed:
            self._closed = True
            self._close()


class GuardedConnection(asyncio.Protocol):
    """Counts and times what comes of each request, and how its answer is read."""

    def __init__(
        self,
        inner: H11Protocol,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        others: Connections,
    ) -> None:
        self._inner = inner
        self._limits = limits
        self._others = others
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._head = b""  # of the request whose headers come now
        self._body = 0  # bytes since the headers
        self._refused = False  # what still comes is not looked at
        self._answered = False  # and closed: a body that still comes is counted alone
        self._reading: asyncio.TimerHandle | None = None
        self._in_head = False
        self._writing: asyncio.TimerHandle | None = None
        inner.send_400_response = self._malformed  # pyright: ignore[reportAttributeAccessIssue]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # asyncio does so only where the socket's protocol number says TCP; an accepted one has 0. A
        # piece of an answer would wait until the client has acknowledged the one before: 40 ms.
        if peer := transport.get_extra_info("socket"):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inner.connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]
        self._expect_headers()
        self._others.enter(self)

    def data_received(self, data: bytes) -> None:
        """Pass data on within the limits."""
        state = self._inner.conn
        if self._answered:
            self._fits(data)
        if self._refused or self._answered:
            return
        if state.their_state is h11.IDLE and not self._in_head:
            self._expect_headers()
        if not self._fits(data):
            return
        self._inner.data_received(data)
        if self._in_head and state.their_state is not h11.IDLE:
            self._in_head, self._head, self._body = False, b"", len(data)
            self._others.enter(self)
            self._time(self._limits.body_timeout + LINGER, self.cut)
        if not self._in_head and state.their_state is not h11.SEND_BODY:
            self._time(None)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._others.leave(self)
        self._time(None)
        self.resume_writing()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slower than it is written to."""
        if self._writing is None:
            self._writing = self._loop.call_later(self._limits.send_timeout, self.cut)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None
        self._inner.resume_writing()

    def _fits(self, data: bytes) -> bool:
        """Count new data; what is too much ends the connection."""
        if not self._in_head:
            self._body += len(data)
            if self._body > DISCARDED * self._limits.max_body:
                self.cut()
            return not self._refused
        before = len(self._head)
        self._head += data
        end = _END.search(self._head, max(0, before - 2))
        if (end.start() if end else len(self._head)) > self._limits.header_bytes:
            limit = f"{self._limits.header_bytes:,} bytes"
            self._refuse(431, "headers_too_large", f"the headers have more than {limit}")
        return not self._refused

    def _expect_headers(self) -> None:
        self._head, self._in_head = b"", True
        self._time(self._limits.header_timeout, self._late)

    def _time(self, seconds: float | None, late: Callable[[], None] | None = None) -> None:
        """Set the one clock for what is read, or stop it."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None
        if seconds is not None and late is not None:
            self._reading = self._loop.call_later(seconds, late)

    def _late(self) -> None:
        if self._head:
            seconds = self._limits.header_timeout
            self._refuse(408, "headers_timeout", f"the headers took longer than {seconds:g} s")
        elif self._transport is not None:
            self._transport.close()

    def _malformed(self, _: str) -> None:
        told = "the request is not HTTP/1.1 as the standard writes it: use another client"
        self._refuse(400, "malformed_request", told)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in uvicorn's place, unless it has begun to answer, and read nothing more."""
        assert self._transport is not None
        if self._inner.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.cut()
            return
        response = ApiError(status, code, message).response
        lines = [b"HTTP/1.1 %d %s" % (status, _REASONS[status]), b"connection: close"]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body))
        self._refused = True
        self._inner.connection_lost(ConnectionAbortedError())  # it writes nothing more
        self._transport.write_eof()  # see `_close`
        self._time(LINGER, self.cut)

    def _close(self) -> None:
        """Close after an answer, once the body that it refuses has come.

        Closed at once, what the client still sends would be answered by a reset, and it might
        never read why.
        """
        assert self._transport is not None
        if self._inner.conn.their_state is h11.SEND_BODY and not self._transport.is_closing():
            self._answered = True
            self._transport.write_eof()
        else:
            self._transport.close()

    @property
    def idle(self) -> bool:
        """Whether no request is worked on, or its answer is not read."""
        working = self._inner.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)
        return not working or self._writing is not None

    def cut(self) -> None:
        """Close the connection at once."""
        self._refused = True
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """Those that are open, so many at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[GuardedConnection, None] = {}  # what was quiet for longest comes first

    def enter(self, one: GuardedConnection) -> None:
        """Count a connection that was opened, or that a request came on.

        If there are too many, the first that is idle is closed; if none is, the new one.
        """
        self.leave(one)
        if len(self._open) >= self._most:
            closed = next((other for other in self._open if other.idle), one)
            self.leave(closed)
            closed.cut()
            if closed is one:
                return
        self._open[one] = None

    def leave(self, one: GuardedConnection) -> None:
        """Forget a connection."""
        self._open.pop(one, None)


def room(places: int, limits: Limits) -> tuple[int, int]:
    """How many connections may be open, and how many are accepted before the first is counted.

    The others of this process's files are for its work: a request that was let in has files and
    tiles of its pictures in shared memory.
    """
    for_work = 128 + places * (2 * limits.max_images + 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN + for_work
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    for_work = min(for_work, files // 2)
    return min(MOST_OPEN, files - for_work), min(2048, max(16, for_work // 8))


def guarded(limits: Limits, most: int) -> Any:
    """A factory for uvicorn's `Config(http=...)`, for so many connections at most."""
    others = Connections(most)

    def make(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> asyncio.Protocol:
        loop = _loop or asyncio.get_running_loop()
        inner = H11Protocol(config, server_state, app_state, loop)
        return GuardedConnection(inner, limits, loop, others)

    return make
