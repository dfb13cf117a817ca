"""From a conversation to the sequences that answer it, or to the reason why there are none."""

from __future__ import annotations

from bisect import bisect
from collections import abc
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from vl2.engine.config import SamplingParams
from vl2.engine.grammar import GrammarCompiler
from vl2.engine.pictures import pictures_of
from vl2.engine.sampler import SamplingState
from vl2.engine.sequence import Prompt, Sequence
from vl2.engine.text_stream import TextStream
from vl2.model.vl2 import VL2Model
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

    def sequences(
        self,
        request_id: Hashable,
        conversation: Conversation,
        params: SamplingParams,
        *,
        index: int = 0,
        deadline: float | None = None,
    ) -> list[Sequence]:
        """The `params.n` answers to a conversation, not yet begun.

        Raises:
            ValueError: the processor refuses the conversation, the prompt leaves no room in the
                context, or a grammar cannot be compiled.
        """
        ready = isinstance(conversation, ModelInputs)
        prompt = self._prompt(conversation if ready else self.processor(conversation))
        room = self.context - len(prompt.token_ids)
        if room < 1:
            raise ValueError(
                f"conversation {index} has {len(prompt.token_ids)} prompt tokens, "
                f"{len(prompt.places)} of them for pictures: the context of {self.context} leaves "
                "no room for an answer; send less text or fewer or smaller pictures, or set "
                "EngineConfig.max_model_len"
            )
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= {self.processor.tokenizer.eos_id}
        form = params.structured_outputs
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
                    self.grammar.compile(form) if form else None,
                    seed_offset=answer,
                ),
                deadline=deadline,
            )
            for answer in range(params.n)
        ]

    def _prompt(self, inputs: ModelInputs) -> Prompt:
        side = self.processor.layout.side
        check_inputs(inputs, side=side)
        ids, tokenizer = inputs.input_ids.tolist(), self.processor.tokenizer
        places = inputs.images_seq_mask.nonzero()[:, 0].tolist()
        pictures = pictures_of(inputs, side)
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
