"""One answer while it is made: its prompt, its tokens, its place in the cache, why it ended."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

from torch import Tensor

from vl2.engine.adapters import Adapter
from vl2.engine.block_manager import Name, block_name
from vl2.engine.confidence import scored_boxes
from vl2.engine.config import (
    Completion,
    ErrorCode,
    FinishReason,
    Refusal,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from vl2.engine.pictures import Picture
from vl2.engine.prompt_lookup import PromptLookup
from vl2.engine.sampler import Choice
from vl2.engine.sampling_state import SamplingState
from vl2.engine.text_stream import TextStream
from vl2.engine.trace import Trace, TraceRecord, TraceShape, Viewed
from vl2.processing.grounding import Box
from vl2.processing.inputs import ModelInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What stands before an answer; the answers to one conversation share it.

    `places` are the positions of image placeholders, `question` the text of the last user turn;
    `sent` says how many pictures each user turn sent.
    """

    inputs: ModelInputs
    question: str
    sent: tuple[int, ...]
    token_ids: list[int]
    places: list[int]
    pictures: tuple[Picture, ...]

    def placeholders_between(self, first: int, end: int) -> tuple[int, int]:
        """[low, high) numbers of the placeholders at positions in [first, end)."""
        return bisect_left(self.places, first), bisect_left(self.places, end)

    def pictures_between(self, first: int, end: int) -> list[Picture]:
        """Pictures with a placeholder at a position in [first, end)."""
        low, high = self.placeholders_between(first, end)
        return [p for p in self.pictures if p.first < high and p.first + p.tokens > low]

    def record(self, shape: TraceShape) -> TraceRecord:
        """An empty record of an answer."""
        sizes = self.inputs.image_sizes
        pictures = tuple(
            Viewed(
                grid=picture.grid,
                sent=sizes[number] if sizes else None,
                places=self.places[picture.first : picture.first + picture.tokens],
            )
            for number, picture in enumerate(self.pictures)
        )
        return TraceRecord(shape=shape, pictures=pictures, places=self.places)


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """State of one answer.

    The rows of its first `computed` tokens are in the cache, in `blocks`; `names` are those of its
    full blocks and `published` says how many of them others can find; with a `record`, to which
    every row must come, blocks have no names. `drafts` are guesses at the next tokens. `max_tokens`
    is already bounded by the context. `deadline` and `begin_by` are of `time.monotonic()`.
    """

    request_id: Hashable
    index: int
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int]
    stream: TextStream
    sampling: SamplingState
    deadline: float | None = None
    begin_by: float | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    guard_fired: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    blocks: list[int] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    computed: int = 0
    published: int = 0
    cached_tokens: int = 0
    drafts: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None
    features: dict[bytes, Tensor] = field(default_factory=dict)
    record: TraceRecord | None = None
    adapter: Adapter | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt.token_ids) + len(self.token_ids)

    @property
    def pending(self) -> int:
        """Tokens that must run before the next one is known; 1 while it decodes."""
        return self.length - self.computed

    @property
    def overdue(self) -> FinishReason | None:
        """The deadline that has passed, if one has."""
        begun = self.computed > 0
        limits = (self.deadline,) if begun else (self.deadline, self.begin_by)
        if time.monotonic() <= min((limit for limit in limits if limit is not None), default=inf):
            return None
        return "timeout" if begun else "queue_timeout"

    def tokens_between(self, first: int, end: int) -> list[int]:
        """Ids at the positions [first, end) of prompt, answer and drafts."""
        before = len(self.prompt.token_ids)
        found = self.prompt.token_ids[first:end]
        if end > before:
            answer = [*self.token_ids, *self.drafts] if self.drafts else self.token_ids
            found = found + answer[max(0, first - before) : end - before]
        return found

    def name_blocks(self, block_size: int) -> None:
        """Name the blocks that have become full."""
        if self.record is not None:
            return
        start = b"" if self.adapter is None else self.adapter.digest
        for block in range(len(self.names), self.length // block_size):
            first, end = block * block_size, (block + 1) * block_size
            before = self.names[-1] if self.names else start
            pictures = self.prompt.pictures_between(first, end)
            ids = self.tokens_between(first, end)
            self.names.append(block_name(before, ids, (p.digest for p in pictures)))

    def accept(self, choice: Choice) -> str:
        """Take the next token; returns the text that became safe to show."""
        token = choice.token
        self.token_ids.append(token)
        self.logprobs.append(choice.logprob)
        self.tops.append(tuple(TokenLogprob(*pair) for pair in choice.top))
        self.guard_fired += choice.guarded
        self.sampling.note(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return self.stream.finish()
        delta = self.stream.push(token)
        if not self.stream.stopped and len(self.token_ids) == self.max_tokens:
            self.finish_reason = "length"
            delta += self.stream.finish()
        if self.stream.stopped:
            self.finish_reason = "stop"
        return delta

    @property
    def dead_end(self) -> Refusal | None:
        """Why no token may come next; None if one may."""
        if error := self.sampling.error:
            return Refusal("invalid_form", error)
        allowed = self.sampling.allowed(len(self.token_ids))
        if allowed is None or bool(allowed.any()):
            return None
        return Refusal(
            "invalid_request",
            f"min_tokens is {self.params.min_tokens}, but after {len(self.token_ids)} tokens every "
            "token that may come ends the answer: give fewer min_tokens or fewer stop_token_ids",
        )

    def boxes(self) -> list[Box]:
        """The boxes so far, in pixels of the pictures that were sent."""
        prompt, sizes = self.prompt, self.prompt.inputs.image_sizes
        return scored_boxes(self.stream, self.logprobs, sizes, prompt.question, prompt.sent)

    def completion(self) -> Completion:
        """The finished answer with its boxes in source pixels."""
        assert self.finish_reason is not None
        ended = self.finish_reason in ("stop", "length")
        return Completion(
            index=self.index,
            text=self.stream.text,
            token_ids=self.token_ids,
            boxes=self.boxes() if ended else [],
            finish_reason=self.finish_reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.token_ids),
                image_tokens=len(self.prompt.places),
                completion_tokens=len(self.token_ids),
                cached_tokens=self.cached_tokens,
            ),
            logprobs=self.logprobs,
            top_logprobs=None if self.params.logprobs is None else self.tops,
            error=self.error,
            error_code=self.error_code,
            guard_fired=self.guard_fired,
            trace=self._trace() if ended else None,
        )

    def _trace(self) -> Trace | None:
        if self.record is None:
            return None
        text = len(self.stream.text)
        ends = [min(end, text) for end in self.stream.ends[:-1]]  # what was held back is the last's
        ends += [text] * (len(self.token_ids) - len(ends))  # a token that ends it adds no text
        spans = list(zip([0, *ends], ends, strict=False))
        return self.record.trace(len(self.prompt.token_ids), spans)
