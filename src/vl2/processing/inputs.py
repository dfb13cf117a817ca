"""What a model takes: one sample, and a left-padded batch of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from vl2 import geometry
from vl2.geometry import Resolution, TileGrid
from vl2.processing.layout import TileLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInputs:
    """One sample. Text alone carries one zero tile and the crop (0, 0), as released."""

    input_ids: Int[Tensor, " t"]
    labels: Int[Tensor, " t"]
    images: Float[Tensor, "tiles 3 size size"]
    images_seq_mask: Bool[Tensor, " t"]
    images_spatial_crop: Int[Tensor, "images 2"]  # (tiles wide, tiles high)
    image_sizes: tuple[Resolution, ...] = ()  # (width, height) of the pictures that boxes refer to
    notes: tuple[str, ...] = ()  # what a user should know about the pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Mapping[str, Tensor]):
    """Samples of unequal length side by side; `model(**batch)` takes it."""

    input_ids: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    images: Float[Tensor, "b tiles 3 size size"]
    images_seq_mask: Bool[Tensor, "b t"]
    images_spatial_crop: Int[Tensor, "b images 2"]
    attention_mask: Int[Tensor, "b t"]
    image_sizes: tuple[tuple[Resolution, ...], ...] = ()

    def __getitem__(self, key: str) -> Tensor:
        """The tensor of that name."""
        if key not in _TENSORS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(_TENSORS)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(_TENSORS)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        moved = {name: self[name].to(device, non_blocking=non_blocking) for name in _TENSORS}
        return Batch(**moved, image_sizes=self.image_sizes)


_TENSORS = (
    "input_ids",
    "labels",
    "images",
    "images_seq_mask",
    "images_spatial_crop",
    "attention_mask",
)


def to_pixels(
    tiles: UInt8[ndarray, "n size size 3"], layout: TileLayout
) -> Float[Tensor, "n 3 size size"]:
    """RGB tiles as float32, normalised to (value / 255 - mean) / std."""
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    if layout.normalize:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (layout.mean, layout.std))
        pixels = pixels.sub_(mean).div_(std)
    return pixels.contiguous()


def check_inputs(inputs: ModelInputs, *, side: int) -> None:
    """Check that the placeholders of a sample are exactly as many as the features of its pictures.

    Args:
        inputs: one sample.
        side: side of a tile in tokens.

    Raises:
        ValueError: a tensor of another kind, another number of placeholders than features, or of
            tiles than the crops need.
    """
    _check_tensors(inputs)
    crops = [TileGrid(wide=w, high=h) for w, h in inputs.images_spatial_crop.tolist() if w and h]
    features = sum(geometry.image_tokens(side, grid) for grid in crops)
    places = int(inputs.images_seq_mask.sum())
    if places != features:
        raise ValueError(
            f"{places} image placeholders for {features} image features: one of them was changed "
            "after processing; build the sample again"
        )
    tiles = sum(grid.tiles for grid in crops) or 1
    if len(inputs.images) != tiles:
        raise ValueError(
            f"{len(inputs.images)} tiles for crops {inputs.images_spatial_crop.tolist()}: expected "
            f"{tiles} (the global view and the local tiles of each picture)"
        )


def _check_tensors(inputs: ModelInputs) -> None:
    """Shapes and kinds, which nobody checks when a sample is built by hand."""
    for name, dims, wanted in (
        ("input_ids", 1, "[tokens], whole numbers"),
        ("images_seq_mask", 1, "[tokens], booleans"),
        ("images", 4, "[tiles, 3, size, size], floats"),
        ("images_spatial_crop", 2, "[pictures, 2], whole numbers"),
    ):
        value = getattr(inputs, name)
        told = f"{name} of a sample is {type(value).__name__}: expected a tensor {wanted}"
        if not isinstance(value, Tensor):
            raise ValueError(told)
        kind = "floats" if value.is_floating_point() else "whole numbers"
        kind = "booleans" if value.dtype == torch.bool else kind
        if value.dim() != dims or not wanted.endswith(kind) or value.is_complex():
            shape = f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
            raise ValueError(f"{name} of a sample is {shape}: expected {wanted}")
    tokens, mask = len(inputs.input_ids), len(inputs.images_seq_mask)
    if not tokens or tokens != mask:
        raise ValueError(
            f"a sample has {tokens} input_ids and an images_seq_mask of {mask}: expected as many, "
            "and at least one"
        )
    crops = inputs.images_spatial_crop
    if crops.shape[1] != 2 or bool((crops < 0).any()):
        raise ValueError(
            f"images_spatial_crop of a sample is {crops.tolist()}: expected (tiles wide, tiles "
            "high) of each picture"
        )


def collate(samples: Sequence[ModelInputs], *, pad_id: int, ignore_id: int = -100) -> Batch:
    """Pad samples on the left; tiles and crops are filled with zeros at their end.

    Raises:
        ValueError: no sample.
    """
    if not samples:
        raise ValueError("a batch of no samples: give at least one")
    return Batch(
        input_ids=_left([s.input_ids for s in samples], pad_id),
        labels=_left([s.labels for s in samples], ignore_id),
        images=_tail([s.images for s in samples]),
        images_seq_mask=_left([s.images_seq_mask for s in samples], False),
        images_spatial_crop=_tail([s.images_spatial_crop for s in samples]),
        attention_mask=_left([torch.ones_like(s.input_ids) for s in samples], 0),
        image_sizes=tuple(s.image_sizes for s in samples),
    )


def _left(rows: Sequence[Tensor], fill: int | bool) -> Tensor:
    out = rows[0].new_full((len(rows), max(len(row) for row in rows)), fill)
    for line, row in zip(out, rows, strict=True):
        line[len(line) - len(row) :] = row
    return out


def _tail(stacks: Sequence[Tensor]) -> Tensor:
    longest = max(len(stack) for stack in stacks)
    out = stacks[0].new_zeros((len(stacks), longest, *stacks[0].shape[1:]))
    for room, stack in zip(out, stacks, strict=True):
        room[: len(stack)] = stack
    return out
