"""What whoever starts a server chooses: address, keys, limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from vl2.processing.image_gate import ImagePolicy
from vl2.ranges import Range, check_ranges

MIB = 2**20
_IMAGE_HOST = re.compile(r"\.?[\w-]+(\.[\w-]+)*(:\d{1,5})?", re.ASCII)
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*|\[[\da-fA-F:.]+\]", re.ASCII)

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much one request, one client and all of them may ask for.

    Attributes:
        max_running: requests that the engine works on; None takes the engine's own number.
        max_waiting: requests beside those; the next one is refused. None means four times as many.
        queue_timeout: seconds that a request may wait for its first step.
        request_timeout: seconds that it may take in all.
        drain_timeout: seconds that a stopping server waits for what it has begun.
        max_body: bytes of a request.
        max_image: bytes of a picture or PDF.
        max_images: pictures of a request, pages of PDFs among them.
        max_pixels: pixels of a picture that are decoded.
        max_request_pixels: the same of all pictures of a request.
        max_dpi: of a PDF's pages.
        max_n: answers to one request.
        header_bytes: bytes of a request's headers.
        header_timeout: seconds for them.
        body_timeout: seconds for the body.
        send_timeout: seconds that a client may leave an answer unread.
        requests_per_minute: of one key, or of all clients where there are no keys; 0 is off.
        workers: processes that decode pictures.
        worker_seconds: processor time for one picture or page.
        worker_bytes: memory of such a process.
        stall_seconds: a server whose engine did no step for so long is not ready.
    """

    max_running: Annotated[int | None, Range(least=1, most=4096)] = None
    max_waiting: Annotated[int | None, Range(least=0, most=65536)] = None
    queue_timeout: Annotated[float, Range(above=0)] = 60.0
    request_timeout: Annotated[float, Range(above=0)] = 600.0
    drain_timeout: Annotated[float, Range(least=0)] = 30.0
    max_body: Annotated[int, Range(least=1024)] = 32 * MIB
    max_image: Annotated[int, Range(least=1024)] = 20 * MIB
    max_images: Annotated[int, Range(least=0, most=1024)] = 16
    max_pixels: Annotated[int, Range(least=1)] = 40_000_000
    max_request_pixels: Annotated[int, Range(least=1)] = 80_000_000
    max_dpi: Annotated[float, Range(above=0, most=1200)] = 300.0
    max_n: Annotated[int, Range(least=1, most=8)] = 8
    header_bytes: Annotated[int, Range(least=1024)] = 16 * 1024
    header_timeout: Annotated[float, Range(above=0)] = 10.0
    body_timeout: Annotated[float, Range(above=0)] = 30.0
    send_timeout: Annotated[float, Range(above=0)] = 30.0
    requests_per_minute: Annotated[int, Range(least=0)] = 0
    workers: Annotated[int, Range(least=1, most=256)] = 2
    worker_seconds: Annotated[int, Range(least=1)] = 10
    worker_bytes: Annotated[int, Range(least=2**28, most=2**40)] = 2 * 2**30
    stall_seconds: Annotated[float, Range(above=0)] = 10.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_ranges(self)

    @property
    def pictures(self) -> ImagePolicy:
        """How pictures are admitted."""
        return ImagePolicy(max_pixels=self.max_pixels, max_bytes=self.max_image)


def check_key(key: str, where: str) -> None:
    """Refuse what is no key, without showing it.

    Raises:
        ValueError: it is too short, or holds what no header can.
    """
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{where} is unfit: expected at least 8 visible ASCII characters without spaces"
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of the API keys; the keys themselves are not kept."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Digests of keys.

        Raises:
            ValueError: a key is too short to be one, or holds what no header can.
        """
        keys = list(keys)
        for number, key in enumerate(keys, 1):
            check_key(key, f"API key {number} of {len(keys)}")
        return cls(tuple(_digest(key) for key in keys))

    def name_of(self, key: str) -> str | None:
        """Six digits by which a log may call a known key; None for an unknown one.

        Every digest is compared, in constant time, whichever fits.
        """
        digest = _digest(key)
        known = [hmac.compare_digest(digest, one) for one in self.digests]
        return digest.hex()[:6] if any(known) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Where a server listens, to whom, and within which limits.

    Attributes:
        host: address.
        port: 0 takes a free one.
        keys: API keys; without any, only this machine is served.
        trusted: those of them that may send raw prompts, whose control strings are obeyed; without
            any keys everybody may.
        names: further host names by which clients may call the server, as a proxy passes them on.
        image_hosts: hosts from which pictures are fetched, such as "img.example.org" or
            ".example.org" for all hosts below it; none by default.
        limits: see `Limits`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=Keys)
    trusted: Keys = field(default_factory=Keys)
    names: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse an address that everybody reaches without a key, and what is no host."""
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}: expected 0 (any free one) to 65535")
        if not self.keys.digests and not is_local(self.host):
            raise ValueError(
                f"--host {self.host} can be reached from other machines: give --api-key, or use "
                "--host 127.0.0.1"
            )
        for option, hosts, form, example in (
            ("--image-host", self.image_hosts, _IMAGE_HOST, "img.example.org or .example.org"),
            ("--allowed-host", self.names, _NAME, "api.example.org, without a port"),
        ):
            for host in hosts:
                if not form.fullmatch(host):
                    raise ValueError(
                        f"{option} is {host!r:.80}: expected the name of a host, such as {example}"
                    )


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
