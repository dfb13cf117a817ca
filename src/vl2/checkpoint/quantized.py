"""Floats of a file to quantised weights, some rows at a time: no matrix is in memory as floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vl2.checkpoint.container import StoredTensor, iter_pieces
from vl2.checkpoint.layout import Slot
from vl2.model.quantized import SCHEMES
from vl2.ops.int4 import INT4_ROWS
from vl2.ops.kinds import KINDS, Weight


def quantize_into(
    state: Mapping[str, Tensor],
    slot: Slot,
    stored: StoredTensor,
    on_bytes: Callable[[int], None],
) -> None:
    """Quantise a stored matrix, or stack of them, into the place of its slot.

    Args:
        state: holds `KEY.int8` or the like and `KEY.scale` for the slot's key.
        slot: of the float model.
        stored: its values.
        on_bytes: hears the bytes of every read.
    """
    scheme = next(name for name in SCHEMES if f"{slot.key}.{name}" in state)
    values, scale = state[f"{slot.key}.{scheme}"], state[f"{slot.key}.scale"]
    target = KINDS[scheme].of(values, scale, slot.shape[-2])
    if slot.expert is not None:
        target = target.at(slot.expert)
    for index, matrix in _split_experts(stored):
        place = target.at(index)
        for row, part in _quantized_rows(matrix, scheme, on_bytes):
            place.store(part, row)


def quantized_pieces(
    matrices: Sequence[StoredTensor], scheme: str, *, scales: bool
) -> Iterator[Tensor]:
    """Values, or scales, of stored matrices one after the other, in the order of `Held`."""
    for matrix in matrices:
        parts = (part for _, part in _quantized_rows(matrix, scheme, lambda _: None))
        if scales:
            # Scales of int4 lie group by group, so they are put together; they are small.
            yield torch.cat([part.scale for part in parts], dim=1 if scheme == "int4" else 0)
        else:
            yield from (part.values for part in parts)


def _split_experts(stored: StoredTensor) -> Iterator[tuple[tuple[int, ...], StoredTensor]]:
    """The matrices of a stored stack with their places, or the one matrix with place ()."""
    if len(stored.shape) == 2:
        yield (), stored
        return
    for expert in range(stored.shape[0]):
        yield (expert,), stored.part(expert)


def _quantized_rows(
    stored: StoredTensor, scheme: str, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, Weight]]:
    """Rows of a stored matrix, quantised, with the number of the first."""
    width, row = stored.shape[1], 0
    for piece in iter_pieces(stored, on_bytes, unit=INT4_ROWS * width):
        rows = piece.view(-1, width)
        yield row, KINDS[scheme].pack(rows)
        row += len(rows)
