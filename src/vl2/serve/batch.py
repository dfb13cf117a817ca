"""Many requests from a file: lines of OpenAI's batch format in, a line for each answer out.

The engine is in this process, pictures are cut by the server's workers, and every other step is the
server's own, so that a request has the answer that it would have there. A run that was killed goes
on where it stopped: an answer's `id` follows from the request, and what has one is not asked again.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vl2.checkpoint.lock import take
from vl2.engine.async_engine import AsyncEngine
from vl2.engine.engine import Engine
from vl2.failure import WorkError
from vl2.folders import check_file, names_something
from vl2.logs import get_logger
from vl2.serve import schema
from vl2.serve.answers import Reply
from vl2.serve.chat import adapter_of, reply_to, told
from vl2.serve.config import Limits
from vl2.serve.engine_client import Facts
from vl2.serve.engine_process import conversation_of, facts_of, news_of, read_views
from vl2.serve.errors import ApiError, refused, server_error
from vl2.serve.fetch import fetcher
from vl2.serve.media import Media
from vl2.serve.prompt import params_of, plan_chat
from vl2.serve.strict_json import loads
from vl2.serve.wire import Message
from vl2.serve.workers import Workers

log = get_logger(__name__)

AHEAD = 2
"""Requests in hand, as a multiple of the answers of one step: pictures are cut meanwhile."""

KINDS: dict[str, type[schema.Sampling]] = {
    "/v1/chat/completions": schema.ChatRequest,
    "/v1/completions": schema.CompletionRequest,
}


class Request(schema.Strict):
    """One line."""

    custom_id: schema.Text
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A request, or why the line is none, and the `id` of its answer."""

    id: str
    custom_id: str | None
    request: Request | ApiError


@dataclass(kw_only=True, slots=True)
class Figures:
    """What became of the requests of a file.

    Attributes:
        requests: all of them.
        answered: those that have an answer.
        failed: those that have an error instead.
        kept: how many of both are of earlier runs.
        prompt_tokens: of this run.
        completion_tokens: of this run.
    """

    requests: int
    answered: int = 0
    failed: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def check_files(requests: Path, answers: Path) -> int:
    """The number of requests, once both files are such as can be read, and written, again.

    Raises:
        ValueError: one is not; nothing has been written.
    """
    check_file(answers, "--output")
    if not answers.parent.is_dir():
        raise ValueError(f"--output is {answers}: no folder {answers.parent}: make it first")
    for file in (requests, answers):
        if names_something(file) and not (file.is_file() or file.is_dir()):
            raise ValueError(f"{file} is a device or a pipe: give a file, which is read twice")
    try:
        with requests.open("rb") as stream:
            count = sum(bool(line.strip()) for line in stream)
    except OSError as error:
        raise ValueError(
            f"{requests} cannot be read ({error.strerror}): give a file of requests, one a line"
        ) from None
    if answers.exists() and answers.samefile(requests):
        raise ValueError(f"{answers} holds the requests: give another file for the answers")
    return count


def answer_file(
    engine: Engine,
    model: str,
    requests: Path,
    answers: Path,
    limits: Limits,
    on_progress: Callable[[Figures], None],
) -> Figures:
    """Answer the requests that have no line in `answers` yet.

    Args:
        engine: of the model.
        model: the name by which requests call it.
        requests: lines of OpenAI's batch format.
        answers: gets a line for each, as they are done.
        limits: of each request.
        on_progress: hears the figures after each.

    Raises:
        ValueError: a file cannot be used; `answers` holds something else, for instance.
        WorkError: the engine stopped, or the disk is full; another run goes on.
    """
    figures = Figures(requests=check_files(requests, answers))
    with opened(answers) as (stream, held):
        workers = Workers(limits)
        media = Media(workers=workers, fetcher=fetcher((), limits.max_image), limits=limits)
        batch = Batch(engine, model, media, figures)
        try:
            asyncio.run(batch.run(lines_of(requests, limits), stream, held, on_progress))
        finally:
            workers.close()
    return figures


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, dict[str, bool]]]:
    """The file of answers at its end, and which `id` has an answer (True) or an error in it.

    What a run that was killed left of a last line is taken off.

    Raises:
        ValueError: a line is no answer, another run writes the file, or it cannot be written.
    """
    try:
        stream = file.open("a+b")
    except OSError as error:
        raise ValueError(
            f"{file} cannot be written ({error.strerror}): give another file for the answers"
        ) from None
    with stream:
        if not take(stream):
            raise ValueError(f"{file} is being written by another run: wait, or give another -o")
        held: dict[str, bool] = {}
        whole = 0
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            held |= _held(line, f"{file} line {number}")
            whole += len(line)
        stream.truncate(whole)
        yield stream, held


def lines_of(file: Path, limits: Limits) -> Iterator[Line]:
    """The lines of a file that are not empty; a second one of a `custom_id` is an error."""
    seen: set[str] = set()
    with file.open("rb") as stream:
        for number, data in enumerate(stream, start=1):
            if number == 1:  # Windows' editors and shells begin a file of UTF-8 with a mark
                data = data.removeprefix(codecs.BOM_UTF8)
            if data.strip():
                yield _line(number, data, seen, limits)


class Batch:
    """Answers requests with an engine; `model` is its name."""

    def __init__(self, engine: Engine, model: str, media: Media, figures: Figures) -> None:
        self._engine = engine
        self._model = model
        self._media = media
        self._figures = figures
        self._facts = Facts.of(facts_of(engine))

    async def run(
        self,
        lines: Iterator[Line],
        stream: BinaryIO,
        held: dict[str, bool],
        on_progress: Callable[[Figures], None],
    ) -> None:
        """Answer those that are not held, several at a time, and write each as soon as it is done.

        Raises:
            WorkError: the engine stopped, or the disk is full.
        """
        figures = self._figures

        async def work() -> None:
            for line in lines:
                good = held.get(line.id)
                figures.kept += good is not None
                if good is None:
                    answer = await self._answer(line)
                    _write(stream, answer)
                    good = _is_good(answer["response"])
                figures.answered += good
                figures.failed += not good
                on_progress(figures)

        async with AsyncEngine(self._engine) as self._answers:
            count = AHEAD * self._engine.max_num_seqs
            tasks = [asyncio.create_task(work()) for _ in range(count)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, line: Line) -> Message:
        """The line that answers one."""
        answer: Message = {"id": line.id, "custom_id": line.custom_id}
        if isinstance(line.request, ApiError):
            return {**answer, "response": None, **line.request.body}
        try:
            status, body = 200, await self._body(line.request)
        except ApiError as error:
            status, body = error.status, error.body
        except Exception as error:
            if self._answers.ended is not None:
                raise WorkError(f"{error}; the same command goes on where it stopped") from error
            log.exception("request %s failed", line.custom_id)
            status, body = 500, server_error().body
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
        return {**answer, "response": response, "error": None}

    async def _body(self, request: Request) -> Message:
        """The completion.

        Raises:
            ApiError: the request is refused, or failed.
        """
        asked = schema.validated(KINDS[request.url], request.body)
        if asked.stream:
            raise refused("stream", "stream is true: a batch has whole answers; leave it out")
        adapter = adapter_of(asked.model, self._model, self._facts.adapters)
        ask, reply, memory = await self._prepared(asked)
        processor = self._engine.processor
        views = await asyncio.to_thread(read_views, ask["views"], memory)
        conversation = await asyncio.to_thread(conversation_of, ask, views, processor)
        updates = self._answers.stream(
            conversation, ask["params"], adapter=adapter, timeout=asked.timeout
        )
        async with aclosing(updates):
            async for update in updates:
                reply.take(news_of(update, processor))
        whole = reply.whole()
        self._figures.prompt_tokens += whole["usage"]["prompt_tokens"]
        self._figures.completion_tokens += whole["usage"]["completion_tokens"]
        return whole

    async def _prepared(self, asked: schema.Sampling) -> tuple[Message, Reply, list[int]]:
        """What the engine gets, the reply to be filled, and the memory of the pictures."""
        facts, limits = self._facts, self._media.limits
        ask: Message = {"prompt": None, "messages": [], "views": []}
        if isinstance(asked, schema.CompletionRequest):
            ask |= {"prompt": asked.prompt, "params": params_of(asked, limits)}
            return ask, Reply(model=asked.model, images=[], kind="text_completion"), []
        assert isinstance(asked, schema.ChatRequest)
        plan = await asyncio.to_thread(plan_chat, asked, limits, facts.context)
        pictures = await self._media.gather(plan, facts)
        ask |= {"messages": told(plan, pictures), "views": pictures.views, "params": plan.params}
        memory = [] if pictures.memory is None else [pictures.memory]
        return ask, reply_to(asked, pictures, facts.layout), memory


def _line(number: int, data: bytes, seen: set[str], limits: Limits) -> Line:
    custom_id = None
    request: Request | ApiError
    try:
        if len(data) > limits.max_body:
            told = f"it has more than {limits.max_body:,} bytes: send fewer or smaller pictures"
            raise ApiError(413, "line_too_large", told)
        found = loads(data)
        custom_id = found.get("custom_id")
        request = schema.validated(Request, found)
    except ApiError as error:
        request = error
        error.message = f"line {number} is no request: {error.message}"
    if not isinstance(custom_id, str) or not custom_id:
        custom_id = None
    elif custom_id in seen:
        what = f"line {number} has the custom_id of a line before it: give each its own"
        request = refused("custom_id", what, "duplicate_custom_id")
    else:
        seen.add(custom_id)
        digest = hashlib.sha256(custom_id.encode()).hexdigest()
        return Line(id=f"batch_req_{digest[:32]}", custom_id=custom_id, request=request)
    return Line(id=f"batch_req_line_{number}", custom_id=custom_id, request=request)


def _write(stream: BinaryIO, answer: Message) -> None:
    """Add a line, past the buffer, which would fail once more when the file is closed."""
    left = memoryview(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
    try:
        while left:
            left = left[os.write(stream.fileno(), left) :]
    except OSError as error:
        raise WorkError(
            f"the answers cannot be written ({error.strerror}): make room; the same command goes "
            "on where it stopped"
        ) from None


def _held(line: bytes, where: str) -> dict[str, bool]:
    """The `id` of a line of answers, and whether it is one.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = json.loads(line)
        return {str(found["id"]): _is_good(found["response"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where} is no answer of a batch: give another file for them") from None


def _is_good(response: Message | None) -> bool:
    return response is not None and response["status_code"] == 200
