"""Who may come in: so many requests at once, so many more that wait, so many a minute."""

from __future__ import annotations

import time
from collections import OrderedDict

from vl2.serve.errors import ApiError

MAX_CLIENTS = 10_000
"""Clients whose buckets are remembered."""


class Gate:
    """Counts requests from their headers to the end of their answer.

    A place is one answer that runs or waits. The first of a request is taken before its body is
    read; a request for n answers takes the others when that is known.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.places = running + waiting
        self.taken = 0
        self._running = running
        self._seconds = 1.0  # that a place is held, on average

    def enter(self) -> Place:
        """One place.

        Raises:
            ApiError: all are taken; it says when to try again.
        """
        self.take(1)
        return Place(self)

    def take(self, count: int) -> None:
        """So many places.

        Raises:
            ApiError: there are fewer.
        """
        if self.taken + count > self.places:
            ahead = max(1, self.taken - self._running + count)
            raise ApiError(
                429,
                "overloaded",
                f"the server works on {self.taken} answers and takes no more than {self.places}: "
                "try again later",
                retry_after=min(30.0, self._seconds * ahead / self._running),
            )
        self.taken += count

    def give_back(self, count: int, seconds: float) -> None:
        """Places of a request that took so long."""
        self.taken -= count
        self._seconds += 0.1 * (seconds - self._seconds)


class Place:
    """The places of one request, for a `with` block."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._count = 1
        self._began = time.monotonic()

    def more(self, count: int) -> None:
        """Take further places.

        Raises:
            ApiError: there are fewer.
        """
        self._gate.take(count)
        self._count += count

    def close(self) -> None:
        """Give all of them back, once."""
        if self._count:
            self._gate.give_back(self._count, time.monotonic() - self._began)
        self._count = 0


class Rates:
    """A token bucket for each client: `per_minute` requests at once, refilled evenly; 0 is off."""

    def __init__(self, per_minute: int) -> None:
        self._most = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float | None = None) -> None:
        """Count a request.

        Raises:
            ApiError: the client sent too many.
        """
        if not self._most:
            return
        now = time.monotonic() if now is None else now
        left, at = self._buckets.pop(client, (float(self._most), now))
        left = min(self._most, left + (now - at) * self._most / 60)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise ApiError(
                429,
                "rate_limited",
                f"more than {self._most} requests a minute: try again later",
                retry_after=(1 - left) * 60 / self._most,
            )
