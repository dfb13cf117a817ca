"""What a caller chooses (`EngineConfig`, `SamplingParams`) and what comes back (`Completion`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, no_type_check

from vl2.processing.grounding import Box

TINIEST = 5e-324
"""The smallest float above 0."""

FinishReason = Literal["stop", "length"]


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes of the generation loop.

    Attributes:
        max_batch: conversations that are answered together; a longer list runs in groups.
        prefill_chunk: prompt tokens per forward pass, which bounds the memory of a long prompt.
        max_model_len: tokens of prompt and answer together; None means the model's
            `max_position_embeddings`.
    """

    max_batch: int = 8
    prefill_chunk: int = 1024
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        _whole("max_batch", self.max_batch, least=1)
        _whole("prefill_chunk", self.prefill_chunk, least=1)
        if self.max_model_len is not None:
            _whole("max_model_len", self.max_model_len, least=2)


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one answer is decoded.

    The order is that of transformers: repetition penalty, temperature, top_k, top_p, min_p.

    Attributes:
        max_tokens: most tokens of the answer; the context's end can come first.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: keep the likeliest tokens that together reach this probability.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: above 1 makes text tokens of the prompt and the answer less likely;
            control tokens, image placeholders among them, never count.
        stop: strings that end the answer and do not appear in it.
        stop_token_ids: tokens that end the answer beside the end-of-sentence token.
        seed: makes a sampled answer repeatable, whatever it is batched with; None draws one.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges; a single stop string becomes a tuple of one."""
        _whole("max_tokens", self.max_tokens, least=1)
        _number("temperature", self.temperature, "0 (greedy) to 100", 0.0, 100.0)
        _number("top_p", self.top_p, "above 0 and at most 1", TINIEST, 1.0)
        _whole("top_k", self.top_k, least=0, meaning=" (0 keeps all)")
        _number("min_p", self.min_p, "0 (off) to 1", 0.0, 1.0)
        _number(
            "repetition_penalty", self.repetition_penalty, "0.01 to 100 (1 is off)", 0.01, 100.0
        )
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _all_of("stop", stop, str, "non-empty strings"))
        ids = _all_of("stop_token_ids", self.stop_token_ids, int, "token ids")
        object.__setattr__(self, "stop_token_ids", ids)
        if self.seed is not None:
            _whole("seed", self.seed, least=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one answer; `prompt_tokens` includes `image_tokens`."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: the answer with its grounding markup, without the stop string or stop token.
        token_ids: every token that was chosen, the stop token included.
        boxes: boxes of the answer in pixels of the source pictures; a score is the mean
            probability of the tokens that spell the coordinates.
        finish_reason: "stop" at the end-of-sentence token, a stop token or a stop string,
            "length" at `max_tokens` or at the end of the context.
        usage: token counts.
        logprobs: the model's own log-probability of each chosen token, before temperature,
            penalty and cuts.
    """

    text: str
    token_ids: list[int]
    boxes: list[Box]
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[float]


def _whole(name: str, value: object, *, least: int, meaning: str = "") -> None:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is {value!r}: expected a whole number from {least}{meaning} up")


def _number(name: str, value: object, wanted: str, low: float, high: float) -> None:
    """Refuse what is no number in [low, high]; NaN is in no range."""
    if type(value) not in (int, float) or not low <= cast(float, value) <= high:
        raise ValueError(f"{name} is {value!r}: expected {wanted}")


def _all_of(name: str, values: object, kind: type, wanted: str) -> tuple:
    """The values as a tuple if they are a list of non-empty things of this kind."""
    if not isinstance(values, list | tuple) or any(type(v) is not kind or v == "" for v in values):
        raise ValueError(f"{name} is {values!r}: expected a list of {wanted}")
    return tuple(values)
