"""From logits to tokens for a batch of requests, each with its own parameters and random stream.

Every row is decided by its own numbers alone, so a request's tokens do not depend on its
neighbours. The order of the steps is that of transformers: repetition penalty, temperature, top_k,
top_p, min_p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.engine.config import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """Sampling parameters and seen tokens of a batch, one entry per row.

    `counted` says which tokens of the vocabulary the repetition penalty counts at all, `seen` which
    of them each row has had in its prompt or answer.
    """

    temperature: Float[Tensor, " b"]
    top_p: Float[Tensor, " b"]
    top_k: Int[Tensor, " b"]
    min_p: Float[Tensor, " b"]
    repetition_penalty: Float[Tensor, " b"]
    counted: Bool[Tensor, " v"]
    seen: Bool[Tensor, "b v"]

    @classmethod
    def start(
        cls,
        params: Sequence[SamplingParams],
        prompts: Sequence[Int[Tensor, " _"]],
        counted: Bool[Tensor, " v"],
    ) -> Sampler:
        """A sampler for requests with these prompts, on the device of `counted`."""

        def rows(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            values = [getattr(p, name) for p in params]
            return torch.tensor(values, dtype=dtype, device=counted.device)

        seen = torch.zeros(len(prompts), len(counted), dtype=torch.bool, device=counted.device)
        for row, prompt in zip(seen, prompts, strict=True):
            row[prompt.to(seen.device)] = True
        return cls(
            temperature=rows("temperature"),
            top_p=rows("top_p"),
            top_k=rows("top_k", torch.int64),
            min_p=rows("min_p"),
            repetition_penalty=rows("repetition_penalty"),
            counted=counted,
            seen=seen & counted,
        )

    def select(self, rows: Int[Tensor, " kept"]) -> Sampler:
        """The sampler of some rows."""
        kept = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "counted"}
        return Sampler(**kept, counted=self.counted)

    def step(
        self, logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """Choose one token per row and note it as seen.

        Args:
            logits: float32 scores of the next token.
            uniform: one number in [0, 1) per row from the request's own generator.

        Returns:
            The tokens, and the log-probability of each under the untouched logits.
        """
        scores = penalise(logits, self.seen, self.repetition_penalty)
        chosen = scores.argmax(dim=-1)
        sampled = self.temperature > 0
        if bool(sampled.any()):
            chosen = torch.where(sampled, self._draw(scores, uniform), chosen)
        place = chosen[:, None]
        self.seen.scatter_(1, place, self.counted[place])
        return chosen, logits.log_softmax(dim=-1).gather(-1, place)[:, 0]

    def _draw(
        self, scores: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]
    ) -> Int[Tensor, " b"]:
        """Invert the cumulative distribution of the kept tokens at `uniform`."""
        order = scores.argsort(dim=-1, descending=True, stable=True)
        ranked = scores.gather(-1, order)
        # The likeliest score is taken off first: a tiny temperature must not overflow.
        cooled = (ranked - ranked[:, :1]) / self.temperature.clamp_min(1e-6)[:, None]
        probabilities = cooled.softmax(dim=-1)
        kept = keep_likely(probabilities, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        cumulative = torch.where(kept, probabilities, 0.0).cumsum(dim=-1)
        target = uniform[:, None] * cumulative[:, -1:]
        place = torch.searchsorted(cumulative, target, right=True)
        # Rounding may put the target on the total itself: the last kept token is meant.
        place = place.minimum(kept.sum(dim=-1, keepdim=True) - 1)
        return order.gather(-1, place)[:, 0]


def penalise(
    logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: Float[Tensor, " b"]
) -> Float[Tensor, "b v"]:
    """Divide positive and multiply negative scores of seen tokens by it (arXiv 1909.05858)."""
    if bool((penalty == 1).all()):
        return logits
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def keep_likely(
    probabilities: Float[Tensor, "b v"],
    *,
    top_k: Int[Tensor, " b"],
    top_p: Float[Tensor, " b"],
    min_p: Float[Tensor, " b"],
) -> Bool[Tensor, "b v"]:
    """Which of the descending `probabilities` pass all three cuts; the likeliest always does.

    top_p counts what top_k left, as transformers and vLLM do; 0 for top_k and 1 for top_p keep all.
    """
    ranks = torch.arange(probabilities.shape[-1], device=probabilities.device)
    kept = (top_k[:, None] == 0) | (ranks < top_k[:, None])
    left = torch.where(kept, probabilities, 0.0)
    left = left / left.sum(dim=-1, keepdim=True)
    before = left.cumsum(dim=-1) - left
    kept = kept & ((before < top_p[:, None]) | (top_p[:, None] == 1))
    return kept & (probabilities >= min_p[:, None] * probabilities[:, :1])
