"""Samples packed into rows and padded on the right: one micro batch of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vl2.data.balance_tiles import TileLoad
from vl2.ops.loss import IGNORE_ID
from vl2.processing.inputs import ModelInputs

PAD_SEGMENT = -1
"""The segment of padding: nothing else is in it, so nothing sees it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What a place of the endless order became: its record, a substitute, or nothing."""

    source: int  # number of the source
    position: int  # of the place
    row: int  # of the source; not the planned one if that had to be replaced
    id: str = ""  # of the record; empty if none of those that were tried can be used
    failed: int = 0  # records that were tried in vain, the planned one first
    reasons: tuple[str, ...] = ()  # the first few
    inputs: ModelInputs | None = None  # of the record; a batch holds them as its tensors instead


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """One micro batch. `tensors` are the model's arguments, `labels` among them.

    input_ids, labels, position_ids, segment_ids and attention_mask are [b, t]. If any sample has a
    picture there are also images_seq_mask [b, t], images [b, tiles, 3, s, s] and
    images_spatial_crop [b, images, 2]; a batch of text alone has none of the three.
    """

    tensors: dict[str, Tensor]
    source_ids: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    # [b, t]: the number in `source_names` of each token's source; -1 for padding
    source_names: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    tokens: int = 0  # without padding
    supervised: int = 0
    images: int = 0
    tiles: int = 0
    state: Mapping[str, int] = field(default_factory=dict)  # the place of the stream after it
    closes_step: bool = True  # the last micro batch of its optimiser step
    tile_load: TileLoad | None = None  # of its step over all ranks, as planned


def collate_rows(
    rows: Sequence[Sequence[Sample]],
    *,
    pad_id: int,
    source_names: tuple[str, ...] = (),
    isolate_documents: bool = True,
) -> TrainBatch:
    """Pack the samples of each row one after the other, and pad the rows on the right.

    Positions restart with each sample, and no sample's first token is a target, because the token
    before it belongs to another sample. A row may be empty; it is all padding then.

    Args:
        rows: samples of each sequence; a place that became nothing takes no room.
        pad_id: fills input_ids.
        source_names: by number of the source.
        isolate_documents: samples of a row do not see each other; else attention is causal over
            the whole row.
    """
    held = [[(s.source, s.inputs) for s in row if s.inputs is not None] for row in rows]
    lengths = [sum(len(inputs.input_ids) for _, inputs in row) for row in held]
    length = max(*lengths, 1)
    parts = [_pack(row, isolate_documents) for row in held]
    fill = {"input_ids": pad_id, "labels": IGNORE_ID, "segment_ids": PAD_SEGMENT, "source_ids": -1}
    tensors = {
        name: torch.stack(
            [F.pad(p[name], (0, length - len(p[name])), value=fill.get(name, 0)) for p in parts]
        )
        for name in parts[0]
    }
    tensors["attention_mask"] = tensors["segment_ids"] != PAD_SEGMENT
    source_ids, mask = tensors.pop("source_ids"), tensors.pop("images_seq_mask")
    pictures = [_pictures([inputs for _, inputs in row]) for row in held]
    if any(len(crops) for _, crops in pictures):
        tensors["images_seq_mask"] = mask
        tensors["images"] = _tail([tiles for tiles, _ in pictures])
        tensors["images_spatial_crop"] = _tail([crops for _, crops in pictures])
    return TrainBatch(
        tensors=tensors,
        source_ids=source_ids,
        source_names=source_names,
        samples=tuple(replace(sample, inputs=None) for row in rows for sample in row),
        tokens=sum(lengths),
        supervised=int((tensors["labels"] != IGNORE_ID).sum()),
        images=sum(len(crops) for _, crops in pictures),
        tiles=sum(len(tiles) for tiles, _ in pictures),
    )


def _pack(row: Sequence[tuple[int, ModelInputs]], isolate: bool) -> dict[str, Tensor]:
    """Tokens of one row, given as numbers of sources and inputs; all [t].

    Segments count from 1: segment 0 would be seen by all.
    """
    empty = torch.empty(0, dtype=torch.int64)
    names = ("input_ids", "labels", "segment_ids", "position_ids", "source_ids")
    parts = {name: [empty] for name in names}
    parts["images_seq_mask"] = [empty.bool()]
    for number, (source, inputs) in enumerate(row, start=1):
        ids, labels = inputs.input_ids, inputs.labels.clone()
        labels[:1] = IGNORE_ID
        parts["input_ids"].append(ids)
        parts["labels"].append(labels)
        parts["segment_ids"].append(torch.full_like(ids, number if isolate else 1))
        parts["position_ids"].append(torch.arange(len(ids)))
        parts["source_ids"].append(torch.full_like(ids, source))
        parts["images_seq_mask"].append(inputs.images_seq_mask)
    return {name: torch.cat(values) for name, values in parts.items()}


def _pictures(row: Sequence[ModelInputs]) -> tuple[Tensor, Tensor]:
    """Tiles [n, 3, s, s] and crops [images, 2] of one row; text alone adds none."""
    real = [inputs for inputs in row if bool((inputs.images_spatial_crop > 0).all())]
    if not real:
        return torch.empty(0), torch.empty(0, 2, dtype=torch.int64)
    tiles = torch.cat([inputs.images for inputs in real])
    return tiles, torch.cat([inputs.images_spatial_crop for inputs in real])


def _tail(stacks: Sequence[Tensor]) -> Tensor:
    """Stacks of unequal length side by side, filled with zeros at their end."""
    full = next(stack for stack in stacks if len(stack))
    out = full.new_zeros((len(stacks), max(len(s) for s in stacks), *full.shape[1:]))
    for room, stack in zip(out, stacks, strict=True):
        room[: len(stack)] = stack if len(stack) else room[:0]
    return out
