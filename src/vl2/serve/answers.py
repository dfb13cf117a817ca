"""From the engine's news to OpenAI's objects: a whole completion, or the events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from vl2.logs import get_logger
from vl2.processing.plain_text import PlainText
from vl2.serve.engine_client import engine_error, timed_out
from vl2.serve.errors import ApiError, ClientGone, refused, server_error
from vl2.serve.wire import Message

log = get_logger(__name__)

Json = dict[str, Any]
DONE = "[DONE]"


@dataclass(kw_only=True, slots=True)
class Piece:
    """What is new of one answer; `end` is set at its end."""

    index: int
    text: str
    boxes: list[Json]
    logprobs: list[Json]
    end: Message | None = None


@dataclass(kw_only=True, slots=True)
class Answer:
    """One answer while it comes: its text for people, its boxes, its tokens."""

    plain: PlainText = field(default_factory=PlainText)
    boxes: list[Json] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    end: Message | None = None
    waiting: list[Message] = field(default_factory=list)  # tokens of text that is held back

    def known_tokens(self) -> list[Json]:
        """Tokens whose place in the text for people is known by now, without those of marks."""
        found = []
        while self.waiting and (self.end or self.waiting[0]["span"][1] <= self.plain.read):
            token = self.waiting.pop(0)
            first, end = token["span"]
            place = self.plain.span(first, end)
            if first == end or place[0] < place[1]:
                top = [_token(*one) for one in token["top"]]
                found.append({**_token(token["bytes"], token["logprob"]), "top_logprobs": top})
        return found


@dataclass(kw_only=True, slots=True)
class Reply:
    """The answers to one request, as OpenAI's objects.

    Attributes:
        model: name as the request gave it.
        images: `usage.images`; its `page` goes into the boxes.
        kind: "chat.completion", or "text_completion" for raw prompts.
        logprobs: whether the request asked for them.
    """

    model: str
    images: list[Json]
    kind: str = "chat.completion"
    logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    answers: dict[int, Answer] = field(default_factory=dict)
    error: ApiError | None = None  # by which a stream ended

    def take(self, news: Message) -> Piece:
        """What news say of an answer.

        Raises:
            ApiError: the answer ended otherwise than by its own end.
        """
        answer = self.answers.setdefault(news["answer"], Answer())
        text = answer.plain.push(news.get("delta", ""))
        end = news.get("end")
        boxes = news.get("boxes", [])
        self.check(news)
        if end is not None:
            text += answer.plain.finish()
            boxes = end["boxes"][len(answer.boxes) :]
            answer.end = end
            if trace := end.get("trace"):
                trace["tokens"] = [list(answer.plain.span(*span)) for span in trace["tokens"]]
        placed = [self._placed(box, answer.plain) for box in boxes]
        answer.boxes += placed
        answer.waiting += news.get("tokens", [])
        tokens = answer.known_tokens()
        answer.logprobs += tokens
        return Piece(index=news["answer"], text=text, boxes=placed, logprobs=tokens, end=end)

    def check(self, news: Message) -> None:
        """Raise what became of an answer that has no end of its own.

        Raises:
            ApiError: the news end an answer otherwise.
        """
        if "end" in news:
            _check(news["end"], "messages" if self.kind == "chat.completion" else "prompt")

    def whole(self) -> Json:
        """The completion, once every answer has ended."""
        return {
            **self._head(self.kind),
            "choices": [self._choice(index) for index in sorted(self.answers)],
            "usage": self.usage(),
        }

    async def events(
        self, first: Message, news: AsyncIterator[Message], *, usage: bool
    ) -> AsyncIterator[str]:
        """The data of a stream's events; what fails on the way is its last event but one."""
        try:
            begun: set[int] = set()
            async for one in _chain(first, news):
                piece = self.take(one)
                if piece.index not in begun and self.kind == "chat.completion":
                    begun.add(piece.index)
                    yield self._chunk(piece.index, {"role": "assistant", "content": ""})
                if piece.text or piece.boxes or piece.logprobs:
                    yield self._piece(piece)
                if piece.end is not None:
                    yield self._last(piece)
            if usage:
                yield json.dumps({**self._head(), "choices": [], "usage": self.usage()})
        except ApiError as error:
            self.error = error
        except ClientGone:
            raise
        except Exception:
            log.exception("a stream failed")
            self.error = server_error()
        if self.error is not None:
            yield json.dumps(self.error.body)
        yield DONE

    def usage(self) -> Json:
        """Tokens of all answers; the prompt counts once."""
        ends = [answer.end["usage"] for answer in self.answers.values() if answer.end]
        prompt = max((end["prompt_tokens"] for end in ends), default=0)
        made = sum(end["completion_tokens"] for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {
                "cached_tokens": max((end["cached_tokens"] for end in ends), default=0),
                "image_tokens": max((end["image_tokens"] for end in ends), default=0),
            },
            "images": self.images,
        }

    def _head(self, kind: str | None = None) -> Json:
        kind = kind or f"{self.kind}.chunk".replace("text_completion.chunk", "text_completion")
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int) -> Json:
        answer = self.answers[index]
        assert answer.end is not None
        choice: Json = {"index": index, **_ending(answer.end), "logprobs": None}
        if self.kind != "chat.completion":
            return {**choice, "text": answer.plain.text}
        message: Json = {
            "role": "assistant",
            "content": answer.plain.text,
            "refusal": None,
            "boxes": answer.boxes,
        }
        if trace := answer.end.get("trace"):
            message["trace"] = trace
        if self.logprobs:
            choice["logprobs"] = {"content": answer.logprobs, "refusal": None}
        return {**choice, "message": message}

    def _piece(self, piece: Piece) -> str:
        if self.kind != "chat.completion":
            return self._chunk(piece.index, {}, text=piece.text)
        delta: Json = {"content": piece.text}
        if piece.boxes:
            delta["boxes"] = piece.boxes
        listed = {"content": piece.logprobs, "refusal": None} if piece.logprobs else None
        return self._chunk(piece.index, delta, logprobs=listed)

    def _last(self, piece: Piece) -> str:
        assert piece.end is not None
        more = _ending(piece.end)
        if self.kind != "chat.completion":
            more["text"] = ""
        trace = piece.end.get("trace")
        return self._chunk(piece.index, {"trace": trace} if trace else {}, **more)

    def _chunk(self, index: int, delta: Json, **more: Any) -> str:
        choice: Json = {"index": index, "finish_reason": None, "logprobs": None, **more}
        if self.kind == "chat.completion":
            choice["delta"] = delta
        return json.dumps({**self._head(), "choices": [choice]}, ensure_ascii=False)

    def _placed(self, box: Message, plain: PlainText) -> Json:
        """A box with its span in the text for people, and its page."""
        page = self.images[box["image_index"]]["page"] if self.images else None
        span = box["span"] and list(plain.span(*box["span"]))
        return {**box, "span": span, "page": page}


def _ending(end: Message) -> Json:
    """How a choice ended; the guard is told when it turned the answer."""
    told: Json = {"finish_reason": end["finish_reason"]}
    if end["guard_fired"]:
        told["repetition_guard"] = {"fired": end["guard_fired"]}
    return told


def _check(end: Message, param: str) -> None:
    """Raise what became of an answer that has no end of its own; `param` held the question."""
    match end["error_code"] or end["finish_reason"]:
        case "invalid_form":
            raise refused("response_format", end["error"], "invalid_schema")
        case "context_length_exceeded" | "invalid_request" as code:
            raise refused(param, end["error"], code)
        case "out_of_memory" | "engine_error":
            raise engine_error()
        case "queue_timeout":
            raise ApiError(
                503,
                "queue_timeout",
                "the request waited too long for its turn and was not begun: try again later",
                retry_after=5,
            )
        case "timeout":
            raise timed_out()
        case "abort":
            raise engine_error()


def _token(encoded: str, logprob: float) -> Json:
    data = b64decode(encoded)
    text = data.decode("utf-8", "replace")
    return {"token": text, "bytes": list(data), "logprob": max(logprob, -9999.0)}


async def _chain(first: Message, rest: AsyncIterator[Message]) -> AsyncIterator[Message]:
    yield first
    async for one in rest:
        yield one
