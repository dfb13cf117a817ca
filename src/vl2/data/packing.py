"""Questions that share one picture packed into one row: the picture is encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.ops.loss import IGNORE_ID
from vl2.processing.inputs import ModelInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRow:
    """A shared prefix (segment 0) and its continuations (segments 1, 2, ...), all [t]."""

    input_ids: Tensor
    labels: Tensor
    images_seq_mask: Tensor
    segment_ids: Tensor
    position_ids: Tensor


def common_prefix(rows: Sequence[Tensor]) -> int:
    """Number of leading ids that all rows share, leaving each at least one of its own."""
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(dim=0).nonzero()
    return min(int(differs[0]) if len(differs) else shortest, shortest - 1)


def share_prefix(samples: Sequence[ModelInputs]) -> PackedRow:
    """Pack samples that begin alike, as several questions about one picture do.

    Each continuation sees the prefix and itself, and its positions continue where the prefix ends,
    so that it computes what it would compute alone. The first token of a continuation is not
    supervised: what stands before it in the row is another continuation's end.

    Raises:
        ValueError: a continuation would hold image placeholders.
    """
    cut = common_prefix([s.input_ids for s in samples]) if len(samples) > 1 else 0
    if len(samples) > 1 and any(bool(s.images_seq_mask[cut:].any()) for s in samples):
        raise ValueError("samples differ before or inside their pictures: pack only one picture's")
    first = samples[0]
    ids, labels, masks = ([t[:cut]] for t in (first.input_ids, first.labels, first.images_seq_mask))
    segments, positions = [torch.zeros(cut, dtype=torch.int64)], [torch.arange(cut)]
    for number, sample in enumerate(samples, start=1):
        own = sample.labels[cut:].clone()
        own[0] = IGNORE_ID
        ids.append(sample.input_ids[cut:])
        labels.append(own)
        masks.append(sample.images_seq_mask[cut:])
        segments.append(torch.full_like(own, number))
        positions.append(torch.arange(cut, len(sample.input_ids)))
    ids, labels, masks, segments, positions = (
        torch.cat(parts) for parts in (ids, labels, masks, segments, positions)
    )
    return PackedRow(
        input_ids=ids,
        labels=labels,
        images_seq_mask=masks,
        segment_ids=segments,
        position_ids=positions,
    )
