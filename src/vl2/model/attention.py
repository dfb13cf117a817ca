"""Self-attention of the language model: plain multi-head (Tiny), multi-head latent (Small, Base).

Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1) caches one latent and one
rope key per token. Two forms give the same numbers: *expanded* rebuilds keys and values per head
and suits many queries; *absorbed* moves the up-projections to the query and output side and suits
few queries over a long cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.model.linear import Linear, outputs
from vl2.ops.attention import attention, attention_weights, head_product
from vl2.ops.kv_cache import KVCache
from vl2.ops.norm import rms_norm
from vl2.ops.paged import (
    PagedStep,
    Span,
    paged_decode_attention,
    paged_latent_attention,
    paged_single_attention,
)
from vl2.ops.rope import apply_rope, deinterleave, softmax_scale

LATENT_NORM_EPS = 1e-6
"""The norms of the low-rank paths keep this default whatever `rms_norm_eps` says (as official)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A row of a paged step, the last one of its span, of which is kept where it attends.

    `weights` gets one tensor from each layer, over the rows that the span reads.
    """

    row: int
    span: Span
    weights: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionContext:
    """What every layer of one forward pass shares.

    Past tokens come from a rectangular `cache`, or from `pages`, whose spans or tables then replace
    mask, causal and absorbed; rows of spans can be `watched`.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None = None
    causal: bool = False
    cache: KVCache | None = None
    absorbed: bool = False
    pages: PagedStep | None = None
    watched: tuple[Watched, ...] = ()


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32, cast back, then the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*lead w"]) -> Float[Tensor, "*lead w"]:
        """Same shape and dtype as x."""
        return rms_norm(x, self.weight, self.eps)


class MultiHeadAttention(nn.Module):
    """Plain attention with rotary positions over the whole head (LLaMA's, used by Tiny)."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.scale = config, layer, softmax_scale(config)
        hidden, width = config.hidden_size, config.head_dim
        self.q_proj = Linear(hidden, config.num_attention_heads * width, bias=False)
        self.k_proj = Linear(hidden, config.num_key_value_heads * width, bias=False)
        self.v_proj = Linear(hidden, config.num_key_value_heads * width, bias=False)
        self.o_proj = Linear(config.num_attention_heads * width, hidden, bias=False)

    def forward(
        self, x: Float[Tensor, "b t h"], context: AttentionContext
    ) -> Float[Tensor, "b t h"]:
        """Attend from x to the cache and x."""
        width = self.config.head_dim
        rows = outputs(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (states.unflatten(-1, (-1, width)) for states in rows)
        both = apply_rope(torch.cat((q, k), dim=2), context.cos, context.sin)
        q, k = both.split([q.shape[2], k.shape[2]], dim=2)
        if context.pages is not None:
            out = self._attend_pages(q, torch.cat((k, v), dim=2).flatten(2), context.pages)
            for one in context.watched:
                rows = one.span.read(context.pages.pools[self.layer]).unflatten(-1, (-1, width))
                key = rows.chunk(2, dim=1)[0]
                one.weights.append(attention_weights(q[0, one.row], key, scale=self.scale))
            return self.o_proj(out)
        if context.cache is not None:
            rows = context.cache.append(self.layer, torch.cat((k, v), dim=2).flatten(2))
            k, v = rows.unflatten(-1, (-1, width)).chunk(2, dim=2)
        out = self._attend(q, k, v, context)
        return self.o_proj(out.flatten(2))

    def _attend_pages(
        self, q: Float[Tensor, "1 n heads d"], rows: Float[Tensor, "1 n w"], pages: PagedStep
    ) -> Float[Tensor, "1 n w2"]:
        """By tables or span by span over the pool, into which `rows` are written first."""
        pool = pages.write(self.layer, rows[0])
        if pages.tables is not None:
            out = paged_decode_attention(q[0], pool, pages.tables, scale=self.scale)
            return out.flatten(1)[None]
        out, spans = [], pages.spans
        if pages.singles is not None and len(pages.singles.ends):
            count = len(pages.singles.ends)
            first = paged_single_attention(q[0, :count], pool, pages.singles, scale=self.scale)
            if count == len(spans):
                return first.flatten(1)[None]
            out.append(first[None])
            q, spans = q[:, count:], spans[count:]
        for queries, span in zip(q.split([s.tokens for s in spans], dim=1), spans, strict=True):
            k, v = span.read(pool)[None].unflatten(-1, (-1, self.config.head_dim)).chunk(2, dim=2)
            out.append(self._attend(queries, k, v, span))
        return torch.cat(out, dim=1).flatten(2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionContext | Span
    ) -> Float[Tensor, "b t heads d"]:
        """Attention in the layout [b, tokens, heads, d]."""
        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        out = attention(q, k, v, scale=self.scale, mask=seen.mask, causal=seen.causal)
        return out.transpose(1, 2)


class LatentAttention(nn.Module):
    """Multi-head latent attention, with or without query compression."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        self.config, self.layer = config, layer
        self.rank, self.scale = config.kv_lora_rank, softmax_scale(config)
        hidden, heads = config.hidden_size, config.num_attention_heads
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * config.head_dim, bias=False)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(hidden, config.cache_width, bias=False)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_NORM_EPS)
        expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = Linear(self.rank, expanded, bias=False)
        self.o_proj = Linear(heads * config.v_head_dim, hidden, bias=False)

    def forward(
        self, x: Float[Tensor, "b t h"], context: AttentionContext
    ) -> Float[Tensor, "b t h"]:
        """Attend from x to the cache and x, in the form that the context asks for."""
        first = self.q_proj if self.config.q_lora_rank is None else self.q_a_proj
        q, latent = outputs(x, first, self.kv_a_proj_with_mqa)
        q_nope, q_rope = self._queries(q, context)
        rows = self._latent(latent, context)
        if context.pages is not None:
            out = self._attend_pages(q_nope, q_rope, rows, context.pages)
            for one in context.watched:
                lifted = self._lift(q_nope[:, one.row : one.row + 1])[0, 0]
                query = torch.cat((lifted, q_rope[0, one.row]), dim=-1)
                key = one.span.read(context.pages.pools[self.layer])[:, None]
                one.weights.append(attention_weights(query, key, scale=self.scale))
            return self.o_proj(out.flatten(2))
        if context.cache is not None:
            rows = context.cache.append(self.layer, rows)
        if context.absorbed:
            latent = self._attend_latent(self._lift(q_nope), q_rope, rows, context)
            out = self._lower(latent)
        else:
            out = self._expanded(q_nope, q_rope, rows, context)
        return self.o_proj(out.flatten(2))

    def _attend_pages(
        self,
        q_nope: Float[Tensor, "1 n heads d"],
        q_rope: Float[Tensor, "1 n heads r"],
        rows: Float[Tensor, "1 n w"],
        pages: PagedStep,
    ) -> Float[Tensor, "1 n heads v"]:
        """By tables or span by span; all absorbed queries share one lift and one lowering."""
        pool = pages.write(self.layer, rows[0])
        if pages.tables is not None:
            query = torch.cat((self._lift(q_nope), q_rope), dim=-1)[0]
            latent = paged_latent_attention(
                query, pool, pages.tables, scale=self.scale, rank=self.rank
            )
            return self._lower(latent[None])
        short, long = pages.spans[: pages.absorbed], pages.spans[pages.absorbed :]
        tokens = [span.tokens for span in pages.spans]
        few = sum(tokens[: pages.absorbed])
        ropes = q_rope.split(tokens, dim=1)
        out = []
        if short:
            lifted = self._lift(q_nope[:, :few]).split(tokens[: pages.absorbed], dim=1)
            latent = [
                self._attend_latent(q, rope, span.read(pool)[None], span)
                for q, rope, span in zip(lifted, ropes, short, strict=False)
            ]
            out.append(self._lower(torch.cat(latent, dim=1)))
        if long:
            nopes = q_nope[:, few:].split(tokens[pages.absorbed :], dim=1)
            out += [
                self._expanded(q, rope, span.read(pool)[None], span)
                for q, rope, span in zip(nopes, ropes[pages.absorbed :], long, strict=True)
            ]
        return torch.cat(out, dim=1)

    def _queries(self, q: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Queries per head: the part without position and the rotated part, [b, t, heads, *]."""
        if self.config.q_lora_rank is not None:
            q = self.q_b_proj(self.q_a_layernorm(q))
        parts = [self.config.qk_nope_head_dim, self.config.qk_rope_head_dim]
        q_nope, q_rope = q.unflatten(-1, (self.config.num_attention_heads, -1)).split(parts, dim=-1)
        return q_nope, apply_rope(deinterleave(q_rope), context.cos, context.sin)

    def _latent(self, latent: Tensor, context: AttentionContext) -> Float[Tensor, "b t w"]:
        """What is cached of a token: normalised latent, then the rotated key of all heads."""
        latent, key = latent.split([self.rank, self.config.qk_rope_head_dim], dim=-1)
        key = apply_rope(deinterleave(key)[:, :, None], context.cos, context.sin)[:, :, 0]
        return torch.cat((self.kv_a_layernorm(latent), key), dim=-1)

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, seen: AttentionContext | Span
    ) -> Float[Tensor, "b t n v"]:
        """Rebuild keys and values of every head, then ordinary attention."""
        heads, c = self.config.num_attention_heads, self.config
        latent, key_rope = rows.split([self.rank, c.qk_rope_head_dim], dim=-1)
        rows = latent.flatten(0, 1)
        expanded = self.kv_b_proj(rows)
        expanded = expanded.unflatten(0, latent.shape[:2]).unflatten(-1, (heads, -1))
        key_nope, value = expanded.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        key_rope = key_rope[:, :, None].expand(-1, -1, heads, -1)
        query, key = torch.cat((q_nope, q_rope), dim=-1), torch.cat((key_nope, key_rope), dim=-1)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        out = attention(query, key, value, scale=self.scale, mask=seen.mask, causal=seen.causal)
        return out.transpose(1, 2)

    def _lift(self, q_nope: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n rank"]:
        """Take queries into latent space: q W_UK, so that keys need not be rebuilt."""
        return head_product(q_nope, self._up()[0], turned=True)

    def _lower(self, latent: Float[Tensor, "b t n rank"]) -> Float[Tensor, "b t n v"]:
        """Take attention's result out of latent space: W_UV, once per query."""
        return head_product(latent, self._up()[1], turned=False)

    def _up(self) -> tuple[Tensor, Tensor]:
        """The halves of kv_b_proj per head, [heads, *, rank]: W_UK and W_UV."""
        c = self.config
        up = self.kv_b_proj.weight.unflatten(0, (c.num_attention_heads, -1))
        up_key, up_value = up.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
        return up_key, up_value

    def _attend_latent(
        self, lifted: Tensor, q_rope: Tensor, rows: Tensor, seen: AttentionContext | Span
    ) -> Float[Tensor, "b t n rank"]:
        """The absorbed form between lift and lowering: all heads are queries of one cached head."""
        heads, tokens = self.config.num_attention_heads, lifted.shape[1]
        query = torch.cat((lifted, q_rope), dim=-1).transpose(1, 2).flatten(1, 2)[:, None]
        mask = seen.mask
        if mask is not None:
            mask = mask.repeat(1, 1, heads, 1)
        key = rows[:, None]  # the value is the key's latent part; passing it whole saves a copy
        out = attention(query, key, key, scale=self.scale, mask=mask)[..., : self.rank]
        return out[:, 0].unflatten(1, (heads, tokens)).transpose(1, 2)
