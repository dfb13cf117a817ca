"""What a step tells of the answers whose traces are asked for: see trace.py."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch

from vl2.engine.scheduler import Scheduled
from vl2.model.attention import Watched
from vl2.model.language import StepRecord
from vl2.ops.paged import Span


def watch(items: Items[Scheduled], spans: Items[Span]) -> StepRecord | None:
    """What is to be recorded of a step of these items; None if nothing is."""
    if not any(item.sequence.record for item in items):
        return None
    watched, end = [], 0
    for item, span in zip(items, spans, strict=True):
        end += item.tokens
        if item.sequence.record and item.complete:
            watched.append(Watched(row=end - 1, span=span))
    return StepRecord(watched=tuple(watched))


def note(items: Items[Scheduled], step: StepRecord) -> None:
    """Keep what was recorded with the sequences that asked for it."""
    chosen = torch.empty(sum(item.tokens for item in items), 0, 0, dtype=torch.uint8)
    if step.routing:
        chosen = torch.stack([routing.experts for routing in step.routing], dim=1)
        chosen = chosen.to("cpu", torch.uint8)  # (N, layers, k)
    watched, end = iter(step.watched), 0
    for item in items:
        first, end = end, end + item.tokens
        sequence = item.sequence
        record = sequence.record
        if record is None:
            continue
        rows = chosen[first:end].numpy().copy()  # a view would keep all rows of the step
        record.experts.append((sequence.computed, rows))
        if item.complete:
            weights = torch.stack(next(watched).weights).mean(dim=0).cpu().numpy()
            places = np.asarray(record.places, dtype=np.int64)
            record.attention[len(sequence.token_ids)] = weights[places]
