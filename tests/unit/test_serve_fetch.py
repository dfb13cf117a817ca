"""Pictures from other hosts: which addresses are never dialled, and what an answer may do."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from tests.unit.hostile_urls import HOSTILE

from vl2.serve.config import Limits
from vl2.serve.errors import ApiError
from vl2.serve.fetch import Fetcher, fetcher, is_public
from vl2.serve.prompt import source_of

LIMIT = 100_000
PUBLIC, OTHER = "93.184.216.34", "93.184.216.35"

PRIVATE = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "fd00::1", "fc00::1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2002:7f00:1::", "2002:808:808::",
    "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2001::1", "2001:db8::1", "100::1",
    "5f00::1", "4000::1", "", "localhost", "1", "0x7f000001", "127.0.0.1.", "[::1]",
]  # fmt: skip


@dataclass
class World:
    """A resolver and a network of one local server, which count what is asked of them."""

    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    addresses: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    dialled: list[tuple[str, int, str]] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    port: int = 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        given = self.addresses.get(host, [[PUBLIC]])
        return given.pop(0) if len(given) > 1 else given[0]

    async def dial(
        self, address: str, port: int, name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.dialled.append((address, port, name))
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths.append(head.split(b" ")[1])
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def get(self, url: str, hosts: tuple[str, ...] = ("allowed.example",), seconds: float = 10):
        """What the fetcher makes of an address: bytes, or its error."""

        async def run() -> bytes | ApiError:
            async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
                self.port = server.sockets[0].getsockname()[1]
                fetcher = Fetcher(
                    hosts=hosts,
                    max_bytes=LIMIT,
                    resolve=self.resolve,
                    dial=self.dial,
                    seconds=seconds,
                )
                try:
                    return await fetcher.get(url, "image")
                except ApiError as error:
                    return error

        return asyncio.run(run())


def sends(*parts: bytes, wait: float = 0):
    """A server that answers in parts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(wait)

    return answer


def ok(body: bytes = b"picture", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(headers or (f"Content-Length: {len(body)}",))]
    return "\r\n".join([*lines, "", ""]).encode() + body


def to(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_the_internet_s(address: str):
    assert not is_public(address)
    world = World(sends(ok()), {"allowed.example": [[PUBLIC, address]]})
    refused = world.get("https://allowed.example/a.png")
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.code) == (400, "image_url_not_allowed")
    assert world.dialled == []
    if address:
        assert address not in refused.message


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"])
def test_addresses_of_the_internet(address: str):
    assert is_public(address)


@pytest.mark.parametrize("hosts", [(), ("allowed.example",), (".other.example",)])
def test_no_hostile_address_is_dialled(hosts: tuple[str, ...]):
    assert len(HOSTILE) >= 40
    for url in HOSTILE:
        world = World(sends(ok()), {name: [["127.0.0.1"]] for name in ("localhost", "127.0.0.1")})
        refused = world.get(url, hosts)
        assert isinstance(refused, ApiError), url
        assert refused.status == 400
        assert world.dialled == world.resolved == [], url


@pytest.mark.parametrize("location", [*HOSTILE, "//127.0.0.1/", "https:\\\\127.0.0.1", "//evil/"])
def test_no_redirect_leads_to_a_hostile_address(location: str):
    if "\r" in location or "\x00" in location or not location.isascii():
        return
    world = World(sends(to(location)))
    refused = world.get("https://allowed.example/a.png")
    assert isinstance(refused, ApiError)
    assert refused.status == 400
    assert {name for _, _, name in world.dialled} == {"allowed.example"}
    assert set(world.resolved) == {"allowed.example"}


def test_without_allowed_hosts_nothing_is_fetched():
    world = World(sends(ok()))
    refused = world.get("https://allowed.example/a.png", ())
    assert isinstance(refused, ApiError)
    assert refused.code == "image_url_not_allowed"
    assert world.resolved == []


def test_a_name_is_resolved_once_and_the_checked_address_dialled():
    world = World(sends(ok()), {"allowed.example": [[OTHER], ["127.0.0.1"]]})
    assert world.get("https://allowed.example:443/a.png?b=c#d") == b"picture"
    assert world.resolved == ["allowed.example"]
    assert world.dialled == [(OTHER, 443, "allowed.example")]
    assert world.paths == [b"/a.png?b=c"]


def test_each_redirect_is_resolved_and_checked_again():
    world = World(sends(to("/b.png")), {"allowed.example": [[PUBLIC], ["169.254.169.254"]]})
    refused = world.get("https://allowed.example/a.png")
    assert isinstance(refused, ApiError)
    assert refused.code == "image_url_not_allowed"
    assert len(world.dialled) == 1


@pytest.mark.parametrize(("hops", "fetched"), [(0, True), (5, True), (6, False), (99, False)])
def test_redirects_are_few(hops: int, fetched: bool):
    left = hops

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        left -= 1
        writer.write(to(f"https://b.allowed.example/{left}") if left >= 0 else ok())

    world = World(answer)
    found = world.get("https://a.allowed.example/", (".allowed.example",))
    assert (found == b"picture") == fetched
    assert len(world.dialled) == min(hops, 5) + 1


def test_names_below_a_domain_and_ports_are_allowed_as_written():
    world = World(sends(ok()))
    fetcher = Fetcher(
        hosts=(".a.example", "B.example:8443"), max_bytes=1, resolve=world.resolve, dial=world.dial
    )
    for host, port, fits in (
        ("x.a.example", 443, True),
        ("a.example", 443, False),
        ("xa.example", 443, False),
        ("b.example", 443, False),
        ("b.example", 8443, True),
    ):
        assert fetcher._allows(host, port) == fits


CHUNKED = ("Transfer-Encoding: chunked",)
LARGE = b"x" * (LIMIT + 1)


@pytest.mark.parametrize(
    "parts",
    [
        [ok(LARGE)],
        [ok(b"", f"Content-Length: {10**12}")],
        [ok(b"", *CHUNKED), *[b"8000\r\n" + b"x" * 0x8000 + b"\r\n"] * 8],
        [ok(LARGE, "Connection: close")],
    ],
)
def test_large_bodies_are_cut(parts: list[bytes]):
    refused = World(sends(*parts)).get("https://allowed.example/")
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.code) == (413, "file_too_large")


@pytest.mark.parametrize(
    "parts",
    [
        [ok(b"x" * 9, "Content-Length: 10")],
        [ok(b"", "Content-Length: -1")],
        [ok(b"", "Content-Length: 1", "Content-Length: 2")],
        [ok(b"x", "Content-Encoding: gzip", "Content-Length: 1")],
        [ok(b"x", "Content-Encoding: GZIP, gzip", "Content-Length: 1")],
        [ok(b"x", "Transfer-Encoding: gzip")],
        [ok(b"", *CHUNKED), b"zz\r\n"],
        [b"HTTP/1.1 404 No\r\n\r\n"],
        [b"HTTP/1.1 206 Part\r\nContent-Length: 1\r\n\r\nx"],
        [b"HTTP/1.1 302 Go\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"],
        [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000],
        [b"HTTP/1.1 103 Early\r\n\r\n" * 50 + b"x"],
        [b"SSH-2.0-x\r\n"],
        [b""],
    ],
)
def test_what_is_no_proper_answer_fails(parts: list[bytes]):
    refused = World(sends(*parts)).get("https://allowed.example/")
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.code) == (400, "image_url_failed")
    assert "allowed.example" not in refused.message


def test_informational_answers_are_passed_over():
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    assert World(sends(early, early + ok())).get("https://allowed.example/") == b"picture"


@pytest.mark.parametrize(
    "answer",
    [
        sends(*[b"x"] * 1000, wait=0.05),
        sends(ok(b"", "Content-Length: 1000"), *[b"x"] * 1000, wait=0.05),
        sends(*[b"HTTP/1.1 103 Early\r\n\r\n"] * 1000, wait=0.01),
        sends(wait=100),
    ],
)
def test_slow_answers_are_cut(answer):
    begun = time.monotonic()
    refused = World(answer).get("https://allowed.example/", seconds=0.3)
    assert isinstance(refused, ApiError)
    assert refused.code == "image_url_failed"
    assert time.monotonic() - begun < 5


def test_a_host_that_takes_no_connection_is_left(monkeypatch: pytest.MonkeyPatch):
    async def dial(*_: object):
        await asyncio.sleep(100)

    monkeypatch.setattr("vl2.serve.fetch.CONNECT_SECONDS", 0.1)
    world = World(sends(ok()))
    monkeypatch.setattr(world, "dial", dial)
    begun = time.monotonic()
    refused = world.get("https://allowed.example/")
    assert isinstance(refused, ApiError)
    assert refused.code == "image_url_failed"
    assert time.monotonic() - begun < 5


def test_names_that_nobody_looks_up_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch):
    """The threads that read requests are others."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(60) and [])

    async def run() -> list[object]:
        hasty = replace(fetcher(("allowed.example",), LIMIT), seconds=0.3)
        asked = [hasty.get("https://allowed.example/", "image") for _ in range(50)]
        waiting = asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0.05)
        try:
            await asyncio.wait_for(asyncio.to_thread(time.monotonic), 20)
            return await waiting
        finally:
            answered.set()

    codes = {error.code for error in asyncio.run(run()) if isinstance(error, ApiError)}
    assert codes == {"image_url_failed"}


def test_an_answer_may_end_with_its_connection():
    world = World(sends(ok(b"picture", "Connection: close")))
    assert world.get("https://allowed.example/") == b"picture"


def test_only_https_addresses_are_left_to_the_fetcher():
    passed = []
    for url in HOSTILE:
        with suppress(ApiError):
            passed.append(source_of(url, "image", Limits()).url)
    assert all(url and url.startswith("https://") for url in passed)
    with pytest.raises(ApiError, match="expected data:image/png"):
        source_of("file:///etc/passwd", "image", Limits())
