"""Pictures with their questions, drawn ahead into shards, and cut into batches of few shapes.

All questions about a picture share it in one row, and none sees another's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vl2.data.collate import PAD_SEGMENT, TrainBatch
from vl2.data.make.chance import chance, pick_weighted
from vl2.data.make.kinds import KINDS
from vl2.data.make.sample import Ask, Made, Spot, Text
from vl2.data.make.world import World
from vl2.data.packing import PackedRow, share_prefix
from vl2.geometry import Resolution
from vl2.ops.loss import IGNORE_ID
from vl2.processing.grounding import to_999
from vl2.processing.processor import Processor
from vl2.recipes.embedded.shards import to_pixels

PICTURES_PER_SHARD = 500
UNTILED = 0.85
"""Share of the pictures that stay untiled, of those that are legible so."""
ADAPTIVE = 0.85
"""Share of the others whose tiles follow from their content."""
LEGIBLE = 8.0
"""Least height in pixels of characters on a tile."""
LENGTHS = (320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048)
"""Rows are padded to the next of these, so that products have few shapes; longer ones are cut."""

_FIELDS = {
    "input_ids": (torch.int16, 0),
    "labels": (torch.int16, IGNORE_ID),
    "images_seq_mask": (torch.bool, False),
    "segment_ids": (torch.int16, PAD_SEGMENT),
    "position_ids": (torch.int16, 0),
}
"""Tensors of a row: how they are kept, and what padding holds."""


def written(text: Text, size: Resolution) -> str:
    """A question or an answer as the model writes it, with places in 0..999."""
    return "".join(part if isinstance(part, str) else _spot(part, size) for part in text)


def _spot(spot: Spot, size: Resolution) -> str:
    label = f"<|ref|>{spot.label}<|/ref|>" if spot.label else ""
    boxes = [list(to_999(_inside(box, size), size)) for box in spot.boxes]
    return label + (f"<|det|>[{', '.join(map(str, boxes))}]<|/det|>" if boxes else "")


def _inside(box: Sequence[int], size: Resolution) -> list[float]:
    """A turned box may reach out of the picture by its slant."""
    return [float(min(max(v, 0), size[k % 2])) for k, v in enumerate(box)]


def draw_answers(
    number: int, seed: int, kinds: Mapping[str, float], world: World, processor: Processor
) -> dict[str, Tensor]:
    """One shard: tiles as bytes, grids, and the packed row of each picture."""
    rng = np.random.default_rng((seed, number))
    made = (KINDS[pick_weighted(rng, kinds)](rng, world) for _ in range(PICTURES_PER_SHARD))
    return encode(made, processor, rng)


def encode(
    made: Iterable[Made], processor: Processor, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Pictures with their questions as the tensors of a shard.

    Most of those that one tile shows well enough are not tiled, and most others are tiled by their
    content: they cost a fraction of the rest, which is tiled as the released models do.
    """
    untiled = processor.with_settings(max_tiled_images=0)
    adaptive, released = (processor.with_settings(tiling=t) for t in ("content", "released"))
    tiles, crops, rows = [], [], []
    for one in made:
        chosen = adaptive if chance(rng, ADAPTIVE) else released
        if chance(rng, UNTILED) and legible_height(one, processor.layout.image_size) >= LEGIBLE:
            chosen = untiled
        pixels, crop, row = _encoded(one, chosen)
        tiles.append(pixels)
        crops.append(crop)
        rows.append(row)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    return {
        "tiles": torch.cat(tiles),
        "tile_counts": torch.tensor([len(t) for t in tiles]),
        "crops": torch.stack(crops),
        "lengths": lengths,
        **{
            name: torch.cat([getattr(row, name) for row in rows]).to(dtype)
            for name, (dtype, _) in _FIELDS.items()
        },
    }


def legible_height(made: Made, side: int) -> float:
    """Height in pixels of the smaller characters (a tenth is lower) on a tile of `side`."""
    scale = side / max(made.image.size)
    heights = [
        max(y2 - y1, 1.6 * (x2 - x1)) * scale for x1, y1, x2, y2 in (m.box for m in made.of("char"))
    ]
    return float(np.quantile(heights, 0.1)) if heights else float(side)


def _encoded(made: Made, processor: Processor) -> tuple[Tensor, Tensor, PackedRow]:
    """Tiles (one where both views are equal), the grid, and the row of all questions."""
    samples = [
        processor.from_conversation(turns(ask, made.image.size), [made.image], inference_mode=False)
        for ask in made.asks
    ]
    first = samples[0]
    pixels = ((first.images * 0.5 + 0.5) * 255).round().to(torch.uint8)
    crop = first.images_spatial_crop[0]
    return pixels[:1] if crop.tolist() == [1, 1] else pixels, crop, share_prefix(samples)


def turns(ask: Ask, size: Resolution) -> list[dict[str, str]]:
    """A question and its answer as a conversation about one picture."""
    return [
        {"role": "<|User|>", "content": f"<image>\n{written(ask.question, size)}"},
        {"role": "<|Assistant|>", "content": written(ask.answer, size)},
    ]


def cut_answers(
    data: dict[str, Tensor],
    rng: np.random.Generator,
    skip: int,
    *,
    tokens: int,
    tiles: int,
    learn_questions: bool = False,
) -> Iterator[TrainBatch]:
    """A shard's batches in random order; rows of a batch have one length of `LENGTHS`.

    Args:
        data: what `draw_answers` gave.
        rng: decides the order.
        skip: batches to leave out at the beginning.
        tokens: most of a batch, padding included; at least a row is taken.
        tiles: most of a batch, likewise.
        learn_questions: questions count in the loss, too.
    """
    groups = _groups(data, rng, tokens, tiles)
    for number in rng.permutation(len(groups))[skip:]:
        yield _batch(data, groups[int(number)], learn_questions)


def _groups(
    data: dict[str, Tensor], rng: np.random.Generator, tokens: int, tiles: int
) -> list[tuple[int, list[int]]]:
    """Rows that make a batch, with its length."""
    counts, lengths = data["tile_counts"].tolist(), data["lengths"].tolist()
    padded = [next((n for n in LENGTHS if n >= length), LENGTHS[-1]) for length in lengths]
    order = sorted(rng.permutation(len(lengths)).tolist(), key=lambda row: padded[row])
    groups: list[tuple[int, list[int]]] = []
    for row in order:
        length, group = groups[-1] if groups else (0, [])
        room = (len(group) + 1) * padded[row] <= tokens
        if length == padded[row] and room and sum(counts[r] for r in group) + counts[row] <= tiles:
            group.append(row)
        else:
            groups.append((padded[row], [row]))
    return groups


def _batch(
    data: dict[str, Tensor], group: tuple[int, list[int]], learn_questions: bool
) -> TrainBatch:
    length, rows = group
    ends = data["lengths"].cumsum(0)
    batch = {}
    for name, (_, fill) in _FIELDS.items():
        kept = torch.full((len(rows), length), fill, dtype=torch.int64)
        for place, row in enumerate(rows):
            start = int(ends[row] - data["lengths"][row])
            values = data[name][start : int(ends[row])][:length]
            kept[place, : len(values)] = values
        batch[name] = kept
    batch["images_seq_mask"] = batch["images_seq_mask"].bool()
    batch["attention_mask"] = batch["segment_ids"] != PAD_SEGMENT
    if learn_questions:
        batch["labels"] = _all_text(batch)
    crops = data["crops"][rows]
    batch["images"], batch["images_spatial_crop"] = _pictures(data, rows, crops), crops[:, None]
    return TrainBatch(
        tensors=batch,
        tokens=int(batch["attention_mask"].sum()),
        supervised=int((batch["labels"] != IGNORE_ID).sum()),
        images=len(rows),
        tiles=int((1 + crops.prod(dim=1)).sum()),
    )


def _all_text(batch: dict[str, Tensor]) -> Tensor:
    """Every real text token is a target, but for the first of each segment."""
    segments = batch["segment_ids"]
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    keep = batch["attention_mask"] & ~starts & ~batch["images_seq_mask"]
    return torch.where(keep, batch["input_ids"], IGNORE_ID)


def _pictures(data: dict[str, Tensor], rows: Sequence[int], crops: Tensor) -> Tensor:
    """Normalised tiles [b, most, 3, s, s]; a picture of one tile gets its global view back."""
    ends = data["tile_counts"].cumsum(0)
    side = data["tiles"].shape[-1]
    out = torch.zeros(len(rows), int((1 + crops.prod(dim=1)).max()), 3, side, side)
    for place, row in enumerate(rows):
        pixels = data["tiles"][int(ends[row] - data["tile_counts"][row]) : int(ends[row])]
        pixels = to_pixels(pixels)
        pixels = pixels.expand(2, -1, -1, -1) if len(pixels) == 1 else pixels
        out[place, : len(pixels)] = pixels
    return out
