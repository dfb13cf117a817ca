"""From logits to tokens: each row is decided by its own numbers alone, whatever it is batched with.

The order of the steps: grammar and min_tokens, repetition penalty, frequency and presence penalty,
repetition guard, temperature, top_k, top_p, min_p. Probabilities are drawn from as whole numbers:
they add up to the same sum in any order, so a device that sums a batch otherwise than a single row
chooses alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.engine.config import MAX_LOGPROBS, SamplingParams
from vl2.engine.sampling_state import UNIFORM_BITS, SamplingState
from vl2.ops.logits import row_peaks

WEIGHT_BITS = 38
"""Probability 1 is the weight 2**38; with `UNIFORM_BITS` a product still fits 63 bits."""

HEAD = 1024
"""Likeliest tokens that top_p looks at before it sorts a whole vocabulary."""

CACHED = 2**17
"""Scores that a processor's caches hold while a token is drawn."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a row decided.

    Attributes:
        token: the chosen token.
        logprob: its log-probability under the untouched logits; NaN if the row has no good scores
            or no token may come.
        top: the likeliest tokens with their log-probabilities, as many as its params ask for.
        guarded: whether the repetition guard forbade the likeliest token.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    guarded: bool = False


def sample(
    logits: Float[Tensor, "b v"], states: Sequence[SamplingState], indices: Sequence[int]
) -> list[Choice]:
    """Choose one token per row; changes no state and waits for the device once.

    Rows that only top_p cuts are an exception: they may need a second wait.

    Args:
        logits: scores of the next token; a row with NaN gives a `Choice` with logprob NaN.
        states: of each row's answer; one that checks guessed tokens stands in several rows.
        indices: which token of its answer each row decides, from 0.
    """
    logits = logits.float()
    scores = _penalise_rows(_restrict_rows(logits, states, indices), states)
    scores, guarded = _guard_rows(scores, states)
    peaks = row_peaks(logits)
    chosen = peaks.best if scores is logits else row_peaks(scores).best
    # A processor is fastest on what its caches hold, a GPU on all at once.
    most = max(1, CACHED // logits.shape[-1]) if logits.is_cpu else len(states)
    for rows in _sampled_rows(states, most):
        place = torch.tensor(rows, device=logits.device)
        uniform = [states[row].uniform(indices[row]) for row in rows]
        chosen[place] = draw(scores[place], [states[row].params for row in rows], uniform)
    columns = [chosen[:, None], peaks.logprobs(logits.gather(-1, chosen[:, None]))]
    columns[1].masked_fill_(scores.gather(-1, chosen[:, None]) == -math.inf, math.nan)
    columns.append(guarded[:, None])
    if any(state.params.logprobs for state in states):
        # One width for all: what a row reports must not depend on what its neighbours ask for.
        top = ranked(logits, min(MAX_LOGPROBS, logits.shape[-1]))
        columns += [top, peaks.logprobs(logits.gather(-1, top))]
    # float32 holds every token id below 2**24.
    table = torch.cat([column.float() for column in columns], dim=-1).tolist()
    return [_choice(row, state) for row, state in zip(table, states, strict=True)]


def _choice(row: list[float], state: SamplingState) -> Choice:
    token, logprob, guarded, *top = row
    half = len(top) // 2
    pairs = zip(map(int, top[:half]), top[half:], strict=True)
    return Choice(
        token=int(token),
        logprob=math.nan if state.error else logprob,
        top=tuple(pairs)[: state.params.logprobs or 0],
        guarded=bool(guarded),
    )


def _sampled_rows(states: Sequence[SamplingState], most: int) -> list[list[int]]:
    """Rows that draw, at most so many together: nothing, a few or many tokens to put in order."""
    groups: dict[tuple[bool, bool], list[int]] = {}
    for row, state in enumerate(states):
        if state.params.temperature > 0:
            width = _width([state.params])
            groups.setdefault((width > 0, width > HEAD), []).append(row)
    return [rows[at : at + most] for rows in groups.values() for at in range(0, len(rows), most)]


def _restrict_rows(
    logits: Float[Tensor, "b v"], states: Sequence[SamplingState], indices: Sequence[int]
) -> Float[Tensor, "b v"]:
    """Give forbidden tokens the score -inf."""
    masks = {
        row: allowed
        for row, (state, index) in enumerate(zip(states, indices, strict=True))
        if (allowed := state.allowed(index)) is not None
    }
    if not masks:
        return logits
    scores = logits.clone()
    for row, allowed in masks.items():
        scores[row].masked_fill_(~allowed.to(logits.device), -math.inf)
    return scores


def _penalise_rows(
    scores: Float[Tensor, "b v"], states: Sequence[SamplingState]
) -> Float[Tensor, "b v"]:
    """Apply the penalties of the rows that have one."""
    if all(state.seen is None and state.counts is None for state in states):
        return scores
    rows = []
    for row, state in zip(scores, states, strict=True):
        if state.seen is not None:
            row = penalise_repeated(row, state.seen, state.params.repetition_penalty)
        if state.counts is not None:
            params = state.params
            row = penalise_frequent(
                row, state.counts, params.frequency_penalty, params.presence_penalty
            )
        rows.append(row)
    return torch.stack(rows)


def _guard_rows(
    scores: Float[Tensor, "b v"], states: Sequence[SamplingState]
) -> tuple[Float[Tensor, "b v"], Bool[Tensor, " b"]]:
    """Forbid what the repetition guards ban; in which rows that took the likeliest token away.

    A guard stands back where no other token may come, as in a form of an answer.
    """
    guarded = torch.zeros(len(states), dtype=torch.bool, device=scores.device)
    banned = [(row, state.banned) for row, state in enumerate(states) if state.banned]
    if not banned:
        return scores, guarded
    rows = torch.tensor([row for row, _ in banned], device=scores.device)
    places = [(place, token) for place, (_, tokens) in enumerate(banned) for token in tokens]
    before = scores[rows]
    after = before.clone()
    after[torch.tensor(places, device=scores.device).unbind(-1)] = -math.inf
    after = torch.where((after == -math.inf).all(-1, keepdim=True), before, after)
    guarded[rows] = row_peaks(before).best != row_peaks(after).best
    return scores.index_copy(0, rows, after), guarded


def penalise_repeated(
    scores: Float[Tensor, " v"], seen: Bool[Tensor, " v"], penalty: float
) -> Float[Tensor, " v"]:
    """Divide positive and multiply negative scores of seen tokens by it (arXiv 1909.05858)."""
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def penalise_frequent(
    scores: Float[Tensor, " v"], counts: Int[Tensor, " v"], frequency: float, presence: float
) -> Float[Tensor, " v"]:
    """Take off `frequency` for each time a token was said and `presence` once (OpenAI's API)."""
    return scores - frequency * counts - presence * (counts > 0)


def draw(
    scores: Float[Tensor, "b v"], params: Sequence[SamplingParams], uniform: Sequence[float]
) -> Int[Tensor, " b"]:
    """Cut each row's distribution and invert what is left at its uniform number.

    Only `temperature`, `top_k`, `top_p` and `min_p` of the params are read.
    """
    return _draw(scores, params, uniform, width=min(_width(params), scores.shape[-1]))


def _width(params: Sequence[SamplingParams]) -> int:
    """How many of the likeliest tokens have to be put in order."""
    cut = [p for p in params if p.top_k or p.top_p < 1]
    return max((p.top_k or HEAD for p in cut), default=0)


def _draw(
    scores: Float[Tensor, "b v"],
    params: Sequence[SamplingParams],
    uniform: Sequence[float],
    width: int,
) -> Int[Tensor, " b"]:
    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        values = [[getattr(p, name)] for p in params]
        return torch.tensor(values, dtype=dtype, device=scores.device)

    weights = token_weights(scores, column("temperature"))
    total = weights.sum(dim=-1, keepdim=True)
    order = ranked(scores, width) if width else None
    top_k, top_p = column("top_k", torch.int64), column("top_p")
    if order is not None:
        weights = weights.gather(-1, order)
    elif not any(p.min_p for p in params):
        return _invert(weights, uniform, None)
    kept = keep_likely(weights, total, top_k=top_k, top_p=top_p, min_p=column("min_p"))
    ends_early = 0 < width < scores.shape[-1] and not all(p.top_k for p in params)
    if ends_early and bool((kept[:, -1:] & (top_k == 0)).any()):
        return _draw(scores, params, uniform, width=scores.shape[-1])
    return _invert(weights * kept, uniform, order)


def draw_ref(scores: Float[Tensor, " v"], params: SamplingParams, uniform: float) -> int:
    """`draw` for one row, written as the definition: sort, cut, walk to the uniform number."""
    weights = token_weights(scores[None], torch.tensor([[params.temperature]]))[0].tolist()
    order = scores.argsort(dim=-1, descending=True, stable=True).tolist()
    order = order[: params.top_k or len(order)]
    aim, before = params.top_p * sum(weights[token] for token in order), 0
    kept: list[int] = []
    for token in order:
        if params.top_p == 1 or before < aim:
            kept.append(token)
        before += weights[token]
    kept = [t for t in kept if weights[t] >= params.min_p * weights[order[0]]]
    # What no cut has put in order stays in the order of the vocabulary.
    kept = kept if params.top_k or params.top_p < 1 else sorted(kept)
    target = math.floor(uniform * sum(weights[token] for token in kept))
    for token in kept:
        target -= weights[token]
        if target < 0:
            return token
    raise AssertionError("a number below 1 lies inside the sum")


def token_weights(
    scores: Float[Tensor, "b v"], temperature: Float[Tensor, "b 1"]
) -> Int[Tensor, "b v"]:
    """Probabilities at a temperature as whole numbers out of 2**`WEIGHT_BITS`; 0 for NaN."""
    # The likeliest score is taken off first: a tiny temperature must not overflow.
    highest = scores.amax(dim=-1, keepdim=True)
    probabilities = ((scores - highest) / temperature.clamp_min(1e-6)).softmax(dim=-1)
    return probabilities.mul_(2.0**WEIGHT_BITS).nan_to_num_(0.0).long()


def ranked(scores: Float[Tensor, "b v"], width: int) -> Int[Tensor, "b w"]:
    """The likeliest `width` tokens in order; of equal ones the lower id first, on every device.

    `topk` alone orders equal scores as it likes, so it gets whole numbers that are all different:
    the score's bits, made to grow with it, above the token's id.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    growing = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits).long()
    keys = growing.bitwise_left_shift_(32).sub_(torch.arange(bits.shape[-1], device=bits.device))
    if width < scores.shape[-1]:
        return keys.topk(width, dim=-1).indices
    return keys.argsort(dim=-1, descending=True)


def ranked_ref(scores: Float[Tensor, "b v"], width: int) -> Int[Tensor, "b w"]:
    """`ranked` as a stable sort."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :width]


def keep_likely(
    weights: Int[Tensor, "b w"],
    total: Int[Tensor, "b 1"],
    *,
    top_k: Int[Tensor, "b 1"],
    top_p: Float[Tensor, "b 1"],
    min_p: Float[Tensor, "b 1"],
) -> Bool[Tensor, "b w"]:
    """Which tokens pass all three cuts; the likeliest always does.

    top_p counts what top_k left, as transformers and vLLM do; 0 for top_k and 1 for top_p keep all.

    Args:
        weights: whole numbers in descending order, at least the first `top_k`; in any order if
            min_p is the only cut.
        total: sum of all weights of a row, those beyond the given ones too.
        top_k: one per row.
        top_p: one per row.
        min_p: one per row.
    """
    ranks = torch.arange(weights.shape[-1], device=weights.device)
    kept = (top_k == 0) | (ranks < top_k)
    left = weights * kept
    total = torch.where(top_k == 0, total, left.sum(dim=-1, keepdim=True))
    before = left.cumsum(dim=-1) - left
    kept = kept & ((before.float() < top_p * total.float()) | (top_p == 1) | (before == 0))
    return kept & (weights.float() >= min_p * weights.amax(dim=-1, keepdim=True).float())


def _invert(
    weights: Int[Tensor, "b w"], uniform: Sequence[float], order: Int[Tensor, "b w"] | None
) -> Int[Tensor, " b"]:
    """The token at which the running sum of a row's weights passes uniform x their sum."""
    running = weights.cumsum(dim=-1)
    steps = [[int(number * 2**UNIFORM_BITS)] for number in uniform]
    target = (torch.tensor(steps, device=weights.device) * running[:, -1:]) >> UNIFORM_BITS
    place = torch.searchsorted(running, target, right=True)
    # A row of NaN has no weight at all, and must stay inside the vocabulary.
    place = place.clamp_max(weights.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place))[:, 0]
