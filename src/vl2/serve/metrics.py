"""Prometheus metrics: what came in, how it ended, how long it took, what the engine does.

accepted = finished + aborted + errored + inflight at every scrape: they move together on the
server's one loop. No label holds what a client chose.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vl2 import __version__
from vl2.serve.wire import Message

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ENGINE_GAUGES = ("running", "waiting", "blocks_free")
ENGINE_COUNTERS = (
    "steps",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "preemptions",
    "tiles_encoded",
    "pictures_reused",
)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answered requests.", "route", "code")
        self.rejected = self._counter("rejected", "Requests refused at the gate.", "reason")
        self.images_rejected = self._counter("images_rejected", "Refused pictures.", "code")
        self.accepted = self._counter("accepted", "Requests that were let in.")
        self.finished = self._counter("finished", "Requests that were answered in full.")
        self.aborted = self._counter("aborted", "Requests whose client left, or that timed out.")
        self.errored = self._counter("errored", "Requests that were let in and ended in an error.")
        self.guarded = self._counter("repetition_guard_fired", "Answers that the guard turned.")
        self.inflight = self._gauge("inflight", "Requests that are being answered.")
        self.first_token = self._histogram("time_to_first_token", "From request to first text.")
        self.between_tokens = self._histogram("inter_token", "Between pieces of text.")
        self.whole = self._histogram("request", "From request to end.")
        self.decoding = self._histogram("image_decode", "Reading the pictures of a request.")
        self._engine = {
            name: self._gauge(f"engine_{name}", f"The engine's {name.replace('_', ' ')}.")
            for name in ("up", "restarts", *ENGINE_GAUGES, *ENGINE_COUNTERS)
        }
        self._workers = self._gauge("worker_restarts", "Processes for pictures that were replaced.")
        self._tasks = self._gauge("tasks", "Tasks of the server's loop; they grow with a leak.")
        self._gauge("build_info", "Version of vl2.", "version").labels(__version__).set(1)

    def begin(self) -> None:
        """A request was let in."""
        self.accepted.inc()
        self.inflight.inc()

    def end(self, how: Counter) -> None:
        """It has ended: `finished`, `aborted` or `errored`."""
        self.inflight.dec()
        how.inc()

    def text(self, beat: Message, *, up: bool, restarts: int, worker_restarts: int) -> bytes:
        """Everything in Prometheus' format, with the engine's latest counters."""
        self._engine["up"].set(up)
        self._engine["restarts"].set(restarts)
        self._workers.set(worker_restarts)
        self._tasks.set(len(asyncio.all_tasks()))
        for name in (*ENGINE_GAUGES, *ENGINE_COUNTERS):
            self._engine[name].set(beat.get(name, 0))
        return generate_latest(self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"vl2_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"vl2_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str) -> Histogram:
        full = f"vl2_{name}_seconds"
        return Histogram(full, told, registry=self.registry, buckets=SECONDS)
