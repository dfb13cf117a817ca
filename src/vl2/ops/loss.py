"""Next-token cross entropy that never holds logits of more than one chunk of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE_ID = -100


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
    head: Float[Tensor, "v h"],
    labels: Int[Tensor, "b t"],
    *,
    chunk: int = 1024,
) -> Float[Tensor, ""]:
    """The same from hidden states, with at most [chunk, vocab] logits alive at a time.

    Only supervised positions reach the head; each chunk's logits are made again going backward.
    """
    wanted = labels[:, 1:] != IGNORE_ID
    rows, target = hidden[:, :-1][wanted], labels[:, 1:][wanted]
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(target), chunk):
        part = rows[start : start + chunk], target[start : start + chunk]
        total = total + checkpoint(_summed_loss, *part, head, use_reentrant=False)
    return total / max(len(target), 1)


def _summed_loss(
    rows: Float[Tensor, "n h"], target: Int[Tensor, " n"], head: Float[Tensor, "v h"]
) -> Float[Tensor, ""]:
    return F.cross_entropy((rows @ head.T).float(), target, reduction="sum")
