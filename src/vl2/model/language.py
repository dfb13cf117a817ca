"""The DeepSeekMoE language model: embeddings in, hidden states or logits out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.model.attention import (
    AttentionContext,
    LatentAttention,
    MultiHeadAttention,
    RMSNorm,
    Watched,
)
from vl2.model.linear import Linear
from vl2.model.moe import Mlp, MoE
from vl2.ops.attention import decoder_mask
from vl2.ops.kv_cache import KVCache
from vl2.ops.moe import Routing
from vl2.ops.paged import PagedStep
from vl2.ops.rope import rope_tables

ABSORB_UP_TO = 8
"""Queries up to which the absorbed form is chosen for a cached step: it does 3.4 times the work per
score but skips rebuilding keys and values of the whole cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageOutput:
    """Last hidden state after the final norm, and on request what happened on the way."""

    hidden: Tensor  # [b, t, h]
    hidden_states: tuple[Tensor, ...] | None  # embeddings, each layer's output, last one normed
    routing: tuple[Routing, ...]  # one per MoE layer


@dataclass(kw_only=True, slots=True)
class StepRecord:
    """What is kept of a step beside its result: `routing` of all rows, attention of some."""

    watched: tuple[Watched, ...]
    routing: tuple[Routing, ...] = ()  # one per MoE layer


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        attention = LatentAttention if config.use_mla else MultiHeadAttention
        self.self_attn = attention(config, layer)
        self.mlp = (
            MoE(config)
            if config.is_moe_layer(layer)
            else Mlp(config.hidden_size, config.intermediate_size)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Float[Tensor, "b t h"], context: AttentionContext
    ) -> tuple[Float[Tensor, "b t h"], Routing | None]:
        """The layer's output and, for an MoE layer, its routing."""
        x = x + self.self_attn(self.input_layernorm(x), context)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            out, routing = self.mlp(normed)
            return x + out, routing
        return x + self.mlp(normed), None


class Decoder(nn.Module):
    """Embedding table, layers and final norm (`language.model` in the released keys)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Float[Tensor, "b t h"], context: AttentionContext, *, keep_states: bool = False
    ) -> LanguageOutput:
        """Run all layers; `keep_states` also returns every hidden state."""
        states, routings = [x], []
        for layer in self.layers:
            x, routing = layer(x, context)
            if routing is not None:
                routings.append(routing)
            if keep_states:
                states.append(x)
        x = self.norm(x)
        kept = (*states[:-1], x) if keep_states else None
        return LanguageOutput(hidden=x, hidden_states=kept, routing=tuple(routings))


class Language(nn.Module):
    """Decoder and output head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t h"]:
        """Token embeddings."""
        return self.model.embed_tokens(input_ids)

    def logits(self, hidden: Float[Tensor, "b t h"]) -> Float[Tensor, "b t v"]:
        """Float32 logits; pass only the positions that are needed."""
        return self.lm_head(hidden).float()

    def forward(
        self,
        inputs_embeds: Float[Tensor, "b t h"],
        *,
        attention_mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        segment_ids: Int[Tensor, "b t"] | None = None,
        cache: KVCache | None = None,
        absorbed: bool | None = None,
        keep_states: bool = False,
    ) -> LanguageOutput:
        """Run t new tokens behind those in the cache.

        Args:
            inputs_embeds: embeddings of the new tokens.
            attention_mask: 1 where a token is real, for cached and new tokens (s = cached + t).
            position_ids: rotary positions; by default real tokens are counted from 0.
            segment_ids: documents packed in one row (without cache), see `decoder_mask`.
            cache: written in place and advanced by t.
            absorbed: form of latent attention; None chooses by the number of new tokens.
            keep_states: also return every hidden state.

        Raises:
            ValueError: the mask does not cover cached and new tokens.
        """
        batch, tokens = inputs_embeds.shape[:2]
        past = 0 if cache is None else cache.length
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and mask.shape != (batch, past + tokens):
            raise ValueError(
                f"attention_mask is {list(mask.shape)}: expected [{batch}, {past + tokens}], "
                f"one entry for each of {past} cached and {tokens} new tokens"
            )
        if position_ids is None:
            position_ids = _positions(inputs_embeds, past, mask)
        if absorbed is None:
            absorbed = cache is not None and tokens <= ABSORB_UP_TO
        context = self._context(
            position_ids, past, mask=mask, segment_ids=segment_ids, cache=cache, absorbed=absorbed
        )
        out = self.model(inputs_embeds, context, keep_states=keep_states)
        if cache is not None:
            cache.advance(tokens)
        return out

    def step(
        self,
        embeds: Float[Tensor, "1 n h"],
        position_ids: Int[Tensor, "1 n"],
        pages: PagedStep,
        record: StepRecord | None = None,
    ) -> Float[Tensor, "1 n h"]:
        """Hidden states of n new tokens of several sequences, whose past lies in paged pools.

        A `record` is filled.
        """
        cos, sin = rope_tables(position_ids, self.config)
        watched = () if record is None else record.watched
        context = AttentionContext(cos=cos, sin=sin, pages=pages, watched=watched)
        out = self.model(embeds, context)
        if record is not None:
            record.routing = out.routing
        return out.hidden

    def _context(
        self,
        position_ids: Tensor,
        past: int,
        *,
        mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: KVCache | None,
        absorbed: bool,
    ) -> AttentionContext:
        """Rotary tables and the cheapest mask: none for one token, a flag for plain causal."""
        tokens = position_ids.shape[1]
        plain = mask is None and segment_ids is None
        absorbed = absorbed and self.config.use_mla
        causal = plain and past == 0 and tokens > 1 and not absorbed
        allowed = None
        if not causal and not (plain and tokens == 1):
            allowed = decoder_mask(
                tokens,
                past + tokens,
                device=position_ids.device,
                attention_mask=mask,
                segment_ids=segment_ids,
            )
        cos, sin = rope_tables(position_ids, self.config)
        return AttentionContext(
            cos=cos, sin=sin, mask=allowed, causal=causal, cache=cache, absorbed=absorbed
        )


def _positions(embeds: Tensor, past: int, mask: Tensor | None) -> Int[Tensor, "b t"]:
    """Positions count real tokens from 0, so left padding shifts nothing; padding itself gets 0."""
    batch, tokens = embeds.shape[:2]
    if mask is None:
        return torch.arange(past, past + tokens, device=embeds.device).expand(batch, -1)
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]
