"""From a checked request to the engine and back: the life of a chat request and of a raw prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.engine.config import SamplingParams
from vl2.processing.layout import TileLayout
from vl2.serve import schema
from vl2.serve.admission import Gate, Place
from vl2.serve.answers import Reply
from vl2.serve.apart import apart
from vl2.serve.body import gone, read_request
from vl2.serve.config import ServeConfig
from vl2.serve.engine_client import EngineClient, Facts, engine_unavailable, timed_out
from vl2.serve.errors import CLIENT_LEFT, ApiError, ClientGone, shown, shutting_down
from vl2.serve.media import Media, Pictures, read_as
from vl2.serve.metrics import Metrics
from vl2.serve.prompt import Attachment, Plan, check_length, params_of, plan_chat
from vl2.serve.wire import Message

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The parts of a running server; `model` is the name that requests give."""

    model: str
    config: ServeConfig
    engine: EngineClient
    media: Media
    gate: Gate
    metrics: Metrics

    @property
    def facts(self) -> Facts:
        """Of the loaded model."""
        assert self.engine.facts is not None
        return self.engine.facts

    def check_ready(self) -> None:
        """Refuse a request that nothing could answer now."""
        why = self.engine.ready(self.config.limits.stall_seconds)
        if why == "shutting_down":
            raise shutting_down()
        if why == "loading":
            raise engine_unavailable()

    def enter(self) -> Place:
        """A place for a request, to be closed at its end.

        Raises:
            ApiError: nothing could answer it now, or all places are taken.
        """
        self.check_ready()
        try:
            return self.gate.enter()
        except ApiError as error:
            self.metrics.rejected.labels(error.code).inc()
            raise

    def check_model(self, name: str) -> str | None:
        """The adapter that a name means; None is the base.

        Raises:
            ApiError: no such model is served.
        """
        return adapter_of(name, self.model, self.facts.adapters)


async def answer(service: Service, request: Request, kind: type[schema.Sampling]) -> Response:
    """Answer a `ChatRequest` or `CompletionRequest`.

    Raises:
        ApiError: it is refused or fails; a stream that has begun ends with an error event.
    """
    exchange = Exchange(service, request, service.enter())
    request.state.cleanup.callback(exchange.close)
    try:
        return await exchange.answer(kind)
    except ApiError as error:
        exchange.error = error
        raise
    except ClientGone:
        return Response(status_code=CLIENT_LEFT)


class Exchange:
    """One request that was let in, until the last byte of its answer."""

    def __init__(self, service: Service, request: Request, place: Place) -> None:
        self._service = service
        self._request = request
        self.error: ApiError | None = None
        self._place = place
        self._adapter: str | None = None
        self._done = False  # the whole answer was made
        self._began = time.monotonic()
        self._heard = 0.0  # when text last came
        service.metrics.begin()

    async def answer(self, kind: type[schema.Sampling]) -> Response:
        """The response; a stream's begins when the engine has said a first word."""
        service, limits = self._service, self._service.config.limits
        asked, size = await read_request(self._request, kind, limits)
        self._adapter = service.check_model(asked.model)
        ask, reply, memory = await self._prepared(asked, size)
        timed = self._timed(service.engine.request(ask, memory, gone(self._request)))
        self._request.state.cleanup.push_async_callback(timed.aclose)
        first = await anext(timed)
        reply.check(first)  # a stream, too, is refused by its status
        if asked.stream:
            options = asked.stream_options
            usage = options is not None and options.include_usage
            events = self._events(reply.events(first, timed, usage=usage), reply)
            return EventSourceResponse(events, ping=15)
        reply.take(first)
        async for one in timed:
            reply.take(one)
        self._finish(reply)
        return JSONResponse(reply.whole())

    def close(self) -> None:
        """Give back the places and count how it ended."""
        self._place.close()
        metrics = self._service.metrics
        metrics.whole.observe(time.monotonic() - self._began)
        if self._done:
            metrics.end(metrics.finished)
        elif self.error is not None and self.error.status not in (503, 504):
            metrics.end(metrics.errored)
        else:
            metrics.end(metrics.aborted)

    async def _prepared(
        self, asked: schema.Sampling, size: int
    ) -> tuple[Message, Reply, int | None]:
        """What the engine is sent for a body of that size, and the reply to be filled."""
        service, limits = self._service, self._service.config.limits
        if isinstance(asked, schema.CompletionRequest):
            check_length([asked.prompt], service.facts.context, "prompt")
            params = params_of(asked, limits)
            self._place.more(params.n - 1)
            ask = self._ask(asked, params, prompt=asked.prompt)
            return ask, Reply(model=asked.model, images=[], kind="text_completion"), None
        assert isinstance(asked, schema.ChatRequest)
        facts = service.facts
        plan = await apart(size, plan_chat, asked, limits, facts.context)
        self._place.more(plan.params.n - 1)
        begun = time.monotonic()
        try:
            pictures = await within(self._left(asked), service.media.gather(plan, facts))
        except ApiError as error:
            service.metrics.images_rejected.labels(error.code).inc()
            raise
        if pictures.views:
            service.metrics.decoding.observe(time.monotonic() - begun)
        ask = self._ask(asked, plan.params, messages=told(plan, pictures), views=pictures.views)
        return ask, reply_to(asked, pictures, facts.layout), pictures.memory

    def _ask(self, asked: schema.Sampling, params: SamplingParams, **more: Any) -> Message:
        queue_timeout = self._service.config.limits.queue_timeout
        return {
            "kind": "ask",
            "prompt": None,
            "messages": [],
            "views": [],
            "params": asdict(params),
            "adapter": self._adapter,
            "timeout": self._left(asked),
            "queue_timeout": max(0.0, queue_timeout - (time.monotonic() - self._began)),
            **more,
        }

    def _left(self, asked: schema.Sampling) -> float:
        """Seconds that are left to the request."""
        most = self._service.config.limits.request_timeout
        return max(0.0, min(asked.timeout or most, most) - (time.monotonic() - self._began))

    async def _timed(self, news: AsyncGenerator[Message]) -> AsyncGenerator[Message]:
        """The news, with the times between them observed."""
        async with aclosing(news):
            async for one in news:
                if one.get("delta"):
                    now = time.monotonic()
                    metrics = self._service.metrics
                    if self._heard:
                        metrics.between_tokens.observe(now - self._heard)
                    else:
                        metrics.first_token.observe(now - self._began)
                    self._heard = now
                yield one

    async def _events(self, events: AsyncIterator[str], reply: Reply) -> AsyncIterator[str]:
        """The events of a stream; at its end it is known how it ended."""
        try:
            async for event in events:
                yield event
        except ClientGone:
            return
        self.error = reply.error
        if self.error is None:
            self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        self._done = True
        fired = sum(bool(a.end and a.end["guard_fired"]) for a in reply.answers.values())
        self._service.metrics.guarded.inc(fired)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """The result of work that may take so long.

    Raises:
        ApiError: it takes longer; it is stopped then.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise timed_out() from None


def reply_to(asked: schema.ChatRequest, pictures: Pictures, layout: TileLayout) -> Reply:
    """The reply that is to be filled."""
    images = [
        {"index": n, "page": page, **read_as(view, layout)}
        for n, (view, page) in enumerate(zip(pictures.views, pictures.pages, strict=True))
    ]
    return Reply(model=asked.model, images=images, logprobs=bool(asked.logprobs))


def told(plan: Plan, pictures: Pictures) -> list[Message]:
    """The messages with the numbers of pictures in place of their sources."""
    counts = iter(pictures.counts)
    number = 0
    messages = []
    for message in plan.messages:
        content = message["content"]
        if isinstance(content, list):
            parts: list[Any] = []
            for part in content:
                if not isinstance(part, Attachment):
                    parts.append(part)
                    continue
                count = next(counts)
                parts += [{"type": "image", "image": number + n} for n in range(count)]
                number += count
            content = parts
        messages.append({"role": message["role"], "content": content})
    return messages


def adapter_of(name: str, model: str, adapters: Sequence[str]) -> str | None:
    """The adapter that a request's model names, "base:adapter"; None is the base.

    Raises:
        ApiError: it names neither.
    """
    served = {model: None, **{f"{model}:{adapter}": adapter for adapter in adapters}}
    if name not in served:
        told = f"model is {shown(name)}: this server has {', '.join(served)}"
        raise ApiError(404, "model_not_found", told, param="model")
    return served[name]
