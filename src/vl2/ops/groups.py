"""Rows of activations by the expert that they meet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Groups(NamedTuple):
    """Rows that meet the same expert, one group after the other; all int64."""

    tokens: Tensor | None  # [rows]: which row of the activations each is; None: all, in order
    ends: Tensor  # [groups]: after the last row of each group
    experts: Tensor | None  # [groups]: whom each meets; None: group g meets expert g


def sort_by_expert(
    experts: Int[Tensor, "n k"], total: int
) -> tuple[Int[Tensor, " m"], Int[Tensor, " {total}"]]:
    """Order of the m = n * k copies of tokens by expert, and how many each of `total` experts has.

    Copy i is of token i // k; those of one expert stay in the order of the tokens.
    """
    copies = experts.flatten()
    # torch.bincount would make the host wait for a GPU to learn the largest expert.
    counts = copies.new_zeros(total).index_add_(0, copies, torch.ones_like(copies))
    return copies.argsort(stable=True), counts


def rows_by_expert(experts: Int[Tensor, "n k"], total: int) -> tuple[Int[Tensor, " m"], Groups]:
    """The m = n * k copies of tokens by expert, and their order, see `sort_by_expert`."""
    order, counts = sort_by_expert(experts, total)
    return order, Groups(order // experts.shape[1], counts.cumsum(0), None)


def in_order(groups: Groups) -> Groups:
    """The same groups of rows that stand in their order already."""
    return groups._replace(tokens=None)


def split_rows(x: Shaped[Tensor, "n i"], groups: Groups) -> list[tuple[Tensor, tuple[int]]]:
    """The rows of each group that has any, and the index of its expert."""
    rows = x if groups.tokens is None else x[groups.tokens]
    ends = groups.ends.tolist()
    experts = range(len(ends)) if groups.experts is None else groups.experts.tolist()
    spans = zip([0, *ends[:-1]], ends, experts, strict=True)
    return [(rows[start:end], (expert,)) for start, end, expert in spans if start < end]


def inverse_permutation(order: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Where each place of `order` went: x[order][inverse] is x."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places)
