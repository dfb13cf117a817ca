"""The official algorithm, written anew as the yardstick of our eager path.

Same weights, same result, but computed the way the published code does it: experts one after the
other, scores of all pairs with an explicit mask and a float32 softmax, latent attention in the
absorbed form also for a whole prompt, logits of every position, a cache that is copied at each
token. Routing, rotary positions and the embedding are ours; they cost the same in both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.model.attention import LATENT_NORM_EPS, LatentAttention, MultiHeadAttention
from vl2.model.language import DecoderLayer
from vl2.model.moe import Mlp, MoE
from vl2.model.vl2 import VL2Model
from vl2.ops.rope import apply_rope, deinterleave, rope_tables, softmax_scale

Cached = tuple[Tensor, Tensor]
"""Of one layer: keys and values of every head, or the rotated shared key and the latent."""

Tables = tuple[Tensor, Tensor]


class OfficialLanguage:
    """A language model run by the official algorithm; shares the parameters of ours."""

    def __init__(self, model: VL2Model) -> None:
        """Take the weights of a model in floats.

        Raises:
            ValueError: the model is quantised.
        """
        if model.config.quantization_config is not None:
            raise ValueError("the official algorithm has no quantised form: give the float model")
        self.language = model.language
        self.config = model.config.language_config

    def run(
        self, embeds: Float[Tensor, "b t h"], cache: list[Cached] | None = None
    ) -> tuple[Float[Tensor, "b t v"], list[Cached]]:
        """Float32 logits of all new tokens, and the cache with them; `cache` stays as it is.

        Rows of the batch have no padding.
        """
        past = 0 if cache is None else cache[0][0].shape[-2]
        tokens = embeds.shape[1]
        positions = torch.arange(past, past + tokens).expand(len(embeds), -1)
        tables = rope_tables(positions, self.config)
        mask = _causal_mask(tokens, past + tokens, embeds.dtype)
        x, grown = embeds, []
        for number, layer in enumerate(self.language.model.layers):
            assert isinstance(layer, DecoderLayer)
            before = None if cache is None else cache[number]
            x, now = self._layer(layer, x, tables, mask, before)
            grown.append(now)
        x = _norm(x, self.language.model.norm.weight, self.config.rms_norm_eps)
        return self.language.lm_head(x).float(), grown

    def _layer(
        self, layer: DecoderLayer, x: Tensor, tables: Tables, mask: Tensor, before: Cached | None
    ) -> tuple[Tensor, Cached]:
        eps, part = self.config.rms_norm_eps, layer.self_attn
        normed = _norm(x, layer.input_layernorm.weight, eps)
        if isinstance(part, LatentAttention):
            attended, now = _latent_attention(part, normed, tables, mask, before)
        else:
            attended, now = _head_attention(part, normed, tables, mask, before)
        x = x + attended
        normed = _norm(x, layer.post_attention_layernorm.weight, eps)
        return x + _feed_forward(layer.mlp, normed), now


def _causal_mask(tokens: int, keys: int, dtype: torch.dtype) -> Float[Tensor, "1 1 t s"]:
    """Zero where a new token may look, the least number elsewhere."""
    mask = torch.full((tokens, keys), torch.finfo(dtype).min, dtype=dtype)
    return mask.triu(keys - tokens + 1)[None, None]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)


def _grow(before: Cached | None, new: Cached) -> Cached:
    """The cache with new rows: a new tensor each time."""
    if before is None:
        return new
    return torch.cat((before[0], new[0]), dim=-2), torch.cat((before[1], new[1]), dim=-2)


def _head_attention(
    part: MultiHeadAttention, x: Tensor, tables: Tables, mask: Tensor, before: Cached | None
) -> tuple[Tensor, Cached]:
    """Plain attention of Tiny over keys and values of every head."""
    width = part.config.head_dim
    q, k, v = (p(x).unflatten(-1, (-1, width)) for p in (part.q_proj, part.k_proj, part.v_proj))
    q, k = apply_rope(q, *tables).transpose(1, 2), apply_rope(k, *tables).transpose(1, 2)
    key, value = now = _grow(before, (k, v.transpose(1, 2)))
    groups = q.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in now)
    scores = q @ key.transpose(2, 3) * softmax_scale(part.config) + mask
    out = _softmax(scores, q.dtype) @ value
    return part.o_proj(out.transpose(1, 2).flatten(2)), now


def _latent_attention(
    part: LatentAttention, x: Tensor, tables: Tables, mask: Tensor, before: Cached | None
) -> tuple[Tensor, Cached]:
    """Latent attention in the absorbed form, whatever the number of new tokens."""
    c = part.config
    q = _latent_queries(part, x).unflatten(-1, (c.num_attention_heads, -1)).transpose(1, 2)
    q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
    q_rope = apply_rope(deinterleave(q_rope).transpose(1, 2), *tables).transpose(1, 2)
    latent, key = part.kv_a_proj_with_mqa(x).split([part.rank, c.qk_rope_head_dim], dim=-1)
    latent = _norm(latent, part.kv_a_layernorm.weight, LATENT_NORM_EPS)
    key = apply_rope(deinterleave(key)[:, :, None], *tables).transpose(1, 2)  # (B, 1, T, rope)
    key, latent = now = _grow(before, (key, latent[:, None]))
    up = part.kv_b_proj.weight.unflatten(0, (c.num_attention_heads, -1))
    up_key, up_value = up.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
    scores = q_rope @ key.mT + (q_nope @ up_key) @ latent.mT  # (B, heads, T, S)
    weights = _softmax(scores * part.scale + mask, q.dtype)
    out = (weights @ latent) @ up_value.mT
    return part.o_proj(out.transpose(1, 2).flatten(2)), now


def _latent_queries(part: LatentAttention, x: Tensor) -> Tensor:
    if part.config.q_lora_rank is None:
        return part.q_proj(x)
    low = part.q_a_proj(x)
    return part.q_b_proj(_norm(low, part.q_a_layernorm.weight, LATENT_NORM_EPS))


def _feed_forward(part: nn.Module, x: Tensor) -> Tensor:
    if isinstance(part, MoE):
        out = _experts(part, x.flatten(0, 1)).view_as(x)
        return out if part.shared_experts is None else out + part.shared_experts(x)
    assert isinstance(part, Mlp)
    return part(x)


def _experts(part: MoE, rows: Tensor) -> Tensor:
    """Tokens sorted by expert, then every expert that has any, one after the other."""
    chosen, weights, scores = part.gate(rows)
    marks = torch.zeros(scores.shape, dtype=torch.int64).scatter_(1, chosen, 1)
    counts = marks.sum(dim=0).tolist()  # the host waits for the device here, once per layer
    order = chosen.flatten().argsort()
    ordered = rows[order // chosen.shape[1]]
    gate, up, down = part.experts.gate_proj, part.experts.up_proj, part.experts.down_proj
    outs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            x = ordered[start : start + count]
            hidden = F.silu(F.linear(x, gate[expert])) * F.linear(x, up[expert])
            outs.append(F.linear(hidden, down[expert]))
            start += count
    joined = torch.cat(outs)
    back = torch.empty_like(joined)
    back[order] = joined
    combined = back.view(*chosen.shape, -1).to(weights.dtype) * weights[..., None]
    return combined.sum(dim=1).to(rows.dtype)
