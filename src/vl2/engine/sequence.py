"""One conversation while it is answered: its prompt, its tokens so far and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vl2.engine.confidence import scored_boxes
from vl2.engine.config import Completion, FinishReason, SamplingParams, Usage
from vl2.engine.text_stream import TextStream
from vl2.processing.inputs import ModelInputs


@dataclass(kw_only=True, slots=True)
class Sequence:
    """State of one request; `max_tokens` is already bounded by the context."""

    index: int
    inputs: ModelInputs
    question: str
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int]
    stream: TextStream
    generator: torch.Generator = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        """Start the request's own random stream."""
        self.generator = torch.Generator()
        if self.params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.params.seed)

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the answer, image placeholders included."""
        return self.inputs.input_ids.shape[-1]

    def uniform(self) -> float:
        """The next number in [0, 1) of this request; a greedy one draws nothing."""
        if self.params.temperature == 0:
            return 0.0
        return float(torch.rand((), generator=self.generator))

    def accept(self, token: int, logprob: float) -> str:
        """Take the next token; returns the text that became safe to show."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
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

    def completion(self) -> Completion:
        """The finished answer with its boxes in source pixels."""
        assert self.finish_reason is not None
        return Completion(
            text=self.stream.text,
            token_ids=self.token_ids,
            boxes=scored_boxes(self.stream, self.logprobs, self.inputs.image_sizes, self.question),
            finish_reason=self.finish_reason,
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                image_tokens=int(self.inputs.images_seq_mask.sum()),
                completion_tokens=len(self.token_ids),
            ),
            logprobs=self.logprobs,
        )
