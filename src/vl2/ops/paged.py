"""The paged cache: rows of many sequences in one pool per layer, and the spans that read them.

A step runs new tokens of several sequences side by side, without padding: [1, n, hidden] through
everything that works per token, and attention span by span. The pool is cut into blocks of slots;
who owns which block is the engine's business. Slots that follow each other are read in place, so
an allocator that keeps a sequence in one run spares every copy.

Names and the idea: PagedAttention (arXiv 2309.06180).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.ops.attention import decoder_mask

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


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedStep:
    """What one forward pass reads and writes: pools of all layers and the spans of its n tokens.

    Spans stand in the order of the tokens. With latent attention the first `absorbed` of them use
    the absorbed form.
    """

    pools: list[Tensor]
    slots: Int[Tensor, " n"]
    spans: tuple[Span, ...]
    absorbed: int = 0

    def write(self, layer: int, rows: Float[Tensor, "n w"]) -> Float[Tensor, "slots w"]:
        """Put the new tokens' rows into one layer's pool and return the pool."""
        return self.pools[layer].index_copy_(0, self.slots, rows)


def empty_pools(
    config: LanguageConfig, slots: int, *, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """One pool [slots, width] per layer; on most systems memory is taken as slots are written."""
    width, count = config.cache_width, config.num_hidden_layers
    return [torch.empty(slots, width, device=device, dtype=dtype) for _ in range(count)]
