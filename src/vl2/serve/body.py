"""The body of a request, within its limits of bytes and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from vl2.serve.apart import apart
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError
from vl2.serve.schema import T, validated
from vl2.serve.strict_json import loads


async def read_request(request: Request, kind: type[T], limits: Limits) -> tuple[T, int]:
    """The request that a body holds, and the body's bytes.

    Raises:
        ApiError: it is too large, comes too slowly, or is no such request.
        ClientDisconnect: the client has gone.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limits.max_body:
        raise _too_large(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            "body_timeout",
            f"the body took longer than {limits.body_timeout:g} s: send it faster, or less of it",
        ) from None
    return await apart(size, _read, kind, b"".join(parts)), size


def _read(kind: type[T], body: bytes) -> T:
    return validated(kind, loads(body))


async def gone(request: Request) -> None:
    """Returns when the client has gone; its body must have been read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"the body has more than {limits.max_body:,} bytes: send fewer or smaller pictures",
    )
