"""The process that holds the model: obeys messages of the server, answers with news.

Its messages, all JSON: `start` (what to load), `ask`, `abort`, `tokenize` from the server; `ready`
or `failed`, `news`, `tokens` and `beat` from here. It ends when the link does, or with the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from vl2.engine.admission import reason_of
from vl2.engine.async_engine import AsyncEngine, Token, Update
from vl2.engine.config import (
    Completion,
    EngineConfig,
    RepetitionGuard,
    SamplingParams,
    StructuredOutputsParams,
)
from vl2.engine.engine import Engine
from vl2.engine.loading import load_engine
from vl2.failure import WorkError
from vl2.logs import get_logger
from vl2.processing.processor import Processor
from vl2.processing.tiling import Views
from vl2.processing.tokenizer import Tokenizer
from vl2.serve.apart import apart
from vl2.serve.trace import trace_json
from vl2.serve.wire import Link, Message, from_memory, inherited_link

log = get_logger(__name__)

BEAT = 0.5
"""Seconds between signs of life."""

TRIM = 10.0
"""Seconds between two times that the C library gives back what it holds for reuse: prompts of many
lengths leave gaps of many sizes, which grow to gigabytes."""

TOGETHER = 0.02
"""Seconds between two messages of news under load: a small model makes a token in less, and each
message costs the server more than the token costs the engine."""


def main() -> None:
    """Load what the server names and serve it."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the server tells when to end
        signal.signal(ignored, signal.SIG_IGN)
    link = inherited_link(sys.argv[1])
    start, _ = link.receive()
    try:
        engine = load(start)
    except (ValueError, WorkError, OSError, MemoryError) as error:
        link.send({"kind": "failed", "error": " ".join(str(error).split())})
        os._exit(0)
    link.send({"kind": "ready", **facts_of(engine)})
    code = asyncio.run(EngineProcess(engine, link).serve())
    os._exit(code)  # threads that read the link or a picture are not waited for


def load(start: Message) -> Engine:
    """The engine that a `start` message describes.

    Raises:
        ValueError: there is no such model, or its files or the settings cannot be used.
    """
    return load_engine(
        start["model"],
        dtype=start["dtype"],
        device=start["device"],
        quantization=start["quantization"],
        config=EngineConfig(**start["config"]),
        adapters=start["adapters"],
    )


def facts_of(engine: Engine) -> Message:
    """What the server must know of the model to check requests and cut pictures."""
    processor, layout = engine.processor, engine.processor.layout
    return {
        "context": engine.context,
        "max_num_seqs": engine.max_num_seqs,
        "tiling": processor.config.tiling,
        "max_tiled_images": processor.config.max_tiled_images,
        "single_questions": processor.config.single_questions,
        "adapters": list(engine.adapters),
        "layout": asdict(layout),
    }


class EngineProcess:
    """Turns messages into requests of an `AsyncEngine`, and its updates into news."""

    def __init__(self, engine: Engine, link: Link) -> None:
        self._engine = engine
        self._link = link
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._news: dict[tuple[int, int | None], Message] = {}
        self._told_at = self._trimmed_at = 0.0

    async def serve(self) -> int:
        """Obey until the link or the engine ends; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_crash)
        gone = asyncio.Event()
        obey: Callable[[Message, list[Views]], None] = self._obey
        reader = threading.Thread(
            target=_read, args=(self._link, loop, obey, gone), name="vl2-link", daemon=True
        )
        async with AsyncEngine(self._engine) as answers:
            self._answers = answers
            reader.start()
            while not gone.is_set() and answers.ended is None:
                self._send(self._beat())
                if time.monotonic() > self._trimmed_at + TRIM:
                    self._trimmed_at = time.monotonic()
                    await asyncio.to_thread(trim_memory)
                try:
                    await asyncio.wait_for(gone.wait(), BEAT)
                except TimeoutError:
                    continue
            return 0 if gone.is_set() else 1

    def _obey(self, message: Message, views: list[Views]) -> None:
        match message["kind"]:
            case "ask":
                self._begin(message["id"], self._ask(message, views))
            case "tokenize":
                self._begin(message["id"], self._tokenize(message, views))
            case "abort":
                if task := self._tasks.get(message["id"]):
                    task.cancel()

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._tell_failure(number, work))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _tell_failure(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of a request; what goes wrong is told to the server."""
        try:
            await work
        except ValueError as error:
            self._tell({"id": number, "refused": " ".join(str(error).split())})
        except Exception as error:  # whatever is wrong with a request ends it alone
            log.warning("request %d failed", number, exc_info=True)
            self._tell({"id": number, "failed": reason_of(error)[1]})

    async def _ask(self, message: Message, views: list[Views]) -> None:
        """Answer a request."""
        processor = self._engine.processor
        size = len(message["prompt"] or "")
        conversation = await apart(size, conversation_of, message, views, processor)
        updates = self._answers.stream(
            conversation,
            params_of(message["params"]),
            adapter=message["adapter"],
            timeout=message["timeout"],
            queue_timeout=message["queue_timeout"],
        )
        heard: set[int] = set()
        async with contextlib.aclosing(updates):
            async for update in updates:
                urgent = update.answer not in heard or update.completion is not None
                heard.add(update.answer)
                self._tell({"id": message["id"], **news_of(update, processor)}, urgent=urgent)

    async def _tokenize(self, message: Message, views: list[Views]) -> None:
        """Ids of a text, or of a conversation as the model gets it."""
        ids = await asyncio.to_thread(self._ids, message, views)
        self._tell({"id": message["id"], "tokens": ids})

    def _ids(self, message: Message, views: list[Views]) -> list[int]:
        processor = self._engine.processor
        if message["prompt"] is not None:
            return processor.tokenizer.encode(message["prompt"])
        return processor(conversation_of(message, views, processor)).input_ids.tolist()

    def _beat(self) -> Message:
        stats = asdict(self._answers.stats)
        return {"kind": "beat", "idle": self._answers.idle_for, **self._engine.load, **stats}

    def _tell(self, news: Message, *, urgent: bool = True) -> None:
        """Send news soon, or next; those of one answer that wait together become one.

        Somebody waits for a first word or an end before doing anything else.
        """
        key, loop = (news["id"], news.get("answer")), asyncio.get_running_loop()
        if urgent:
            loop.call_soon(self._flush)
        elif not self._news:
            wait = self._told_at + TOGETHER - time.monotonic()
            loop.call_later(max(0.0, wait), self._flush)
        self._news[key] = joined(self._news[key], news) if key in self._news else news

    def _flush(self) -> None:
        if not self._news:  # urgent ones took them along
            return
        news, self._news = self._news, {}
        self._told_at = time.monotonic()
        rest = []
        for one in news.values():
            if "trace" in one.get("end", ()):  # many together would be more than a message may hold
                self._send({"kind": "news", "news": [one]})
            else:
                rest.append(one)
        if rest:
            self._send({"kind": "news", "news": rest})

    def _send(self, message: Message) -> None:
        try:
            self._link.send(message)
        except OSError:  # the server has gone; the reader notices, too
            os._exit(0)


def _crash(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End with what nobody caught: somebody waits for an answer that it held up.

    The server starts another process and ends, or sends again, what was with this one.
    """
    log.error(
        "the engine's process ends: %s", context["message"], exc_info=context.get("exception")
    )
    os._exit(1)


def trim_memory() -> None:
    """Give free memory back to the system, where the C library is one that keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def joined(earlier: Message, later: Message) -> Message:
    """News of one answer after earlier ones as one: texts and lists follow each other."""
    both = {**earlier, **later}
    for name in ("delta", "boxes", "tokens"):
        if name in earlier and name in later:
            both[name] = earlier[name] + later[name]
    return both


def conversation_of(message: Message, views: list[Views], processor: Processor) -> Any:
    """The messages of an `ask` with their pictures, or the inputs of its raw prompt."""
    if message["prompt"] is not None:
        return processor.from_document(message["prompt"], inference_mode=True)
    return [
        {"role": one["role"], "content": _with_pictures(one["content"], views)}
        for one in message["messages"]
    ]


def news_of(update: Update, processor: Processor) -> Message:
    """An update as JSON; what is empty is left out."""
    tokenizer = processor.tokenizer
    told: Message = {"answer": update.answer}
    if update.delta:
        told["delta"] = update.delta
    if update.boxes:
        told["boxes"] = [asdict(box) for box in update.boxes]
    texts = [token for token in update.tokens if token.token_id not in tokenizer.control_ids]
    if texts:
        told["tokens"] = [_token(token, tokenizer) for token in texts]
    if update.completion:
        told["end"] = end_of(update.completion)
        if update.completion.trace:
            told["end"]["trace"] = trace_json(update.completion.trace, processor)
    return told


def read_views(told: list[Message], descriptors: list[int]) -> list[Views]:
    """Pictures that a worker cut, out of shared memory, whose descriptor is closed."""
    views, offset = [], 0
    try:
        for one in told:
            tiles = from_memory(descriptors[0], one["shape"], offset)
            offset += tiles.nbytes
            views.append(
                Views(
                    tiles=tiles,
                    canvas=tuple(one["canvas"]),
                    sent=tuple(one["sent"]),
                    notes=tuple(one["notes"]),
                )
            )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return views


def params_of(told: Message) -> SamplingParams:
    """The parameters that the server checked and took apart."""
    guard, form = told["repetition_guard"], told["structured_outputs"]
    return SamplingParams(
        **{
            **told,
            "repetition_guard": guard and RepetitionGuard(**guard),
            "structured_outputs": form and StructuredOutputsParams(**form),
        }
    )


def end_of(completion: Completion) -> Message:
    """How an answer ended."""
    return {
        "finish_reason": completion.finish_reason,
        "error": completion.error,
        "error_code": completion.error_code,
        "guard_fired": completion.guard_fired,
        "boxes": [asdict(box) for box in completion.boxes],
        "usage": asdict(completion.usage),
    }


def _token(token: Token, tokenizer: Tokenizer) -> Message:
    return {
        "bytes": _bytes(token.token_id, tokenizer),
        "logprob": token.logprob,
        "span": [token.start, token.end],
        "top": [[_bytes(one.token_id, tokenizer), one.logprob] for one in token.top],
    }


def _bytes(token: int, tokenizer: Tokenizer) -> str:
    return b64encode(tokenizer.token_bytes(token)).decode()


def _with_pictures(content: Any, views: list[Views]) -> Any:
    if isinstance(content, str):
        return content
    return [
        {"type": "image", "image": views[part["image"]]} if part["type"] == "image" else part
        for part in content
    ]


def _read(
    link: Link,
    loop: asyncio.AbstractEventLoop,
    obey: Callable[[Message, list[Views]], None],
    gone: asyncio.Event,
) -> None:
    """Hand messages to the loop until the server has gone.

    Pictures are read here: a request may be aborted before its own work begins.
    """
    try:
        while True:
            message, descriptors = link.receive()
            views = read_views(message.get("views", []), descriptors)
            loop.call_soon_threadsafe(obey, message, views)
    except (EOFError, OSError, RuntimeError):  # RuntimeError: the loop is closed
        loop.call_soon_threadsafe(gone.set)
    except Exception:
        log.exception("the engine's process ends: the server sent what makes no sense")
        os._exit(1)


if __name__ == "__main__":
    main()
