"""Move a checkpoint between dtypes and layouts, tensor by tensor: the model is never in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.container import OutTensor, StoredTensor, iter_pieces
from vl2.checkpoint.layout import Slot, stored_dtypes, table
from vl2.checkpoint.load import Checkpoint, model_dtype, open_checkpoint, quantized_skeleton
from vl2.checkpoint.quantized import quantized_pieces
from vl2.checkpoint.save import MAX_SHARD_BYTES, check_layout_name, companions, write_checkpoint
from vl2.folders import check_folder
from vl2.model.quantized import held_weights
from vl2.model.vl2 import VL2Model
from vl2.model_folder import resolve

_Parts = dict[str, list[tuple[StoredTensor, Slot]]]
"""By our key: the parts of the tensor that are stored."""


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    dtype: str | torch.dtype = "auto",
    *,
    quantization: str | None = None,
    layout: str = "released",
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model of `source` into the folder `target` and return that folder.

    The result carries `architectures` in config.json and the tokenizer and processor files of the
    source. At most a few MiB of weights are in memory at a time.

    Args:
        source: "nano", a local folder or a hub id.
        target: a new or empty folder.
        dtype: "auto" keeps every tensor's own, so that only names and files change.
        quantization: "int8", "float8" or "int4" for the linear layers and experts of a float
            checkpoint, which then take our own form; None keeps the form of the source.
        layout: "released" (one tensor per expert, what other engines read) or "stacked"; what is
            quantised is always stacked.
        max_shard_bytes: as in `save_model`.
        force: write into a folder that is not empty; a model there is replaced.
        on_progress: hears (bytes written so far, bytes in all).

    Raises:
        CheckpointError: the source is not whole, or the target cannot be written.
        ValueError: an argument is wrong, or the target is not empty and `force` is not given.
    """
    check_layout_name(layout)
    held = None if dtype == "auto" else model_dtype(dtype)
    folder, goal = resolve(source), Path(target).expanduser()
    if goal.is_dir() and goal.samefile(folder):
        raise ValueError(f"{goal} is the source itself: give another folder to write into")
    check_target(goal, force=force)
    checkpoint = open_checkpoint(folder)
    model = checkpoint.skeleton
    if quantization is not None:
        model = quantized_skeleton(checkpoint, quantization)
    write_checkpoint(
        goal,
        list(_converted(checkpoint, model, held, layout)),
        model.config,
        max_shard_bytes=max_shard_bytes,
        companions=companions(folder),
        on_progress=on_progress,
    )
    return goal


def check_target(goal: Path, *, force: bool) -> None:
    """Refuse to write into a file, or without `force` into a folder that holds something.

    Raises:
        ValueError: one of these.
    """
    check_folder(goal, "the target")
    if goal.is_dir() and any(goal.iterdir()) and not force:
        raise ValueError(f"{goal} is not empty: give a new folder, or --force to replace the model")


def _converted(
    checkpoint: Checkpoint, model: VL2Model, dtype: torch.dtype | None, layout: str
) -> Iterator[OutTensor]:
    """The tensors of `model` out of the files of `checkpoint`."""
    parts: _Parts = {}
    for stored, slot in checkpoint.places:
        parts.setdefault(slot.key, []).append((stored, slot))
    state = model.state_dict()
    held = stored_dtypes(model, dtype or torch.float32)
    for key, slot in table(state, layout):
        if slot.key not in parts:
            yield _quantized(parts, model, slot, held[slot.key])
            continue
        sources = _sources(parts[slot.key], slot)
        out_dtype = sources[0].dtype if dtype is None else held[slot.key]
        yield OutTensor(
            key=key, dtype=out_dtype, shape=slot.shape, pieces=partial(_pieces, sources)
        )


def _quantized(parts: _Parts, model: VL2Model, slot: Slot, dtype: torch.dtype) -> OutTensor:
    """Values or scales of a quantised matrix of `model`, out of the floats of the source."""
    key, _, field = slot.key.rpartition(".")
    weight = held_weights(model)[key]
    experts = (None,) if len(weight.shape) == 2 else range(weight.shape[0])
    matrices = [
        source
        for e in experts
        for source in _sources(parts[key], Slot(key=key, expert=e, shape=weight.shape[-2:]))
    ]
    pieces = partial(quantized_pieces, matrices, weight.kind, scales=field == "scale")
    return OutTensor(key=slot.key, dtype=dtype, shape=slot.shape, pieces=pieces)


def _sources(parts: list[tuple[StoredTensor, Slot]], wanted: Slot) -> list[StoredTensor]:
    """Where the values of a target slot lie in the source, whichever of the two is stacked."""
    if wanted.expert is None:
        return [stored for stored, _ in parts]
    stored, slot = parts[0]
    if slot.expert is not None:
        return [parts[wanted.expert][0]]
    return [stored.part(wanted.expert)]


def _pieces(sources: list[StoredTensor]) -> Iterator[Tensor]:
    for stored in sources:
        yield from iter_pieces(stored)
