"""The engine for asyncio: answers as streams, aborted when nobody listens any longer.

One thread owns the engine and steps it as long as there is work; everything else reaches it as a
command between two steps. Pictures and text are read in other threads, so the event loop never
waits for either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from vl2.engine.adapters import chosen
from vl2.engine.admission import Conversation, checked_params, unbegun
from vl2.engine.config import Completion, SamplingParams, TokenLogprob
from vl2.engine.engine import Engine
from vl2.engine.progress import EngineStats, Progress
from vl2.engine.sequence import Sequence
from vl2.processing.grounding import Box
from vl2.processing.tokenizer import SPECIAL_TOKENS

HEARTBEAT = 0.5
"""Seconds after which the engine's thread looks up when there is nothing to do."""

BOXES_END = SPECIAL_TOKENS["det_end"]

PREPARED = 2
"""Requests with their pictures in memory, as a multiple of those that run; the others wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token that was chosen, as `Completion` lists them; it added text[start:end]."""

    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What is new of answer number `answer` to a conversation.

    Attributes:
        answer: from 0 to `SamplingParams.n` - 1.
        delta: new text.
        boxes: boxes that the new text closes; the completion has those of an answer that broke off.
        tokens: new tokens; none unless `SamplingParams.logprobs` is set.
        completion: set at the end.
    """

    answer: int
    delta: str
    boxes: tuple[Box, ...] = ()
    tokens: tuple[Token, ...] = ()
    completion: Completion | None = None


@dataclass(kw_only=True, slots=True)
class _Listener:
    """Where the news of one sequence go, and how much of it was told."""

    answer: int
    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[Update | Exception]
    boxes: int = 0
    tokens: int = 0

    def new_boxes(self, progress: Progress) -> tuple[Box, ...]:
        """The boxes that have just been closed."""
        if BOXES_END not in progress.delta:
            return ()
        boxes = tuple(progress.sequence.boxes()[self.boxes :])
        self.boxes += len(boxes)
        return boxes

    def new_tokens(self, sequence: Sequence) -> tuple[Token, ...]:
        """The tokens since the last time, if they are wanted."""
        if sequence.params.logprobs is None:
            return ()
        first, self.tokens = self.tokens, len(sequence.token_ids)
        ends = [0, *sequence.stream.ends]  # a token that ends the answer added no text
        ends += [ends[-1]] * (self.tokens + 1 - len(ends))
        return tuple(
            Token(
                token_id=sequence.token_ids[place],
                logprob=sequence.logprobs[place],
                top=sequence.tops[place],
                start=ends[place],
                end=ends[place + 1],
            )
            for place in range(first, self.tokens)
        )

    def hear(self, news: Update | Exception) -> bool:
        """Hand over news from the engine's thread; False if nobody can hear them any longer."""
        try:
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, news)
        except RuntimeError:  # the loop is closed
            return False
        return True


class AsyncEngine:
    """Streams answers of an `Engine` that no one else uses meanwhile.

    Use it as `async with AsyncEngine(engine) as answers`, or call `close`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._listeners: dict[Sequence, _Listener] = {}
        self._ended: Exception | None = None
        self._turned = time.monotonic()
        self._places = asyncio.Semaphore(PREPARED * engine.max_num_seqs)
        self._thread = threading.Thread(target=self._work, name="vl2-engine", daemon=True)
        self._thread.start()

    async def stream(
        self,
        conversation: Conversation,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        timeout: float | None = None,
        queue_timeout: float | None = None,
    ) -> AsyncGenerator[Update]:
        """Answer a conversation and yield text as it is made.

        Leaving the iteration early aborts the request at once. A conversation that cannot be
        answered gets completions with `finish_reason` "error", as from `Engine.generate`.

        Args:
            conversation: messages or `ModelInputs`.
            params: None decodes greedily.
            adapter: name of the adapter that answers; None is the base.
            timeout: seconds after which it is aborted, the time in the queue included.
            queue_timeout: seconds after which it is aborted if it was not begun.

        Raises:
            ValueError: `params` or a timeout are none, or there is no such adapter.
            RuntimeError: the engine is closed or has stopped.
        """
        params = checked_params(params)
        chosen(self._engine.adapters, adapter)
        deadline, begin_by = _moment("timeout", timeout), _moment("queue_timeout", queue_timeout)
        limits = [seconds for seconds in (timeout, queue_timeout) if seconds is not None]
        try:
            await asyncio.wait_for(self._places.acquire(), min(limits, default=None))
        except TimeoutError:
            for answer in range(params.n):
                yield Update(answer=answer, delta="", completion=unbegun(0, "queue_timeout"))
            return
        prepare = partial(
            self._engine.prepare,
            next(self._numbers),
            deadline=deadline,
            begin_by=begin_by,
            adapter=adapter,
        )
        try:
            sequences = await asyncio.to_thread(prepare, conversation=conversation, params=params)
            async with contextlib.aclosing(self._run(sequences, params.n)) as updates:
                async for update in updates:
                    yield update
        finally:
            self._places.release()

    async def _run(
        self, sequences: list[Sequence] | Completion, answers: int
    ) -> AsyncGenerator[Update]:
        """Submit what was prepared, and listen."""
        if isinstance(sequences, Completion):
            for answer in range(answers):
                yield Update(answer=answer, delta="", completion=sequences)
            return
        inbox: asyncio.Queue[Update | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        listeners = {
            sequence: _Listener(answer=answer, loop=loop, inbox=inbox)
            for answer, sequence in enumerate(sequences)
        }
        self._tell(partial(self._submit, listeners))
        left = len(sequences)
        try:
            while left:
                news = await inbox.get()
                if isinstance(news, Exception):
                    raise news
                left -= news.completion is not None
                yield news
        finally:
            if left:
                with contextlib.suppress(RuntimeError):  # it ended meanwhile, and freed the blocks
                    self._tell(partial(self._abort, sequences[0].request_id))

    async def generate(
        self,
        conversation: Conversation,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        timeout: float | None = None,
    ) -> list[Completion]:
        """All `n` answers to a conversation, in order; see `stream`."""
        found: dict[int, Completion] = {}
        async for update in self.stream(conversation, params, adapter=adapter, timeout=timeout):
            if update.completion:
                found[update.answer] = update.completion
        return [found[answer] for answer in sorted(found)]

    @property
    def stats(self) -> EngineStats:
        """The engine's counters."""
        return self._engine.stats

    @property
    def idle_for(self) -> float:
        """Seconds since the engine's thread last came round, which is at least every 0.5 s."""
        return time.monotonic() - self._turned

    @property
    def ended(self) -> str | None:
        """Why nothing more is answered; None while it is."""
        return None if self._ended is None else str(self._ended)

    async def close(self) -> None:
        """Abort everything and end the thread after its step."""
        if self._ended is None:
            self._tell(partial(self._end, RuntimeError("the engine is closed")))
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        """Itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    def _tell(self, command: Callable[[], None]) -> None:
        """Let the engine's thread run a command before its next step."""
        with self._wake:
            if self._ended is not None:
                raise RuntimeError(str(self._ended)) from self._ended
            self._commands.append(command)
            self._wake.notify()

    def _work(self) -> None:
        try:
            while self._ended is None:
                self._turn()
        except Exception as error:
            self._end(RuntimeError(f"the engine stopped: {type(error).__name__}: {error}"))
            raise

    def _turn(self) -> None:
        """Obey what was told, then one step."""
        with self._wake:
            work = self._engine
            self._wake.wait_for(lambda: self._commands or work.has_unfinished_requests, HEARTBEAT)
            self._turned = time.monotonic()
            commands, self._commands = self._commands, []
        for command in commands:
            command()
        for progress in self._engine.step():
            self._post(progress)

    def _post(self, progress: Progress) -> None:
        sequence, completion = progress.sequence, progress.completion
        listener = self._listeners[sequence]
        if completion is not None:
            del self._listeners[sequence]
        elif not progress.delta and sequence.params.logprobs is None:
            return
        update = Update(
            answer=listener.answer,
            delta=progress.delta,
            boxes=listener.new_boxes(progress),
            tokens=listener.new_tokens(sequence),
            completion=completion,
        )
        if not listener.hear(update) and completion is None:
            self._abort(sequence.request_id)

    def _submit(self, listeners: dict[Sequence, _Listener]) -> None:
        self._listeners |= listeners
        self._engine.submit(listeners)

    def _abort(self, request_id: Hashable) -> None:
        self._engine.abort(request_id)
        self._listeners = {
            sequence: listener
            for sequence, listener in self._listeners.items()
            if sequence.request_id != request_id
        }

    def _end(self, reason: Exception) -> None:
        """Tell everybody who still listens why nothing more comes, and free their blocks."""
        with self._wake:
            self._ended = reason
            waiting, self._commands = self._commands, []
        for command in waiting:
            command()
        for sequence, listener in list(self._listeners.items()):
            listener.hear(reason)
            self._abort(sequence.request_id)


def _moment(name: str, seconds: float | None) -> float | None:
    """The value of `time.monotonic()` in so many seconds.

    Raises:
        ValueError: no number from 0 up, and not None.
    """
    if seconds is None:
        return None
    if type(seconds) not in (int, float) or not seconds >= 0:
        raise ValueError(f"{name} is {seconds!r}: expected seconds from 0 up, or None")
    return time.monotonic() + seconds
