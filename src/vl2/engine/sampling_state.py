"""What the choice of an answer's next token depends on, beside the logits."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vl2.engine.config import SamplingParams
from vl2.engine.grammar import Matcher
from vl2.engine.guard import NgramTable

UNIFORM_BITS = 24
"""Random numbers are multiples of 2**-24, which float32 holds exactly."""


@dataclass(kw_only=True, slots=True)
class SamplingState:
    """What the choice of an answer's next token depends on, beside the logits.

    Attributes:
        params: how the answer is decoded.
        stop_ids: tokens that end the answer.
        seed: of the answer's random numbers.
        grammar: the form of the answer, as far as it has come.
        counted: which tokens of the vocabulary the penalties count at all.
        seen: counted tokens of prompt and answer; only with a repetition penalty.
        counts: how often the answer has each counted token; only with the other penalties.
        ngrams: what the repetition guard remembers of the answer.
        noted: accepted tokens.
    """

    params: SamplingParams
    stop_ids: frozenset[int]
    seed: bytes
    grammar: Matcher | None
    counted: Bool[Tensor, " v"]
    seen: Bool[Tensor, " v"] | None
    counts: Int[Tensor, " v"] | None
    ngrams: NgramTable | None = None
    noted: int = 0

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        prompt: Int[Tensor, " n"],
        counted: Bool[Tensor, " v"],
        stop_ids: frozenset[int],
        grammar: Matcher | None,
        seed_offset: int = 0,
    ) -> SamplingState:
        """State before the first token, on the device of `counted`.

        Args:
            params: how the answer is decoded.
            prompt: its tokens, for the repetition penalty.
            counted: which tokens the penalties count.
            stop_ids: tokens that end the answer.
            grammar: the compiled `params.structured_outputs`, of this answer alone.
            seed_offset: number of the answer among the `n` of its conversation.
        """
        seen = counts = None
        if params.repetition_penalty != 1:
            seen = torch.zeros_like(counted)
            seen[prompt.to(seen.device)] = True
            seen &= counted
        if params.presence_penalty or params.frequency_penalty:
            counts = torch.zeros_like(counted, dtype=torch.int32)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return cls(
            params=params,
            stop_ids=stop_ids,
            seed=seed.to_bytes(8) + seed_offset.to_bytes(8),
            grammar=grammar,
            counted=counted,
            seen=seen,
            counts=counts,
            ngrams=NgramTable(params.repetition_guard) if params.repetition_guard else None,
        )

    @property
    def banned(self) -> tuple[int, ...]:
        """Tokens that the repetition guard forbids now."""
        return self.ngrams.banned if self.ngrams else ()

    @property
    def plain(self) -> bool:
        """Whether the next choice depends on the logits alone, not on the tokens before it."""
        unpenalised = self.seen is None and self.counts is None and not self.banned
        return unpenalised and self.grammar is None and self.noted >= self.params.min_tokens

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on; its rows then have the log-probability NaN."""
        return self.grammar.error if self.grammar else None

    def uniform(self, index: int) -> float:
        """The random number in [0, 1) of the answer's token `index`: the same at every call."""
        digest = hashlib.blake2b(self.seed + index.to_bytes(8), digest_size=8).digest()
        return (int.from_bytes(digest) >> (64 - UNIFORM_BITS)) / 2**UNIFORM_BITS

    def note(self, token: int) -> None:
        """The token was accepted; it counts from now on. Never waits for the device."""
        self.noted += 1
        if self.ngrams is not None:
            self.ngrams.add(token)
        if self.seen is not None:
            self.seen[token] |= self.counted[token]
        if self.counts is not None:
            self.counts[token] += self.counted[token]
        if self.grammar is not None and token not in self.stop_ids:
            self.grammar.accept(token)

    def allowed(self, index: int) -> Bool[Tensor, " v"] | None:
        """Which tokens may be token `index`, on the CPU; None for all.

        A grammar that has ended leaves the tokens that end the answer, too early or not. Where only
        such tokens could come, too early in a form that is not complete, none may.
        """
        early = index < self.params.min_tokens
        if self.grammar is None and not early:
            return None
        stops = torch.zeros(len(self.counted), dtype=torch.bool)
        stops[[token for token in self.stop_ids if token < len(stops)]] = True
        if self.grammar is None:
            return ~stops
        if self.grammar.finished:
            return stops
        allowed = self.grammar.allowed()
        rest = allowed & ~stops
        if self.grammar.accepting and not (early and bool(rest.any())):
            return allowed | stops
        return rest if early else allowed
