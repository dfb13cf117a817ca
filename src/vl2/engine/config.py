"""What a caller chooses (`EngineConfig`, `SamplingParams`) and what comes back (`Completion`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, no_type_check

from vl2.engine.trace import Trace
from vl2.processing.grounding import Box
from vl2.ranges import plain_number

TINIEST = 5e-324
"""The smallest float above 0."""

MAX_N = 8
"""Most answers to one conversation."""

MAX_LOGPROBS = 20
"""Most alternatives per token, as in OpenAI's interface."""

FinishReason = Literal["stop", "length", "abort", "queue_timeout", "timeout", "error"]

ErrorCode = Literal[
    "invalid_request", "context_length_exceeded", "invalid_form", "out_of_memory", "engine_error"
]
"""What kind of thing `Completion.error` tells: the first three are the request's fault."""


class Refusal(ValueError):
    """A request that cannot be answered as it is; `code` says why, for programs."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Sizes of the generation loop.

    Attributes:
        max_num_seqs: answers that one step works on; None means 8, on a card as many full contexts
            as the cache holds, from 8 to 256.
        max_num_batched_tokens: tokens of one forward pass, those of prompts and of answers
            together, which bounds the memory of a step.
        max_model_len: tokens of prompt and answer together; None means the model's
            `max_position_embeddings`.
        block_size: tokens of one cache block.
        num_blocks: cache blocks; None means enough for `max_num_seqs` full contexts, but at most
            2 GiB unless one context needs more, and on a card 90 % of the memory that the largest
            steps leave free.
        enable_prefix_caching: keep the blocks of finished prompts for those that begin alike.
        vision_cache_gib: memory for the features of pictures that may come again; 0 is off.
        max_tiles_per_batch: tiles of pictures that are encoded together.
        speculative_tokens: tokens that a step guesses from the text so far and checks together;
            0 is off.
        prompt_lookup: length of the run of tokens that a guess must share with the text so far.
        compile: compile the vision tower and the dense layers when they first run.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    enable_prefix_caching: bool = True
    vision_cache_gib: float = 0.25
    max_tiles_per_batch: int = 16
    speculative_tokens: int = 0
    prompt_lookup: int = 3
    compile: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_num_batched_tokens", "block_size"):
            _whole(self, name, least=1)
        for name in ("max_tiles_per_batch", "prompt_lookup"):
            _whole(self, name, least=1)
        _whole(self, "speculative_tokens", least=0, meaning=" (0 is off)")
        if self.max_model_len is not None:
            _whole(self, "max_model_len", least=2)
        for name in ("max_num_seqs", "num_blocks"):
            if getattr(self, name) is not None:
                _whole(self, name, least=1)
        _flag("enable_prefix_caching", self.enable_prefix_caching)
        _flag("compile", self.compile)
        _number(self, "vision_cache_gib", "0 (off) to 1024", 0.0, 1024.0)


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class StructuredOutputsParams:
    """The form that an answer must have: exactly one of these is given.

    Attributes:
        json: a JSON schema, as a dict or as text.
        regex: a regular expression that the whole answer matches, in the syntax of Rust's `regex`:
            no look-around, no references; its class of digits has those of every script.
        choice: strings of which the answer is one.
        grounding: the answer begins with a label and its boxes,
            `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>`; more of them and plain text
            can follow.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grounding: bool = False

    def __post_init__(self) -> None:
        """Check that there is one form, of the right type; the compiler checks its content."""
        _flag("grounding", self.grounding)
        given = [name for name in ("json", "regex", "choice") if getattr(self, name) is not None]
        given += ["grounding"] if self.grounding else []
        if len(given) != 1:
            raise ValueError(
                f"structured outputs have {' and '.join(given) or 'none'}: "
                "expected exactly one of json, regex, choice, grounding"
            )
        if self.json is not None and not isinstance(self.json, dict | str):
            raise ValueError(
                f"json is {_shown(self.json)}: expected a JSON schema as a dict or as text"
            )
        if self.regex is not None and not isinstance(self.regex, str):
            raise ValueError(
                f"regex is {_shown(self.regex)}: expected a regular expression as text"
            )
        if self.choice is not None:
            choice = _strings("choice", self.choice)
            if not choice:
                raise ValueError("choice is empty: expected at least one string")
            object.__setattr__(self, "choice", choice)


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionGuard:
    """No token may complete an n-gram that the last tokens of the answer already hold.

    A loop of r tokens, a sentence or a row of a table for instance, ends after n + r - 1 of them.
    Up to there text may repeat itself, which tables and lists do, so the n-grams are long.

    Attributes:
        ngram_size: n.
        window_size: latest tokens of the answer that are searched, at least n + r - 1.
        exempt_token_ids: tokens that may always come.
    """

    ngram_size: int = 256
    window_size: int = 1024
    exempt_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        _whole(self, "ngram_size", least=2)
        _whole(self, "window_size", least=self.ngram_size, meaning=", the ngram_size,")
        ids = _token_ids("exempt_token_ids", self.exempt_token_ids)
        object.__setattr__(self, "exempt_token_ids", ids)


@no_type_check  # it checks its own values at run time, with messages for people
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one answer is decoded.

    The order of the steps: structured outputs and min_tokens, repetition penalty, frequency and
    presence penalty, repetition guard, temperature, top_k, top_p, min_p. Penalties count text
    tokens alone; control tokens, image placeholders among them, never count.

    Attributes:
        max_tokens: most tokens of the answer; the context's end can come first.
        min_tokens: so many tokens come before any that could end the answer; a stop string among
            them is text. A structured output that is complete ends earlier.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: keep the likeliest tokens that together reach this probability.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        presence_penalty: taken off the score of tokens that the answer holds (OpenAI's definition).
        frequency_penalty: the same times how often the answer holds them.
        repetition_guard: ends loops, and stands back where nothing else may come; None is off,
            `RepetitionGuard()` what the commands use.
        stop: strings that end the answer and do not appear in it.
        stop_token_ids: tokens that end the answer beside the end-of-sentence token.
        ignore_eos: go on behind the end-of-sentence token.
        seed: makes a sampled answer repeatable, whatever it is batched with; None draws one.
        n: answers to each conversation.
        logprobs: likeliest tokens to report beside each chosen one; None reports none.
        structured_outputs: the form that the answer must have.
        trace: whether to record how the answer was made, for `Completion.trace`.
    """

    max_tokens: int = 512
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_guard: RepetitionGuard | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        """Check the ranges; a single stop string becomes a tuple of one."""
        self._check_lengths()
        self._check_sampling()
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _strings("stop", stop))
        object.__setattr__(
            self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids)
        )
        if self.seed is not None:
            _whole(self, "seed", least=0)
        _whole(self, "n", least=1, most=MAX_N)
        if self.logprobs is not None:
            _whole(self, "logprobs", least=0, most=MAX_LOGPROBS)
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputsParams):
            raise ValueError(
                f"structured_outputs is {_shown(form)}: expected a StructuredOutputsParams"
            )

    def _check_lengths(self) -> None:
        _whole(self, "max_tokens", least=1)
        _whole(self, "min_tokens", least=0)
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}: expected at most max_tokens, {self.max_tokens}"
            )
        _flag("trace", self.trace)
        _flag("ignore_eos", self.ignore_eos)
        if self.ignore_eos and self.structured_outputs is not None:
            raise ValueError(
                "ignore_eos is True: expected False with structured_outputs, which end themselves"
            )

    def _check_sampling(self) -> None:
        _number(self, "temperature", "0 (greedy) to 100", 0.0, 100.0)
        _number(self, "top_p", "above 0 and at most 1", TINIEST, 1.0)
        _whole(self, "top_k", least=0, meaning=" (0 keeps all)")
        _number(self, "min_p", "0 (off) to 1", 0.0, 1.0)
        wanted = "0.01 to 100 (1 is off)"
        _number(self, "repetition_penalty", wanted, 0.01, 100.0)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(self, name, "-2 to 2 (0 is off)", -2.0, 2.0)
        guard = self.repetition_guard
        if guard is not None and not isinstance(guard, RepetitionGuard):
            raise ValueError(f"repetition_guard is {_shown(guard)}: expected a RepetitionGuard")


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one answer; `prompt_tokens` includes `image_tokens`."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the model's own log-probability of it."""

    token_id: int
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        index: number of the conversation; its `n` answers follow each other.
        text: the answer with its grounding markup, without the stop string or stop token.
        token_ids: every token that was chosen, the stop token included.
        boxes: boxes of the answer in pixels of the source pictures; a score is the mean
            probability of the tokens that spell the coordinates.
        finish_reason: "stop" at the end-of-sentence token, a stop token or a stop string,
            "length" at `max_tokens` or at the end of the context, "abort" when the caller took
            the request back, "queue_timeout" when its deadline passed before it was begun and
            "timeout" after that, "error" when it failed.
        usage: token counts.
        logprobs: the model's own log-probability of each chosen token, before temperature,
            penalties and cuts.
        top_logprobs: for each chosen token the likeliest tokens in its place, the likeliest first;
            None if `SamplingParams.logprobs` is None.
        error: what failed, in one line; None unless `finish_reason` is "error".
        error_code: what kind of failure it is: "invalid_request", "context_length_exceeded" and
            "invalid_form" (of `structured_outputs`) are the request's fault, "out_of_memory" and
            "engine_error" are not.
        guard_fired: tokens in whose place the repetition guard forbade the likeliest one.
        trace: experts and attention, if `SamplingParams.trace` asked for them and the answer ended.
    """

    index: int
    text: str
    token_ids: list[int]
    boxes: list[Box]
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[float]
    top_logprobs: list[tuple[TokenLogprob, ...]] | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    guard_fired: int = 0
    trace: Trace | None = None


def _shown(value: object) -> str:
    """A value as code, in one line that can be read."""
    return " ".join(f"{value!r:.80}".split())


def _whole(
    config: object, name: str, *, least: int, most: int = 2**63 - 1, meaning: str = ""
) -> None:
    """Refuse a field that is no whole number in [least, most]; NumPy's becomes Python's own."""
    value = getattr(config, name)
    number = plain_number(value, whole=True)
    if number is None or not least <= number <= most:
        beyond = number is not None and number > most
        end = f"to {most}" if beyond or most < 2**63 - 1 else "up"
        raise ValueError(
            f"{name} is {_shown(value)}: expected a whole number from {least}{meaning} {end}"
        )
    object.__setattr__(config, name, number)


def _flag(name: str, value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{name} is {_shown(value)}: expected True or False")


def _number(config: object, name: str, wanted: str, low: float, high: float) -> None:
    """Refuse a field that is no number in [low, high], as NaN; NumPy's becomes Python's own."""
    value = getattr(config, name)
    number = plain_number(value, whole=False)
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} is {_shown(value)}: expected {wanted}")
    object.__setattr__(config, name, number)


def _strings(name: str, values: object) -> tuple:
    """The values as a tuple if they are a list of non-empty strings."""
    if not isinstance(values, list | tuple) or any(
        not isinstance(v, str) or v == "" for v in values
    ):
        raise ValueError(f"{name} is {_shown(values)}: expected a list of non-empty strings")
    return tuple(values)


def _token_ids(name: str, values: object) -> tuple:
    """The values as a tuple if they are a list of whole numbers."""
    numbers = (None,)
    if isinstance(values, list | tuple):
        numbers = tuple(plain_number(value, whole=True) for value in values)
    if None in numbers:
        raise ValueError(f"{name} is {_shown(values)}: expected a list of token ids")
    return numbers
