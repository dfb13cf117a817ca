"""Next-token cross entropy that never holds logits of more than one chunk of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vl2.ops.transfer import send

IGNORE_ID = -100

Head = Float[Tensor, "v h"] | Callable[[Tensor], Tensor]
"""The output head: its matrix, or what gives the logits of rows where it has none (quantised)."""


def next_token_loss_ref(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean over supervised tokens of -log p(label t+1 | logits t); 0 when nothing is supervised."""
    target = labels[:, 1:].flatten()
    count = (target != IGNORE_ID).sum().clamp(min=1)
    flat = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(flat, target, ignore_index=IGNORE_ID, reduction="sum") / count


def next_token_loss(
    hidden: Float[Tensor, "b t h"],
    head: Head,
    labels: Int[Tensor, "b t"],
    *,
    chunk: int = 1024,
) -> Float[Tensor, ""]:
    """The same from hidden states, with at most [chunk, vocab] logits alive at a time."""
    losses = token_losses(hidden, head, labels, chunk=chunk)
    return losses.sum() / max(len(losses), 1)


def token_losses(
    hidden: Float[Tensor, "b t h"],
    head: Head,
    labels: Int[Tensor, "b t"],
    *,
    chunk: int = 1024,
) -> Float[Tensor, " n"]:
    """Loss of each of the n supervised targets, row by row, in float32.

    Only supervised positions reach the head; each chunk's logits are made again going backward.
    Labels may be on the host: how many are supervised is then known without waiting for a card.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_ID).flatten()
    places = (following != IGNORE_ID).nonzero()[:, 0]
    target = send(following[places], hidden.device)
    rows = hidden.flatten(0, 1).index_select(0, send(places, hidden.device))
    parts = [
        checkpoint(
            _losses,
            rows[start : start + chunk],
            target[start : start + chunk],
            head,
            use_reentrant=False,
        )
        # Without a target one empty chunk runs: ranks that train together must all reach the head.
        for start in range(0, max(1, len(target)), chunk)
    ]
    return torch.cat(parts)


def _losses(
    rows: Float[Tensor, "n h"], target: Int[Tensor, " n"], head: Head
) -> Float[Tensor, " n"]:
    logits = rows @ head.to(rows.dtype).T if isinstance(head, Tensor) else head(rows)
    return F.cross_entropy(logits.float(), target, reduction="none")
