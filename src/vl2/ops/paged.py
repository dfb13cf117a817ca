"""The paged cache: rows of many sequences in one pool per layer, and how a step reads them.

A step runs new tokens of several sequences side by side, without padding: [1, n, hidden] through
everything that works per token, and attention in one of two ways. *Spans* go from sequence to
sequence; slots that follow each other are read in place, so an allocator that keeps a sequence in
one run spares every copy. *Tables* serve steps in which every sequence has one new token: all rows
are gathered at once, in tensors of fixed shapes whose values the host never sees, which is what a
GPU wants. The pool is cut into blocks of slots; who owns which block is the engine's business.

Names and the idea: PagedAttention (arXiv 2309.06180).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.ops.attention import attention, attention_ref, decoder_mask
from vl2.ops.backend import in_c
from vl2.ops.native import small

Runs = tuple[tuple[int, int], ...]
"""[first, end) slots of a sequence's rows, in the order of its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """New tokens of one sequence in a step and the cached rows that they attend to.

    `runs` end with the new tokens' own slots. `mask` is None where every row is seen, or where
    `causal` says it all.
    """

    tokens: int
    runs: Runs
    mask: Bool[Tensor, "1 1 t s"] | None
    causal: bool

    @classmethod
    def over(cls, tokens: int, runs: Runs, *, device: torch.device, absorbed: bool) -> Span:
        """The last `tokens` of the rows in `runs`, each seeing itself and what stands before it."""
        length = sum(end - first for first, end in runs)
        causal = tokens == length and tokens > 1 and not absorbed
        mask = None
        if tokens > 1 and not causal:
            mask = decoder_mask(tokens, length, device=device)
        return cls(tokens=tokens, runs=runs, mask=mask, causal=causal)

    def read(self, pool: Float[Tensor, "slots w"]) -> Float[Tensor, "s w"]:
        """The sequence's rows: a view if they are one run."""
        parts = [pool[first:end] for first, end in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Singles(NamedTuple):
    """Slots of sequences that have one new token each, one sequence behind the other."""

    slots: Int[Tensor, " s"]
    ends: Int[Tensor, " n"]  # behind the last slot of each sequence

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Singles:
        """Those of the spans of one token that come first; there may be none."""
        first = list(itertools.takewhile(lambda span: span.tokens == 1, spans))
        slots = [torch.arange(*run) for span in first for run in span.runs]
        lengths = [sum(end - start for start, end in span.runs) for span in first]
        ends = torch.tensor(list(itertools.accumulate(lengths)), dtype=torch.int64)
        return cls(torch.cat(slots) if slots else ends, ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTables:
    """The cached rows that n tokens attend to, each of a sequence of its own.

    `rows` are slots, as many for each token as the longest table has; `mask` is True where one is
    the sequence's.
    """

    rows: Int[Tensor, "n s"]
    mask: Bool[Tensor, "n 1 1 s"]

    @classmethod
    def over(
        cls, blocks: Int[Tensor, "n m"], lengths: Int[Tensor, " n"], *, size: int, unused: int
    ) -> BlockTables:
        """The first `lengths` slots of blocks of `size` slots each.

        Args:
            blocks: in the order of the tokens; what stands behind the last one does not count.
            lengths: cached rows of each sequence, the new one included.
            size: slots of a block.
            unused: slot that is read in place of those behind the end. Its row must be finite:
                its weight is 0, but 0 times NaN is NaN.
        """
        rows = (blocks[:, :, None] * size + torch.arange(size, device=blocks.device)).flatten(1)
        inside = torch.arange(rows.shape[1], device=blocks.device) < lengths[:, None]  # (n, s)
        return cls(rows=rows.masked_fill(~inside, unused), mask=inside[:, None, None])

    def read(self, pool: Float[Tensor, "slots w"]) -> Float[Tensor, "n s w"]:
        """A copy of all rows."""
        return pool.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedStep:
    """What one forward pass reads and writes: pools of all layers, and what its n tokens read.

    That is `tables`, or spans in the order of the tokens. With latent attention the first
    `absorbed` spans use the absorbed form; tables always do. With plain heads `singles` are spans
    that come first and are attended to together.
    """

    pools: list[Tensor]
    slots: Int[Tensor, " n"]
    spans: tuple[Span, ...] = ()
    absorbed: int = 0
    singles: Singles | None = None
    tables: BlockTables | None = None

    def write(self, layer: int, rows: Float[Tensor, "n w"]) -> Float[Tensor, "slots w"]:
        """Put the new tokens' rows into one layer's pool and return the pool."""
        return self.pools[layer].index_copy_(0, self.slots, rows)


def singles_run(config: LanguageConfig, pool: Float[Tensor, "slots w"]) -> bool:
    """Whether `paged_single_attention` takes this model's pools."""
    fits = not config.use_mla and config.head_dim % small.LANES == 0
    return fits and in_c("single attention", pool)


def paged_single_attention(
    query: Float[Tensor, "n h d"],
    pool: Float[Tensor, "slots w"],
    singles: Singles,
    *,
    scale: float,
) -> Float[Tensor, "n h d"]:
    """Attention of the one new token of each sequence, on a CPU and where the rows lie.

    A row of the pool is keys, then values, per head. Its twin is `paged_decode_attention_ref`.
    """
    return small.decode_attention(query, pool, *singles, scale=scale)


def empty_pools(
    config: LanguageConfig, slots: int, *, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """One pool [slots, width] per layer; on most systems memory is taken as slots are written."""
    width, count = config.cache_width, config.num_hidden_layers
    return [torch.empty(slots, width, device=device, dtype=dtype) for _ in range(count)]


def paged_decode_attention(
    query: Float[Tensor, "n h d"],
    pool: Float[Tensor, "slots w"],
    tables: BlockTables,
    *,
    scale: float,
) -> Float[Tensor, "n h d"]:
    """Attention of one token of each sequence; a row of the pool is keys, then values, per head.

    Heads that share a key are its queries, so that one kernel call serves all sequences.
    """
    width = query.shape[-1]
    rows = tables.read(pool).unflatten(-1, (-1, width)).transpose(1, 2)
    key, value = rows.chunk(2, dim=1)  # (n, k, s, d)
    grouped = query.unflatten(1, (key.shape[1], -1))
    mask = tables.mask.expand(-1, -1, grouped.shape[2], -1)
    return attention(grouped, key, value, scale=scale, mask=mask).flatten(1, 2)


def paged_decode_attention_ref(
    query: Float[Tensor, "n h d"],
    pool: Float[Tensor, "slots w"],
    spans: Sequence[Span],
    *,
    scale: float,
) -> Float[Tensor, "n h d"]:
    """The plain twin of `paged_decode_attention`: one sequence after the other."""
    out = []
    for heads, span in zip(query, spans, strict=True):
        rows = span.read(pool).unflatten(-1, (-1, query.shape[-1])).transpose(0, 1)[None]
        key, value = rows.chunk(2, dim=1)
        out.append(attention_ref(heads[None, :, None], key, value, scale=scale)[0, :, 0])
    return torch.stack(out)


def paged_latent_attention(
    query: Float[Tensor, "n h w"],
    pool: Float[Tensor, "slots w"],
    tables: BlockTables,
    *,
    scale: float,
    rank: int,
) -> Float[Tensor, "n h {rank}"]:
    """The absorbed form of latent attention for one token of each sequence.

    All heads are queries of the one cached key, whose first `rank` channels are the value.
    """
    rows = tables.read(pool)[:, None]
    mask = tables.mask.expand(-1, -1, query.shape[1], -1)
    return attention(query[:, None], rows, rows, scale=scale, mask=mask)[:, 0, :, :rank]


def paged_latent_attention_ref(
    query: Float[Tensor, "n h w"],
    pool: Float[Tensor, "slots w"],
    spans: Sequence[Span],
    *,
    scale: float,
    rank: int,
) -> Float[Tensor, "n h {rank}"]:
    """The plain twin of `paged_latent_attention`: one sequence after the other."""
    out = []
    for heads, span in zip(query, spans, strict=True):
        rows = span.read(pool)[None, None]
        out.append(attention_ref(heads[None, None], rows, rows[..., :rank], scale=scale)[0, 0])
    return torch.stack(out)
