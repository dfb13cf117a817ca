"""The server's side of the engine's process: sends requests, hears news, starts it again.

A request is held here until it has ended, so that the death of the process loses none: one that has
heard nothing is sent again, once; every other ends with an error.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from subprocess import Popen

from vl2.geometry import Resolution
from vl2.logs import get_logger
from vl2.processing.layout import TileLayout
from vl2.serve.errors import ApiError, ClientGone, refused
from vl2.serve.wire import Link, Message, start_process

log = get_logger(__name__)

FIRST_DELAY = 0.25
"""Seconds before another start, doubled for each death without an answer between them."""
DEATHS, DEATHS_WITHIN = 5, 60.0
"""So many deaths within so many seconds without an answer between them end the server."""
ENVIRONMENT = {"JAXTYPING_DISABLE": "1", "MALLOC_ARENA_MAX": "2"}
"""Of the engine's process. Its threads pass tensors on, and glibc's arena of each thread keeps what
the others free."""
HANG, LOOK = 300.0, 1.0
"""Seconds of silence after which the process is killed, and between two looks at it. One step of a
large model on a CPU may take many seconds."""
LATE = 5.0
"""Seconds beyond a request's own limit after which an engine that does not tell its end is not
waited for."""
TRIES = 2
"""How often a request is sent: the second time it may be the one that kills the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a loaded model is."""

    context: int
    max_num_seqs: int
    tiling: str
    max_tiled_images: int
    single_questions: bool
    adapters: list[str]
    layout: TileLayout

    @classmethod
    def of(cls, message: Message) -> Facts:
        """From a `ready` message."""
        told = dict(message["layout"])
        candidates: list[Resolution] = [(w, h) for w, h in told.pop("candidates")]
        fields = {name: message[name] for name in cls.__slots__ if name != "layout"}
        mean, std = tuple(told.pop("mean")), tuple(told.pop("std"))
        layout = TileLayout(candidates=tuple(candidates), mean=mean, std=std, **told)
        return cls(**fields, layout=layout)


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """A request at the engine; `memory` holds the pixels of its pictures."""

    message: Message
    memory: int | None
    inbox: asyncio.Queue[Message | Exception] = field(default_factory=asyncio.Queue)
    heard: bool = False
    tries: int = 0


class EngineFailed(Exception):
    """The model cannot be loaded; another try would fail as well."""


class EngineClient:
    """Starts the engine's process and keeps it alive.

    Attributes:
        facts: of the model, once it is loaded.
        beat: the latest sign of life with the engine's counters.
        restarts: how often the process died.
        gave_up: set when it died again and again.
    """

    def __init__(self, start: Message, *, module: str = "vl2.serve.engine_process") -> None:
        """Keep what to load.

        Args:
            start: the `start` message.
            module: what runs in the process; tests break it in ways of their own.
        """
        self.facts: Facts | None = None
        self.beat: Message = {}
        self.restarts = 0
        self.gave_up = asyncio.Event()
        self.draining = False
        self._start = {"kind": "start", **start}
        self._module = module
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._ready = asyncio.Event()
        self._beat_at = 0.0
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._process: Popen | None = None
        self._outbox: queue.SimpleQueue[tuple[Message, int | None] | None] = queue.SimpleQueue()
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> Facts:
        """Load the model.

        Raises:
            EngineFailed: it cannot be loaded; the message is for people.
        """
        self._supervisor = asyncio.create_task(self._supervise())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((self._supervisor, ready), return_when=asyncio.FIRST_COMPLETED)
        if self._supervisor.done():
            ready.cancel()
            self._supervisor.result()
            raise EngineFailed("the engine ended while it loaded the model: see the lines above")
        assert self.facts is not None
        return self.facts

    def ready(self, stall_seconds: float) -> str | None:
        """Why no request is answered now; None if they are."""
        if self.draining:
            return "shutting_down"
        if not self._ready.is_set():
            return "loading"
        return "stalled" if self.silent_for > stall_seconds else None

    async def request(
        self, message: Message, memory: int | None, gone: Coroutine[None, None, None] | None = None
    ) -> AsyncGenerator[Message]:
        """Send a request and yield its news; leaving early aborts it.

        Args:
            message: `ask` or `tokenize`, without its id.
            memory: descriptor of its pictures' pixels, which is closed at the end.
            gone: ends when nobody listens any longer.

        Raises:
            ApiError: it is refused, fails, or the engine died under it.
            ClientGone: nobody listens any longer.
        """
        number = next(self._numbers)
        job = Job(message={**message, "id": number}, memory=memory)
        watch = asyncio.create_task(gone) if gone else None
        if watch:
            watch.add_done_callback(lambda _: job.inbox.put_nowait(ClientGone()))
        late = asyncio.get_running_loop().call_later(
            message["timeout"] + LATE, job.inbox.put_nowait, timed_out()
        )
        try:
            if not self._ready.is_set():
                raise engine_unavailable()
            self._jobs[number] = job
            self._submit(job)
            left = message["params"]["n"] if message["kind"] == "ask" else 1
            while left:
                news = await job.inbox.get()
                if isinstance(news, Exception):
                    raise news
                left -= "end" in news or message["kind"] != "ask"
                if not left:
                    del self._jobs[number]
                yield news
        finally:
            late.cancel()
            if watch:
                watch.cancel()
            if self._jobs.pop(number, None) and self._ready.is_set():
                self._outbox.put(({"kind": "abort", "id": number}, None))
            if memory is not None:
                os.close(memory)

    def end_all(self, error: ApiError) -> None:
        """End every request with an error."""
        for number, job in list(self._jobs.items()):
            if self._ready.is_set():
                self._outbox.put(({"kind": "abort", "id": number}, None))
            self._end(number, job, error)

    async def stop(self) -> None:
        """End the process."""
        self.draining = True
        if self._supervisor:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError, EngineFailed):
                await self._supervisor
        self._kill()

    def _submit(self, job: Job) -> None:
        job.tries += 1
        memory = None if job.memory is None else os.dup(job.memory)
        self._outbox.put((job.message, memory))

    def _end(self, number: int, job: Job, error: ApiError) -> None:
        self._jobs.pop(number, None)
        job.inbox.put_nowait(error)

    async def _supervise(self) -> None:
        """Run the process; start it again when it ends."""
        while True:
            try:
                await self._run()
            except EngineFailed as error:
                if self.facts is None:
                    raise
                log.error("the model cannot be loaded again: %s", error)
            log.error("the engine's process ended: %d requests were with it", len(self._jobs))
            self.restarts += 1
            self._deaths.append(time.monotonic())
            lost = (
                len(self._deaths) == DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_WITHIN
            )
            self._bury(lost)
            if lost:
                log.error("the engine died %d times in a row: giving up", DEATHS)
                self.gave_up.set()
                return
            await asyncio.sleep(FIRST_DELAY * 2 ** len(self._deaths))

    async def _run(self) -> None:
        """One life of the process, until its link ends.

        Raises:
            EngineFailed: it says that the model cannot be loaded.
        """
        gone, failures = asyncio.Event(), list[str]()
        self._process, link = start_process(self._module, ENVIRONMENT)
        self._outbox = queue.SimpleQueue()
        self._outbox.put((self._start, None))
        hear = partial(self._hear, failures, gone)
        for name, target, arguments in (
            ("news", _read, (link, asyncio.get_running_loop(), hear, gone)),
            ("requests", _write, (link, self._outbox)),
        ):
            thread = f"vl2-engine-{name}"
            threading.Thread(target=target, args=arguments, name=thread, daemon=True).start()
        try:
            while not gone.is_set() and not self._hangs():
                with suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), LOOK)
        finally:
            self._ready.clear()
            self._outbox.put(None)
            self._kill()
            link.close()
        if failures:
            raise EngineFailed(failures[0])

    def _hangs(self) -> bool:
        """Whether the loaded engine has given no sign of life for so long that it never will."""
        return self._ready.is_set() and self.silent_for > HANG

    @property
    def silent_for(self) -> float:
        """Seconds since the engine's thread is known to have come round."""
        return time.monotonic() - self._beat_at + self.beat.get("idle", 0.0)

    def _hear(self, failures: list[str], gone: asyncio.Event, message: Message) -> None:
        """Take a message; a process that sends what makes no sense has crashed, too."""
        if gone.is_set():  # what it said belongs to requests that are buried, or sent again
            return
        try:
            self._take(failures, message)
        except Exception:
            log.exception("the engine's process sent what makes no sense: it is replaced")
            gone.set()

    def _take(self, failures: list[str], message: Message) -> None:
        match message["kind"]:
            case "news":
                for news in message["news"]:
                    self._hear_news(news)
            case "beat":
                self.beat, self._beat_at = message, time.monotonic()
            case "ready":
                self._began(Facts.of(message))
            case "failed":
                failures.append(message["error"])

    def _began(self, facts: Facts) -> None:
        """The model is loaded: send what waits."""
        self.facts, self._beat_at = facts, time.monotonic()
        self.beat = {}
        self._ready.set()
        for job in self._jobs.values():
            self._submit(job)

    def _hear_news(self, news: Message) -> None:
        number = news["id"]
        job = self._jobs.get(number)
        if job is None:
            return
        job.heard = True
        if "refused" in news:
            self._end(number, job, refused(None, news["refused"]))
        elif "failed" in news:
            log.warning("a request failed in the engine: %s", news["failed"])
            self._end(number, job, engine_error())
        else:
            job.inbox.put_nowait(news)
            if "end" in news:
                self._deaths.clear()

    def _bury(self, lost: bool) -> None:
        """End what the process took with it; what it had not begun waits for the next one."""
        for number, job in list(self._jobs.items()):
            if lost or job.heard or job.tries >= TRIES:
                code = "engine_restarted" if job.heard else "engine_error"
                self._end(number, job, engine_error(code))

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def engine_error(code: str = "engine_error") -> ApiError:
    """What a client may know of a failure in the engine; the log has more."""
    told = "the engine failed at this request: send it again, and report it by its x-request-id"
    if code == "engine_restarted":
        told = "the engine ended during this answer and is being restarted: send the request again"
    return ApiError(500, code, told)


def engine_unavailable() -> ApiError:
    """The model is being loaded, for the first time or again."""
    told = "the engine is being started: try again later"
    return ApiError(503, "engine_unavailable", told, retry_after=5)


def timed_out() -> ApiError:
    """The request has taken as long as it may."""
    return ApiError(
        504,
        "timeout",
        'the answer took longer than its time limit: ask for fewer tokens, or raise "timeout"',
    )


def _read(
    link: Link,
    loop: asyncio.AbstractEventLoop,
    hear: Callable[[Message], None],
    gone: asyncio.Event,
) -> None:
    """Hand messages to the loop until the process has gone, or sends what is no message."""
    with suppress(RuntimeError):  # the loop is closed
        try:
            while True:
                loop.call_soon_threadsafe(hear, link.receive()[0])
        except (EOFError, OSError):
            loop.call_soon_threadsafe(gone.set)
        except (ValueError, LookupError, TypeError, AttributeError):
            log.exception("the engine's process sent what is no message: it is replaced")
            loop.call_soon_threadsafe(gone.set)


def _write(link: Link, outbox: queue.SimpleQueue[tuple[Message, int | None] | None]) -> None:
    """Send what is queued, so that a process that reads nothing holds up nobody else."""
    gone = False
    while (item := outbox.get()) is not None:
        message, memory = item
        try:
            if not gone:
                link.send(message, [] if memory is None else [memory])
        except OSError:
            gone = True
        finally:
            if memory is not None:
                os.close(memory)
