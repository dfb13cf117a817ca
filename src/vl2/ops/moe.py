"""Mixture of experts: routing, the grouped expert MLP, and balancing.

Routing follows DeepSeekMoE as DeepSeek-VL2 uses it: softmax-greedy (Tiny, Small), group-limited
greedy (DeepSeek-V2), and sigmoid with a correction bias, "noaux_tc" (Base; arXiv 2408.15664).
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.ops.backend import in_c
from vl2.ops.cards import has_grouped_matmul
from vl2.ops.groups import Groups, inverse_permutation, rows_by_expert, sort_by_expert
from vl2.ops.native import kernels, small


class Routing(NamedTuple):
    """What the router chose for each of n tokens."""

    experts: Tensor  # [n, k] int64
    weights: Tensor  # [n, k] float32
    scores: Tensor  # [n, experts] float32, before the bias


class LowRank(NamedTuple):
    """A change b @ a of each expert's matrix that is never multiplied out; zeros change nothing."""

    a: Tensor  # [experts, rank, in]
    b: Tensor  # [experts, out, rank]


class ExpertChange(NamedTuple):
    """Low-rank changes of the three matrices of every expert, in the dtype of the activations."""

    gate: LowRank
    up: LowRank
    down: LowRank


def router_logits(x: Float[Tensor, "n h"], weight: Float[Tensor, "e h"]) -> Float[Tensor, "n e"]:
    """Scores of experts before softmax or sigmoid, in float32: near ties decide the choice.

    Few rows on a CPU go through C, which needs no float32 copy of a bfloat16 weight.
    """
    if in_c("router", x, weight):
        return kernels.wide_linear(x, (weight,))
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def route(
    logits: Float[Tensor, "n e"], config: LanguageConfig, bias: Float[Tensor, " e"] | None = None
) -> Routing:
    """Choose `num_experts_per_tok` experts per token and their weights.

    The bias of noaux_tc decides who is chosen, never how much an expert counts. Scores are float32:
    near ties decide the choice, and bfloat16 would flip them.
    """
    logits = logits.float()
    scores = logits.softmax(dim=-1) if config.scoring_func == "softmax" else logits.sigmoid()
    assert config.num_experts_per_tok is not None
    choice = scores.detach() if bias is None else scores.detach() + bias
    if config.topk_method != "greedy":
        choice = _limit_groups(choice, config)
    experts = choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
    weights = scores.gather(-1, experts)
    if config.norm_topk_prob and config.num_experts_per_tok > 1:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    if config.routed_scaling_factor != 1:
        weights = weights * config.routed_scaling_factor
    return Routing(experts, weights, scores)


def _limit_groups(choice: Float[Tensor, "n e"], config: LanguageConfig) -> Float[Tensor, "n e"]:
    """Keep the best `topk_group` of `n_group` groups of experts.

    A dropped group gets -inf. The official code writes 0.0, which a kept but negative biased score
    would lose against.
    """
    assert config.n_group is not None
    assert config.topk_group is not None
    if config.topk_group == config.n_group:
        return choice
    groups = choice.unflatten(-1, (config.n_group, -1))  # (N, G, E/G)
    best = 2 if config.topk_method == "noaux_tc" else 1
    strength = groups.topk(min(best, groups.shape[-1]), dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(strength, dtype=torch.bool)
    kept.scatter_(-1, strength.topk(config.topk_group, dim=-1).indices, True)
    return groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with x: autocast does not know the grouped one, so we ask it."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs, see `expert_swiglu`.

    Tokens are sorted by expert, so that each expert is one slice; results go back by the inverse
    permutation and are summed over k in a fixed order, which keeps the result reproducible. A
    `change` is applied to the activations; its rank must meet `has_grouped_matmul`'s alignment.
    """
    order, counts = sort_by_expert(routing.experts, gate.shape[0])
    rows = x[order // routing.experts.shape[1]]  # (N*k, H) sorted by expert
    out = expert_swiglu(rows, counts, gate, up, down, change)
    return combine_experts(out, order, routing.weights).to(x.dtype)


def group_rows(routing: Routing, total: int) -> tuple[Int[Tensor, " m"] | None, Groups]:
    """The m = n * k choices of all tokens by expert, and their order, see `sort_by_expert`.

    On a CPU those of one token need no sorting: there is no order then, and each is a group.
    """
    tokens, k = routing.experts.shape
    if tokens == 1 and routing.experts.device.type == "cpu":
        first, ends = _single(k, routing.experts.device)
        return None, Groups(first, ends, routing.experts[0].contiguous())
    return rows_by_expert(routing.experts, total)


@cache
def _single(k: int, device: torch.device) -> tuple[Int[Tensor, " {k}"], Int[Tensor, " {k}"]]:
    """Tokens and ends of the k groups of one token; made once, and never written."""
    with torch.inference_mode(False):
        ends = torch.arange(1, k + 1, device=device)
        return torch.zeros_like(ends), ends


def expert_swiglu(
    rows: Float[Tensor, "m h"],
    counts: Int[Tensor, " e"],
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "m h"]:
    """Each row through its expert: `rows` has counts[0] rows of the first expert, and so on.

    Where PyTorch has no grouped matmul, or a wrong one, that is one product per expert.
    """
    if has_grouped_matmul(rows, gate):
        product = partial(_grouped, ends=counts.cumsum(0).to(torch.int32))
    else:
        product = partial(_each, counts=counts.tolist())
    gate_change, up_change, down_change = change or (None, None, None)
    hidden = F.silu(product(rows, gate, gate_change)) * product(rows, up, up_change)
    return product(hidden, down, down_change)


def expert_swiglu_ref(
    rows: Float[Tensor, "m h"],
    counts: Int[Tensor, " e"],
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "m h"]:
    """The plain twin of `expert_swiglu`: one expert after the other."""
    gate, up, down = _changed(gate, up, down, change)
    parts = zip(rows.split(counts.tolist()), gate, up, down, strict=True)
    return torch.cat([(F.silu(x @ g.T) * (x @ u.T)) @ d.T for x, g, u, d in parts])


def combine_experts(
    out: Float[Tensor, "m h"], order: Int[Tensor, " m"] | None, weights: Float[Tensor, "n k"]
) -> Float[Tensor, "n h"]:
    """Weighted float32 sum of each token's k copies, which stand in the order of `sort_by_expert`.

    Without an order they stand in that of the choices (`group_rows`). The sum over k has a fixed
    order, so that the result is reproducible.
    """
    if in_c("sum of experts", out, weights):
        return small.combine(out, order, weights)
    return combine_experts_ref(out, order, weights)


def combine_experts_ref(
    out: Float[Tensor, "m h"], order: Int[Tensor, " m"] | None, weights: Float[Tensor, "n k"]
) -> Float[Tensor, "n h"]:
    """The plain twin of `combine_experts`."""
    if order is not None:
        out = out[inverse_permutation(order)]
    out = out.unflatten(0, weights.shape).float()  # (N, k, H)
    return (out * weights[..., None]).sum(dim=1)


def _grouped(
    rows: Float[Tensor, "m w"], weight: Float[Tensor, "e v w"], change: LowRank | None, ends: Tensor
) -> Float[Tensor, "m v"]:
    """Each row times its expert's matrix, with the change of that matrix if there is one."""
    out = F.grouped_mm(rows, weight.transpose(-1, -2), offs=ends)
    if change is None:
        return out
    inner = F.grouped_mm(rows, change.a.transpose(-1, -2), offs=ends)  # (M, rank)
    return out + F.grouped_mm(inner, change.b.transpose(-1, -2), offs=ends)


def _each(
    rows: Float[Tensor, "m w"],
    weight: Float[Tensor, "e v w"],
    change: LowRank | None,
    counts: list[int],
) -> Float[Tensor, "m v"]:
    """The same, one expert after the other; those without rows get gradients of zeros."""
    parts = rows.split(counts)
    outs = [F.linear(x, matrix) for x, matrix in zip(parts, weight, strict=True)]
    if change is not None:
        factors = zip(parts, change.a, change.b, outs, strict=True)
        outs = [out + F.linear(F.linear(x, a), b) for x, a, b, out in factors]
    return torch.cat(outs)


def expert_mlp_ref(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
    change: ExpertChange | None = None,
) -> Float[Tensor, "n h"]:
    """The plain twin of `expert_mlp`: one expert after the other, as the official code does."""
    gate, up, down = _changed(gate, up, down, change)
    total = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(gate.shape[0]):
        token, slot = (routing.experts == expert).nonzero(as_tuple=True)
        rows = x[token]
        hidden = F.silu(rows @ gate[expert].T) * (rows @ up[expert].T)
        out = (hidden @ down[expert].T).float()
        total = total.index_add(0, token, out * routing.weights[token, slot][:, None])
    return total.to(x.dtype)


def _changed(
    gate: Tensor, up: Tensor, down: Tensor, change: ExpertChange | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices with the change multiplied out."""
    if change is None:
        return gate, up, down
    g, u, d = change
    return gate + g.b @ g.a, up + u.b @ u.a, down + d.b @ d.a


def balance_loss(
    routing: Routing, mask: Bool[Tensor, "b t"], config: LanguageConfig
) -> Float[Tensor, ""]:
    """DeepSeek's balance loss of one layer, times `aux_loss_alpha`; padding does not count.

    Sequence-wise (`seq_aux`): for each sequence f_e = E / (k T) * #(tokens that chose e) and
    P_e = mean share of e in a token's scores; the loss is the mean over sequences of
    sum_e f_e P_e. Otherwise the whole batch is one sequence. Scores of a softmax are shares;
    sigmoids become shares (DeepSeek-V3, arXiv 2412.19437, eq. 17 to 20), because small scores
    would lower the loss without any balance, see docs/model.md.

    Args:
        routing: the router's choice for b * t tokens.
        mask: True where a token is real.
        config: gives alpha, k and E.
    """
    b, t = mask.shape
    e = routing.scores.shape[-1]
    chosen = F.one_hot(routing.experts, e).sum(dim=1).float().view(b, t, e)
    scores = routing.scores.view(b, t, e)
    if config.scoring_func == "sigmoid":
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    real = mask[..., None].float()
    if not config.seq_aux:
        chosen, scores, real = (x.flatten(0, 1)[None] for x in (chosen, scores, real))
    count = real.sum(dim=1).clamp(min=1)  # (B, 1)
    assert config.num_experts_per_tok is not None
    frequency = (chosen * real).sum(dim=1) / count * (e / config.num_experts_per_tok)
    probability = (scores * real).sum(dim=1) / count
    return config.aux_loss_alpha * (frequency * probability).sum(dim=-1).mean()


def expert_load(routing: Routing, mask: Bool[Tensor, "b t"], experts: int) -> Float[Tensor, " e"]:
    """How many real tokens chose each expert, as float32 counts."""
    # Selecting real tokens and torch.bincount would wait for the device; whole numbers add exactly.
    real = mask.flatten()[:, None].expand_as(routing.experts).flatten().float()
    return real.new_zeros(experts).index_add_(0, routing.experts.flatten(), real)


def update_bias(
    bias: Float[Tensor, " e"], load: Float[Tensor, " e"], step: float
) -> Float[Tensor, " e"]:
    """Loss-free balancing (arXiv 2408.15664): the overloaded lose `step`, the others gain it."""
    return bias + step * (load.mean() - load).sign()
