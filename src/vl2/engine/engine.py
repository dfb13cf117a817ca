"""The generation loop: chunked prefill of a left-padded batch, then one cached token per step.

First, simple form: a group starts together and each finished answer leaves it. The interface of
`Engine.generate` stays when scheduling becomes continuous.
"""

from __future__ import annotations

import math
from collections import abc
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from vl2.engine.config import Completion, EngineConfig, SamplingParams
from vl2.engine.sampler import Sampler
from vl2.engine.sequence import Sequence
from vl2.engine.text_stream import TextStream
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache
from vl2.processing.inputs import Batch, ModelInputs
from vl2.processing.processor import Processor
from vl2.processing.tokenizer import Tokenizer

Conversation = abc.Sequence[abc.Mapping[str, Any]] | ModelInputs
"""Chat messages, or inputs that a processor already made, for instance from the official format."""

OnToken = abc.Callable[[int, str], None]
"""Hears the index of a conversation and the new piece of its answer."""


class Engine:
    """Answers conversations with a model and its processor."""

    def __init__(
        self, model: VL2Model, processor: Processor, config: EngineConfig | None = None
    ) -> None:
        """Put the parts together, and the model in evaluation mode.

        Raises:
            ValueError: the processor is of another model.
        """
        _check_pair(model, processor)
        self.model = model.eval()
        self.processor = processor
        self.config = config or EngineConfig()
        language = model.config.language_config
        self.context = self.config.max_model_len or language.max_position_embeddings
        self.device = model.image_newline.device
        self.dtype = model.image_newline.dtype
        controls = processor.tokenizer.control_ids
        counted = [token not in controls for token in range(language.vocab_size)]
        self._counted = torch.tensor(counted, device=self.device)

    @torch.inference_mode()
    def generate(
        self,
        conversations: abc.Sequence[Conversation],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Answer every conversation, `max_batch` at a time.

        Args:
            conversations: messages or `ModelInputs`, one item per answer.
            params: for all conversations, or one per conversation; None decodes greedily.
            on_token: hears text while it is made; its pieces join to `Completion.text`.

        Raises:
            ValueError: as many params as fit neither rule, a conversation that the processor
                refuses, or a prompt that leaves no room in the context.
            FloatingPointError: the model gave scores that are not numbers.
        """
        chosen = _one_each(params, len(conversations))
        answers: list[Completion] = []
        for first in range(0, len(conversations), self.config.max_batch):
            last = min(first + self.config.max_batch, len(conversations))
            group = [self._admit(i, conversations[i], chosen[i]) for i in range(first, last)]
            self._run(group, on_token or (lambda index, delta: None))
            answers += [sequence.completion() for sequence in group]
        return answers

    def _admit(self, index: int, conversation: Conversation, params: SamplingParams) -> Sequence:
        ready = isinstance(conversation, ModelInputs)
        inputs = conversation if ready else self.processor(conversation)
        room = self.context - len(inputs.input_ids)
        if room < 1:
            raise ValueError(
                f"conversation {index} has {len(inputs.input_ids)} prompt tokens, "
                f"{int(inputs.images_seq_mask.sum())} of them for pictures: the context of "
                f"{self.context} leaves no room for an answer; send less text or fewer or smaller "
                "pictures, or set EngineConfig.max_model_len"
            )
        return Sequence(
            index=index,
            inputs=inputs,
            question=_question(inputs, self.processor.tokenizer),
            params=params,
            max_tokens=min(params.max_tokens, room),
            stop_ids=frozenset((self.processor.tokenizer.eos_id, *params.stop_token_ids)),
            stream=TextStream(self.processor.tokenizer, params.stop),
        )

    def _run(self, running: list[Sequence], on_token: OnToken) -> None:
        """Answer a group; who has finished leaves it with the rows of sampler, mask and cache."""
        inputs = [sequence.inputs for sequence in running]
        batch = self.processor.collate(inputs).to(self.device)
        longest = max(sequence.max_tokens for sequence in running)
        mask = functional.pad(batch.attention_mask, (0, longest), value=1)
        language = self.model.config.language_config
        cache = KVCache.empty(language, *mask.shape, device=self.device, dtype=self.dtype)
        sampler = Sampler.start(
            [sequence.params for sequence in running],
            [sample.input_ids for sample in inputs],
            self._counted,
        )
        hidden = self._prefill(batch, mask, cache)
        while True:
            uniform = torch.tensor([sequence.uniform() for sequence in running])
            logits = self.model.language.logits(hidden)[:, 0]
            tokens, logprobs = sampler.step(logits, uniform.to(self.device))
            choices = zip(running, tokens.tolist(), logprobs.tolist(), strict=True)
            for sequence, token, logprob in choices:
                _deliver(sequence, token, logprob, on_token)
            rows = [row for row, sequence in enumerate(running) if not sequence.finish_reason]
            if not rows:
                return
            if len(rows) < len(running):
                running = [running[row] for row in rows]
                kept = torch.tensor(rows, device=self.device)
                cache, sampler = cache.select(kept), sampler.select(kept)
                mask, tokens = mask[kept], tokens[kept]
            hidden = self._advance(self.model.language.embed(tokens[:, None]), mask, cache)

    def _prefill(
        self, batch: Batch, mask: Int[Tensor, "b s"], cache: KVCache
    ) -> Float[Tensor, "b 1 h"]:
        """State of the last prompt token; prompts run in chunks of `prefill_chunk` tokens."""
        embeds = self.model.embed_inputs(
            batch.input_ids, batch.images, batch.images_seq_mask, batch.images_spatial_crop
        )
        *before, last = embeds.split(self.config.prefill_chunk, dim=1)
        for chunk in before:
            self._advance(chunk, mask, cache)
        return self._advance(last, mask, cache)

    def _advance(
        self, embeds: Float[Tensor, "b t h"], mask: Int[Tensor, "b s"], cache: KVCache
    ) -> Float[Tensor, "b 1 h"]:
        """Run new tokens behind the cached ones; the last one's state."""
        seen = mask[:, : cache.length + embeds.shape[1]]
        return self.model.language(embeds, attention_mask=seen, cache=cache).hidden[:, -1:]


def _check_pair(model: VL2Model, processor: Processor) -> None:
    """A processor of another model would give ids or tiles that this one does not know."""
    vocabulary, ids = model.config.language_config.vocab_size, processor.tokenizer.vocab_size
    tile, size = model.config.vision_config.image_size, processor.layout.image_size
    if ids > vocabulary or tile != size:
        raise ValueError(
            f"the processor has {ids} tokens and {size}-pixel tiles, the model {vocabulary} and "
            f"{tile}: load both from the same place"
        )


def _one_each(
    params: SamplingParams | abc.Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """One entry per conversation."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(
            f"{len(params)} params for {count} conversations: give one, or one for each"
        )
    return list(params)


def _question(inputs: ModelInputs, tokenizer: Tokenizer) -> str:
    """Text of the last user turn."""
    ids = inputs.input_ids.tolist()
    start = len(ids) - ids[::-1].index(tokenizer.user_id) if tokenizer.user_id in ids else 0
    return tokenizer.decode(ids[start:], skip_special=True)


def _deliver(sequence: Sequence, token: int, logprob: float, on_token: OnToken) -> None:
    """Hand a sequence its next token and the caller the text that it completes."""
    if not math.isfinite(logprob):
        raise FloatingPointError(
            f"conversation {sequence.index}: the model's scores are not numbers after "
            f"{len(sequence.token_ids)} tokens; the weights are damaged, or too large for float16: "
            "load them as bfloat16 or float32"
        )
    delta = sequence.accept(token, logprob)
    if delta:
        on_token(sequence.index, delta)
