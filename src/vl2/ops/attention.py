"""Scaled dot-product attention with the masks of a decoder: causal, left-padded, packed, cached."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.ops.backend import in_c
from vl2.ops.native import small, training
from vl2.ops.row_sizes import SMALLEST, few_sizes, next_size

torch.backends.cuda.enable_cudnn_sdp(False)
"""cuDNN builds a plan for each new shape, for tenths of a second, and lengths are ever new here. A
program whose shapes are few may switch it on again behind the import."""

FEW_PATCHES = 512
FEW_KEYS = 2048
"""Up to which training in bfloat16 on AMX multiplies scores out; more would take much memory."""


def decoder_mask(
    tokens: int,
    keys: int,
    *,
    device: torch.device,
    attention_mask: Bool[Tensor, "b s"] | None = None,
    segment_ids: Int[Tensor, "b s"] | None = None,
) -> Bool[Tensor, "b 1 t s"]:
    """Which of `keys` positions the last `tokens` positions may see.

    Args:
        tokens: queries; they are the last positions of the keys.
        keys: all positions, cached ones first.
        device: where the mask is made.
        attention_mask: False where a key is padding. A padding query still sees itself, because a
            row without any key would be NaN and NaN times zero weight would reach other rows.
        segment_ids: documents packed into one row: a token sees its own segment and segment 0,
            a prefix that all share.
    """
    rows = torch.arange(keys - tokens, keys, device=device)[:, None]
    columns = torch.arange(keys, device=device)[None, :]
    mask = (columns <= rows)[None]
    if attention_mask is not None:
        mask = mask & (attention_mask[:, None, :] | (columns == rows))
    if segment_ids is not None:
        own = segment_ids[:, -tokens:, None] == segment_ids[:, None, :]
        mask = mask & (own | (segment_ids[:, None, :] == 0))
    return mask[:, None]


def head_product(
    x: Float[Tensor, "b t h i"], weight: Float[Tensor, "h j k"], *, turned: bool
) -> Float[Tensor, "b t h o"]:
    """Each head's rows times its own matrix: x @ weight.T, or x @ weight if `turned`.

    A few rows on a CPU go through C: a batched product first brings matrices into its own order.
    """
    if in_c("heads' products", x, weight, rows=x.shape[0] * x.shape[1]):
        return small.head_linear(x.flatten(0, 1), weight, turned=turned).unflatten(0, x.shape[:2])
    return head_product_ref(x, weight, turned=turned)


def head_product_ref(
    x: Float[Tensor, "b t h i"], weight: Float[Tensor, "h j k"], *, turned: bool
) -> Float[Tensor, "b t h o"]:
    """The plain twin of `head_product`."""
    return torch.einsum("bthi,hio->btho" if turned else "bthi,hoi->btho", x, weight)


def attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b k s d"],
    value: Float[Tensor, "b k s v"],
    *,
    scale: float,
    mask: Bool[Tensor, "#b 1 t s"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h t v"]:
    """Softmax(query key^T * scale) value through PyTorch's fused kernels; k divides h.

    Values narrower than keys (MLA: 128 against 192) are padded with zeros, because the fused
    kernels want one width and the unfused path would materialise all scores.
    """
    few = query.shape[1] == key.shape[1] and key.shape[2] <= FEW_KEYS
    if few and _multiplies_out(query):
        if mask is None and causal:
            mask = decoder_mask(query.shape[2], key.shape[2], device=query.device)
        return _multiplied_out(query, key, value, scale, mask)
    rows, width = query.shape[2], value.shape[-1]
    if width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    if rows > SMALLEST and few_sizes(query):
        query, key, value, mask = _filled_up(query, key, value, mask, causal)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out[..., :rows, :width]


def _filled_up(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b k s d"],
    value: Float[Tensor, "b k s d"],
    mask: Bool[Tensor, "#b 1 t s"] | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries and keys up to the next of few sizes, where no true query sees a key of zeros."""
    more_rows = next_size(query.shape[2]) - query.shape[2]
    more_keys = next_size(key.shape[2]) - key.shape[2]
    if not causal:  # there the keys of zeros come after every true query
        if mask is None:
            mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        mask = F.pad(F.pad(mask, (0, more_keys)), (0, 0, 0, more_rows), value=True)
    key, value = (F.pad(x, (0, 0, 0, more_keys)) for x in (key, value))
    return F.pad(query, (0, 0, 0, more_rows)), key, value, mask


def attention_weights(
    query: Float[Tensor, "h d"], key: Float[Tensor, "s k d"], *, scale: float
) -> Float[Tensor, " s"]:
    """Where one row attends: softmax over all keys in float32, mean over its heads.

    Heads of the query follow each other by the key head that they share.
    """
    grouped = query.float().unflatten(0, (key.shape[1], -1))  # (k, groups, d)
    scores = grouped @ key.float().permute(1, 2, 0) * scale  # (k, groups, s)
    return scores.softmax(dim=-1).mean(dim=(0, 1))


def patch_attention(
    query: Float[Tensor, "n h p d"], key: Float[Tensor, "n h p d"], value: Float[Tensor, "n h p d"]
) -> Float[Tensor, "n h p d"]:
    """Softmax(query key^T / sqrt(d)) value, every patch of a tile with every other one.

    Training in bfloat16 on AMX multiplies the scores of up to `FEW_PATCHES` out: the backward
    pass of PyTorch's fused attention takes two to four times as long there. The scores of larger
    tiles would take too much memory. The twin is `attention_ref`.
    """
    scale = query.shape[-1] ** -0.5
    if query.shape[-2] <= FEW_PATCHES and _multiplies_out(query):
        return _multiplied_out(query, key, value, scale, None)
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _multiplies_out(query: Tensor) -> bool:
    """Whether this trains in bfloat16 on a CPU with AMX."""
    trained = torch.is_grad_enabled() and query.requires_grad
    on_cpu = trained and query.device.type == "cpu" and query.dtype == torch.bfloat16
    return on_cpu and torch.cpu._is_amx_tile_supported()


def _multiplied_out(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s v"],
    scale: float,
    mask: Bool[Tensor, "#b 1 t s"] | None,
) -> Float[Tensor, "b h t v"]:
    """Attention whose shares are kept: PyTorch's fused one has a slow backward pass on a CPU."""
    scores = query @ key.transpose(-1, -2)
    if in_c("activations", scores):
        return training.scaled_softmax(scores, scale, mask) @ value
    scores = scores * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


def attention_ref(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b k s d"],
    value: Float[Tensor, "b k s v"],
    *,
    scale: float,
    mask: Bool[Tensor, "#b 1 t s"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b h t v"]:
    """The plain twin of `attention`: all scores, softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        mask = decoder_mask(query.shape[2], key.shape[2], device=query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value
