"""From a conversation to the sequences that answer it, or to the reason why there are none."""

from __future__ import annotations

from bisect import bisect
from collections import abc
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vl2.engine.adapters import Adapter
from vl2.engine.config import (
    Completion,
    EngineConfig,
    ErrorCode,
    FinishReason,
    Refusal,
    SamplingParams,
    Usage,
)
from vl2.engine.grammar import GrammarCompiler, Matcher
from vl2.engine.pictures import pictures_of
from vl2.engine.sampling_state import SamplingState
from vl2.engine.sequence import Prompt, Sequence
from vl2.engine.text_stream import TextStream
from vl2.engine.trace import TraceShape
from vl2.model.vl2 import VL2Model
from vl2.out_of_memory import is_out_of_memory
from vl2.processing.inputs import ModelInputs, check_inputs
from vl2.processing.processor import Processor

Conversation = abc.Sequence[abc.Mapping[str, Any]] | ModelInputs
"""Chat messages, or inputs that a processor already made, for instance from the official format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Turns conversations into sequences; `context` bounds prompt and answer together."""

    processor: Processor
    grammar: GrammarCompiler
    context: int
    counted: Bool[Tensor, " v"]
    trace: TraceShape

    @classmethod
    def of(cls, model: VL2Model, processor: Processor, context: int) -> Admission:
        """Of a model and its processor."""
        controls = processor.tokenizer.control_ids
        vocabulary = model.config.language_config.vocab_size
        counted = [token not in controls for token in range(vocabulary)]
        return cls(
            processor=processor,
            grammar=GrammarCompiler(processor.tokenizer, vocabulary),
            context=context,
            counted=torch.tensor(counted, device=model.image_newline.device),
            trace=TraceShape.of(model.config, processor.layout.side),
        )

    def sequences(
        self,
        request_id: Hashable,
        conversation: Conversation,
        params: SamplingParams,
        adapter: Adapter | None = None,
        *,
        index: int = 0,
        deadline: float | None = None,
    ) -> list[Sequence]:
        """The `params.n` answers to a conversation, by the base or an adapter, not yet begun.

        Raises:
            ValueError: the processor refuses the conversation, the prompt leaves no room in the
                context, a stop token is none of the model, or a grammar cannot be compiled.
        """
        ready = isinstance(conversation, ModelInputs)
        inputs = conversation if ready else self.processor(conversation)
        prompt = self._prompt(inputs, adapter.sight if adapter else b"")
        stop_ids = self._stop_ids(params)
        room = self.context - len(prompt.token_ids)
        if room < 1:
            raise Refusal(
                "context_length_exceeded",
                f"conversation {index} has {len(prompt.token_ids)} prompt tokens, "
                f"{len(prompt.places)} of them for pictures: the context of {self.context} leaves "
                "no room for an answer; send less text or fewer or smaller pictures, or set "
                "EngineConfig.max_model_len",
            )
        if params.trace:
            self.trace.check(min(params.max_tokens, room), len(prompt.places))
        return [
            Sequence(
                request_id=request_id,
                index=index,
                prompt=prompt,
                params=params,
                max_tokens=min(params.max_tokens, room),
                stop_ids=stop_ids,
                stream=TextStream(self.processor.tokenizer, params.stop, params.min_tokens),
                sampling=SamplingState.start(
                    params,
                    prompt.inputs.input_ids,
                    self.counted,
                    stop_ids,
                    self._form(params),
                    seed_offset=answer,
                ),
                deadline=deadline,
                record=prompt.record(self.trace) if params.trace else None,
                adapter=adapter,
            )
            for answer in range(params.n)
        ]

    def _form(self, params: SamplingParams) -> Matcher | None:
        """The form that the answer must have, compiled."""
        form = params.structured_outputs
        try:
            return self.grammar.compile(form) if form else None
        except ValueError as error:
            raise Refusal("invalid_form", str(error)) from None

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """The tokens that end the answer; a negative id, as files write for "none", is none."""
        vocabulary = len(self.counted)
        foreign = [
            token for token in params.stop_token_ids if not -vocabulary <= token < vocabulary
        ]
        if foreign:
            raise ValueError(
                f"stop_token_ids has {foreign[0]}: expected tokens of the model, 0 to "
                f"{vocabulary - 1}"
            )
        own = () if params.ignore_eos else (self.processor.tokenizer.eos_id,)
        return frozenset(token for token in (*params.stop_token_ids, *own) if token >= 0)

    def _prompt(self, inputs: ModelInputs, sight: bytes) -> Prompt:
        side, tile = self.processor.layout.side, self.processor.layout.one_tile
        check_inputs(inputs, side=side)
        inputs = on_cpu(inputs)
        ids, tokenizer = inputs.input_ids.tolist(), self.processor.tokenizer
        if inputs.images.shape[1:] != (3, *tile):
            raise ValueError(
                f"images of a sample are {list(inputs.images.shape)}: expected tiles of "
                f"{[3, *tile]}; build the sample with the model's processor"
            )
        foreign = [token for token in (min(ids), max(ids)) if not 0 <= token < len(self.counted)]
        if foreign:
            raise ValueError(
                f"input_ids of a sample has {foreign[0]}: expected tokens of the model, 0 to "
                f"{len(self.counted) - 1}"
            )
        places = inputs.images_seq_mask.nonzero()[:, 0].tolist()
        pictures = pictures_of(inputs, side, sight)
        turns = [place for place, token in enumerate(ids) if token == tokenizer.user_id]
        sender = [bisect(turns, places[picture.first]) for picture in pictures]
        return Prompt(
            inputs=inputs,
            question=tokenizer.decode(ids[turns[-1] if turns else 0 :], skip_special=True),
            sent=tuple(sender.count(turn) for turn in range(len(turns) + 1)),
            token_ids=ids,
            places=places,
            pictures=pictures,
        )


def context_of(model: VL2Model, config: EngineConfig) -> int:
    """Most tokens of prompt and answer together.

    Raises:
        ValueError: `max_model_len` is more than the model has positions.
    """
    positions = model.config.language_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > positions:
        raise ValueError(
            f"max_model_len is {config.max_model_len}: expected at most {positions}, the model's "
            "max_position_embeddings"
        )
    return config.max_model_len or positions


def on_cpu(inputs: ModelInputs) -> ModelInputs:
    """The same where admission reads it: on the CPU, ids as int64 and tiles as float32."""
    return replace(
        inputs,
        input_ids=inputs.input_ids.to("cpu", torch.int64),
        images=inputs.images.detach().to("cpu", torch.float32),
        images_seq_mask=inputs.images_seq_mask.cpu(),
        images_spatial_crop=inputs.images_spatial_crop.cpu(),
    )


def paired(conversations: object, params: object) -> list[tuple[Conversation, SamplingParams]]:
    """Each conversation with its params.

    Raises:
        ValueError: no list of conversations but a single one, or another thing; or params that are
            neither one for all nor one for each.
    """
    if isinstance(conversations, str | bytes) or not isinstance(conversations, abc.Sequence):
        what = f"conversations is of type {type(conversations).__name__}"
        raise ValueError(f"{what}: expected a list of conversations, generate([messages])")
    if conversations and all(isinstance(item, abc.Mapping) for item in conversations):
        raise ValueError(
            "conversations is a single conversation: expected a list of conversations, "
            "generate([messages]) for one"
        )
    each = spread(params, len(conversations), "params")
    return list(zip(conversations, map(checked_params, each), strict=True))


def spread(given: Any, count: int, what: str) -> abc.Sequence[Any]:
    """One thing for each of some conversations: the same one for all unless they are listed.

    Raises:
        ValueError: they are not as many.
    """
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise ValueError(
            f"{len(given)} {what} for {count} conversations: give one, or one for each"
        )
    return given


def checked_params(params: object) -> SamplingParams:
    """The params; None decodes greedily.

    Raises:
        ValueError: they are none.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise ValueError(
            f"params is of type {type(params).__name__}: expected SamplingParams, for instance "
            "SamplingParams(max_tokens=64)"
        )
    return params


def reason_of(error: Exception) -> tuple[ErrorCode, str]:
    """What went wrong, in one line, and for memory that ran out what to do."""
    if isinstance(error, Refusal):
        return error.code, " ".join(str(error).split())
    told = " ".join(f"{type(error).__name__}: {error}".split())
    if not is_out_of_memory(error):
        return "engine_error", told
    return (
        "out_of_memory",
        "out of memory: send fewer or smaller pictures or less text, or give a smaller "
        f"EngineConfig.max_num_batched_tokens, max_num_seqs or num_blocks ({told[:200]})",
    )


def unbegun(
    index: int, reason: FinishReason, code: ErrorCode | None = None, error: str | None = None
) -> Completion:
    """The answer to a conversation that never ran."""
    return Completion(
        index=index,
        text="",
        token_ids=[],
        boxes=[],
        finish_reason=reason,
        usage=Usage(prompt_tokens=0, image_tokens=0, completion_tokens=0),
        logprobs=[],
        error=error,
        error_code=code,
    )


def check_pair(model: VL2Model, processor: Processor) -> None:
    """Refuse a processor of another model: its ids or tiles are not those of this one.

    Raises:
        ValueError: it has more tokens, or other tiles.
    """
    vocabulary, ids = model.config.language_config.vocab_size, processor.tokenizer.vocab_size
    tile, size = model.config.vision_config.image_size, processor.layout.image_size
    if ids > vocabulary or tile != size:
        raise ValueError(
            f"the processor has {ids} tokens and {size}-pixel tiles, the model {vocabulary} and "
            f"{tile}: load both from the same place"
        )
