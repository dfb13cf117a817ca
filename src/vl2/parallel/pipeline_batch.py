"""The micro batches of a step brought to one shape, because a pipeline's buffers have one.

Only activations travel between stages, so the shape that counts is that of the activations: rows
of one length, and as many tiles per micro batch as the fullest one has. Tiles that no placeholder
uses are blank; they cost their encoding and change nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vl2 import geometry
from vl2.config import VL2Config
from vl2.geometry import TileGrid
from vl2.ops.loss import IGNORE_ID

PADDING = {
    "input_ids": 0,
    "labels": IGNORE_ID,
    "attention_mask": 0,
    "position_ids": 0,
    "segment_ids": -1,  # a document of its own: segment 0 would be seen by all
    "images_seq_mask": 0,
}
"""What fills each tensor after the end of a row."""
PICTURES = ("images", "images_spatial_crop", "images_seq_mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """One micro batch, in the shape that all of its step have."""

    tensors: dict[str, Tensor]  # the given ones of `PADDING`, [b, t], and attention_mask
    grids: tuple[TileGrid, ...]  # of each picture, in order
    views: tuple[Tensor, ...]  # tiles of each picture, [n, 3, s, s]; one stands for two equal ones
    tiles: int  # to be encoded, blank ones with them; 0 when the whole step is text


def pad_micro_batches(
    batches: Sequence[Mapping[str, Tensor]], config: VL2Config, *, pictures: bool = False
) -> list[MicroBatch]:
    """Rows padded on the right to the longest of the step, tiles to the fullest micro batch.

    A step without any picture has no tiles, and the vision tower rests. A micro batch of text
    alone in a step with pictures gets blank tiles.

    Args:
        batches: the arguments of the model for each micro batch, `labels` among them.
        config: of the model.
        pictures: whether other data-parallel ranks have pictures in this step; where they have and
            this one has none, it encodes one blank tile, so that all take part in the gradients.

    Raises:
        ValueError: micro batches with unequal numbers of rows, something that a pipeline does not
            take, or placeholders that do not match the pictures.
    """
    _check_rows(batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    found = [_pictures(batch) for batch in batches]
    tiles = max(sum(len(view) for view, _ in pairs) for pairs in found)
    padded = []
    for batch, pairs in zip(batches, found, strict=True):
        grids = tuple(grid for _, grid in pairs)
        _check_places(batch.get("images_seq_mask"), grids, config.tokens_per_side)
        padded.append(
            MicroBatch(
                tensors=_pad(batch, length),
                grids=grids,
                views=tuple(view for view, _ in pairs),
                tiles=max(tiles, int(pictures)),
            )
        )
    return padded


def _check_rows(batches: Sequence[Mapping[str, Tensor]]) -> None:
    rows = [len(batch["input_ids"]) for batch in batches]
    if len(set(rows)) != 1:
        raise ValueError(
            f"micro batches of {rows} rows: a pipeline needs one or more of equal size, "
            "make data.batch_size a multiple of data.micro_batch"
        )
    unknown = {name for batch in batches for name in batch} - {*PADDING, *PICTURES}
    if unknown:
        raise ValueError(f"a pipeline does not take {sorted(unknown)}: train without it")


def _check_places(mask: Tensor | None, grids: Sequence[TileGrid], side: int) -> None:
    places = 0 if mask is None else int(mask.sum())
    count = sum(geometry.image_tokens(side, grid) for grid in grids)
    if count != places:
        raise ValueError(
            f"{places} image placeholders for {count} image features: "
            "build inputs with the processor of this model"
        )


def _pictures(batch: Mapping[str, Tensor]) -> list[tuple[Tensor, TileGrid]]:
    """Tiles to encode and grid of each picture; two equal views are one tile, as in the model."""
    if "images" not in batch:
        return []
    found = []
    for row, crops in zip(batch["images"], batch["images_spatial_crop"].tolist(), strict=True):
        start = 0
        for wide, high in crops:
            if wide < 1 or high < 1:
                continue
            grid = TileGrid(wide=wide, high=high)
            tiles = row[start : start + grid.tiles]
            start += grid.tiles
            same = grid.tiles == 2 and torch.equal(tiles[0], tiles[1])
            found.append((tiles[:1] if same else tiles, grid))
    return found


def _pad(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Padded tensors of the rows, with an attention mask in any case."""
    given = {name: tensor for name, tensor in batch.items() if name in PADDING}
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"], dtype=torch.bool))
    return {
        name: F.pad(tensor, (0, length - tensor.shape[1]), value=PADDING[name])
        for name, tensor in given.items()
    }
