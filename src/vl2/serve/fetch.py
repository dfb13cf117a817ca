"""Pictures from allowed hosts: resolved once, dialled at the address that was checked.

A client that resolves again, as libraries for HTTP do, can be led to another address the second
time; so this speaks HTTP/1.1 by h11 over a connection of its own. By default no host is allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urljoin, urlsplit

import h11

from vl2.serve.errors import ApiError

MAX_REDIRECTS = 5
CONNECT_SECONDS, TOTAL_SECONDS = 5.0, 10.0
CHUNK = 2**16
LOOKUPS = 4
"""Names that are looked up together."""

_UNSAFE = re.compile(r"[^\x21-\x7e]|[\\@]")
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All IPv6 addresses that are given to hosts of the internet."""
_TRANSLATED = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))
"""Those among them that stand for IPv4 addresses: 6to4 and Teredo."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Dial = Callable[[str, int, str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(frozen=True, slots=True)
class Target:
    """A checked address: where to ask, and for what."""

    host: str
    port: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetcher:
    """Fetches from `hosts`: names, ".name" for all below it, each with ":port" unless it is 443."""

    hosts: tuple[str, ...]
    max_bytes: int
    resolve: Resolve
    dial: Dial
    seconds: float = TOTAL_SECONDS

    async def get(self, url: str, param: str) -> bytes:
        """The body behind an https address.

        Raises:
            ApiError: it is not allowed, cannot be fetched, or is too large. The message does not
                tell which host answered what: that would map the server's own network.
        """
        try:
            async with asyncio.timeout(self.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    body, location = await self._once(self._target(url, param), param)
                    if location is None:
                        return body
                    url = urljoin(url, location)
        except (OSError, ssl.SSLError, h11.ProtocolError, TimeoutError, ValueError):
            raise _failed(param) from None
        raise _failed(param)

    def _target(self, url: str, param: str) -> Target:
        """Check an address by its text.

        Raises:
            ApiError: it is no plain https address of an allowed host.
        """
        if _UNSAFE.search(url) or len(url) > 2048:
            raise _forbidden(param)
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        if parts.scheme != "https" or not host or not self._allows(host, port):
            raise _forbidden(param)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(host, port, path)

    def _allows(self, host: str, port: int) -> bool:
        for allowed in self.hosts:
            name, _, number = allowed.lower().partition(":")
            if port == int(number or 443) and (
                host == name or (name.startswith(".") and host.endswith(name))
            ):
                return True
        return False

    async def _once(self, target: Target, param: str) -> tuple[bytes, str | None]:
        """One request: the body, or where a redirect leads."""
        addresses = await self.resolve(target.host, target.port)
        if not addresses or not all(map(is_public, addresses)):
            raise _forbidden(param)
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await self.dial(addresses[0], target.port, target.host)
        try:
            return await self._exchange(reader, writer, target, param)
        finally:
            writer.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: Target,
        param: str,
    ) -> tuple[bytes, str | None]:
        connection = h11.Connection(h11.CLIENT)
        host = target.host if target.port == 443 else f"{target.host}:{target.port}"
        headers = [("Host", host), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
        request = h11.Request(
            method="GET", target=target.path, headers=[*headers, ("Connection", "close")]
        )
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(CHUNK))
            elif isinstance(event, h11.Response):
                told = {name: value.decode("latin-1") for name, value in event.headers}
                if event.status_code in (301, 302, 303, 307, 308) and b"location" in told:
                    return b"", told[b"location"]
                if (
                    event.status_code != 200
                    or told.get(b"content-encoding", "identity") != "identity"
                ):
                    raise _failed(param)
                if int(told.get(b"content-length", "0")) > self.max_bytes:
                    raise self._too_large(param)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.max_bytes:
                    raise self._too_large(param)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body), None

    def _too_large(self, param: str) -> ApiError:
        return ApiError(
            413,
            "file_too_large",
            f"the picture has more than {self.max_bytes:,} bytes: send a smaller one",
            param=param,
        )


def fetcher(hosts: tuple[str, ...], max_bytes: int) -> Fetcher:
    """A fetcher by the system's resolver and TLS."""
    context = ssl.create_default_context()
    # The system's resolver takes as long as it likes: not in the threads that read requests.
    names = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="vl2-names")

    async def resolve(host: str, port: int) -> list[str]:
        look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(names, look)
        return [str(address[0]) for *_, address in found]

    async def dial(
        address: str, port: int, name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(address, port, ssl=context, server_hostname=name)

    return Fetcher(hosts=hosts, max_bytes=max_bytes, resolve=resolve, dial=dial)


def is_public(address: str) -> bool:
    """Whether an address is one that the whole internet may reach."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (
        found not in _UNICAST or any(found in net for net in _TRANSLATED)
    ):
        return False
    return found.is_global and not found.is_multicast


def _forbidden(param: str) -> ApiError:
    return ApiError(
        400,
        "image_url_not_allowed",
        f"{param} is an address that this server does not fetch: send the picture as a data URL, "
        "or start the server with --image-host for its host",
        param=param,
    )


def _failed(param: str) -> ApiError:
    return ApiError(
        400,
        "image_url_failed",
        f"{param} cannot be fetched: send the picture as a data URL",
        param=param,
    )
