"""The embedded model's pictures: drawn ahead of time into shards, and read back as batches.

A shard is a pure function of its kind and number; a batch is a pure function of the shards, the
seed and its index. Nothing is drawn twice, and a run that stopped goes on where it was.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vl2.data.collate import TrainBatch
from vl2.data.packing import PackedRow, share_prefix
from vl2.data.synthetic import (
    Question,
    Scene,
    SceneRecipe,
    ask,
    dense_labels,
    draw_scene,
    drill,
)
from vl2.logs import get_logger
from vl2.ops.loss import IGNORE_ID
from vl2.processing import conversation
from vl2.processing.inputs import ModelInputs
from vl2.processing.processor import Processor

log = get_logger(__name__)

PICTURES_PER_SHARD = 1000
PATCH_LABELS = ("shape_id", "colour_id", "char_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardKind:
    """What a family of shards holds."""

    name: str
    seed: int
    recipe: SceneRecipe
    patch_labels: bool = False  # one padded tile and per-patch targets instead of questions
    drills: bool = False  # many questions on each picture, and lists
    short_references: bool = False  # half of the official requests are the object's name alone


def draw_shard(kind: ShardKind, number: int, folder: Path, processor: Processor) -> Path:
    """Draw shard `number` into `folder` unless it is there; written aside, then renamed."""
    target = folder / f"{kind.name}-{number:04d}.safetensors"
    if target.exists():
        return target
    rng = np.random.default_rng((kind.seed, number))
    scenes = [draw_scene(rng, recipe=kind.recipe) for _ in range(PICTURES_PER_SHARD)]
    if kind.patch_labels:
        tensors = _patch_tensors(scenes, processor)
    else:
        asker = drill if kind.drills else ask
        asked = [asker(scene, rng) for scene in scenes]
        if kind.short_references:
            asked = [[_shortened(q) if rng.random() < 0.5 else q for q in qs] for qs in asked]
        tensors = _question_tensors(scenes, asked, processor)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    save_file(tensors, unfinished)
    return unfinished.rename(target)


def _patch_tensors(scenes: Sequence[Scene], processor: Processor) -> dict[str, Tensor]:
    side, patch = processor.layout.image_size, processor.config.patch_size
    labels = [dense_labels(scene, image_size=side, patch=patch) for scene in scenes]
    tiles = [
        np.asarray(ImageOps.pad(scene.image, (side, side), color=(127, 127, 127)))
        for scene in scenes
    ]
    stacked = {key: torch.from_numpy(np.stack([item[key] for item in labels])) for key in labels[0]}
    small = {key: stacked[key].to(torch.uint8) for key in PATCH_LABELS}
    pixels = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
    return {"tiles": pixels, "box": stacked["box"], **small}


def describe(scene: Scene) -> str:
    """The scene in words, one line per object with its box: how a text-only document starts."""
    width, height = scene.image.size
    lines = []
    for item in scene.objects:
        corners = (
            round(v / side * 999)
            for v, side in zip(item.box, (width, height, width, height), strict=True)
        )
        name = item.name if item.kind == "shape" else f'{item.colour} text "{item.text}"'.strip()
        lines.append(f"{name} [[{', '.join(map(str, corners))}]]")
    return "\n".join(lines)


def _question_tensors(
    scenes: Sequence[Scene], asked: Sequence[Sequence[Question]], processor: Processor
) -> dict[str, Tensor]:
    """Tiles as bytes, and each scene's questions packed behind its picture and behind its words."""
    tiles, crops, rows, words = [], [], [], []
    for scene, questions in zip(scenes, asked, strict=True):
        first, *rest = [_turns(f"<image>\n{q.text}", q.answer) for q in questions]
        picture = processor.from_conversation(first, [scene.image], inference_mode=False)
        count = [int(picture.images_seq_mask.sum())]
        rows.append(
            share_prefix([picture, *(_encoded(t, count, picture, processor) for t in rest)])
        )
        pixels = ((picture.images * 0.5 + 0.5) * 255).round().to(torch.uint8)
        crop = picture.images_spatial_crop[0]
        tiles.append(pixels[:1] if crop.tolist() == [1, 1] else pixels)
        crops.append(crop)
        described = [_turns(f"{describe(scene)}\n{q.text}", q.answer) for q in questions]
        words.append(share_prefix([_encoded(t, [], picture, processor) for t in described]))
    return {
        "tiles": torch.cat(tiles),
        "tile_counts": torch.tensor([len(t) for t in tiles]),
        "crops": torch.stack(crops),
        **_ragged("row", rows),
        **_ragged("text", words),
    }


def _shortened(question: Question) -> Question:
    """An official request for a box as the official examples abbreviate it: the name alone."""
    found = re.fullmatch(r"Locate (<\|ref\|>.*<\|/ref\|>) in the given image\.", question.text)
    return replace(question, text=f"{found[1]}.") if found else question


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "<|User|>", "content": question},
        {"role": "<|Assistant|>", "content": answer},
    ]


def _encoded(
    turns: list[dict[str, str]], counts: list[int], like: ModelInputs, processor: Processor
) -> ModelInputs:
    """Another question to a picture that is tiled already and only counted (or to none)."""
    tokenizer = processor.tokenizer
    prompt = conversation.from_conversation(turns, tokenizer, counts, open_end=False)
    encoded = conversation.encode(
        prompt, tokenizer, counts, mask_prompt=True, ignore_id=processor.config.ignore_id
    )
    return replace(
        like,
        input_ids=torch.tensor(encoded.input_ids),
        labels=torch.tensor(encoded.labels),
        images_seq_mask=torch.tensor(encoded.image_mask),
    )


_ROW_FIELDS = {
    "input_ids": torch.int32,
    "labels": torch.int32,
    "images_seq_mask": torch.bool,
    "segment_ids": torch.int8,
    "position_ids": torch.int16,
}


def _ragged(prefix: str, rows: Sequence[PackedRow]) -> dict[str, Tensor]:
    tensors = {
        f"{prefix}.{name}": torch.cat([getattr(row, name) for row in rows]).to(dtype)
        for name, dtype in _ROW_FIELDS.items()
    }
    return {**tensors, f"{prefix}.lengths": torch.tensor([len(r.input_ids) for r in rows])}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How shards are cut into batches."""

    tokens: int = 4096  # per batch, padding included
    tiles: int = 64
    rows: int = 64
    text_share: float = 0.0  # share of batches that are text-only documents
    supervise_prompt: bool = False  # questions count in the loss too


Batches = Callable[[], Iterator[TrainBatch]]
"""A stage's endless stream of batches, from its beginning."""


class ReplayLoader:
    """Steps of one batch each; going on replays the stream: that costs reading, but no drawing."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.consumed = 0

    def __iter__(self) -> Iterator[Sequence[TrainBatch]]:
        """Steps from the state on."""
        for batch in itertools.islice(self.batches(), self.consumed, None):
            self.consumed += 1
            yield [batch]

    def state(self) -> dict[str, int]:
        """Steps consumed."""
        return {"consumed": self.consumed}

    def restore(self, state: dict[str, int]) -> None:
        """Go on behind them."""
        self.consumed = state["consumed"]

    def close(self) -> None:
        """Nothing works for it."""


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def patch_batches(shards: Sequence[Path], size: int, seed: int) -> Iterator[TrainBatch]:
    """Endless batches of `size` tiles (float, normalised) with their per-patch targets."""
    for epoch, path in _endless(shards, seed):
        data = _load(path)
        order = torch.randperm(len(data["tiles"]), generator=_generator(seed, epoch, path))
        for rows in order.split(size):
            batch = {key: value[rows] for key, value in data.items()}
            tensors = {**batch, "tiles": _normalised(batch["tiles"])}
            yield TrainBatch(tensors=tensors, images=len(rows), tiles=len(rows))


def question_batches(
    shards: Sequence[Path], plan: BatchPlan, seed: int, *, ignore_ids: Sequence[int]
) -> Iterator[TrainBatch]:
    """Endless batches of packed rows, arguments of the model; rows of one length stand together.

    Args:
        shards: files that `draw_shard` wrote.
        plan: batch limits and what is supervised.
        seed: decides the order.
        ignore_ids: ids that are never supervised, even with the prompt (the image placeholder).
    """
    for epoch, path in _endless(shards, seed):
        data = _load(path)
        rng = random.Random(f"{seed}/{epoch}/{path.name}")
        groups = _groups(data, "row", plan, rng)
        text_groups = _groups(data, "text", plan, rng)
        wanted = round(len(groups) * plan.text_share)
        jobs = [("row", g) for g in groups] + [("text", g) for g in text_groups[:wanted]]
        rng.shuffle(jobs)
        for prefix, group in jobs:
            yield _collate(data, prefix, group, plan, ignore_ids)


def text_batches(
    shards: Sequence[Path], plan: BatchPlan, seed: int, *, ignore_ids: Sequence[int]
) -> Iterator[TrainBatch]:
    """Endless batches of text-only documents."""
    for epoch, path in _endless(shards, seed):
        data = _load(path)
        rng = random.Random(f"{seed}/{epoch}/{path.name}")
        for group in _groups(data, "text", plan, rng):
            yield _collate(data, "text", group, plan, ignore_ids)


def _endless(shards: Sequence[Path], seed: int) -> Iterator[tuple[int, Path]]:
    epoch = 0
    while True:
        order = sorted(shards)
        if epoch:
            random.Random(f"{seed}/{epoch}").shuffle(order)
        for path in order:
            yield epoch, path
        epoch += 1


def _generator(seed: int, epoch: int, path: Path) -> torch.Generator:
    return torch.Generator().manual_seed(
        random.Random(f"{seed}/{epoch}/{path.name}").getrandbits(60)
    )


def _groups(
    data: dict[str, Tensor], prefix: str, plan: BatchPlan, rng: random.Random
) -> list[list[int]]:
    """Rows in groups that keep within the plan's limits, in random order."""
    lengths = data[f"{prefix}.lengths"].tolist()
    tiles = data["tile_counts"].tolist() if prefix == "row" else [0] * len(lengths)
    rows = sorted(range(len(lengths)), key=lambda r: (tiles[r], lengths[r], rng.random()))
    groups: list[list[int]] = []
    for row in rows:
        group = groups[-1] if groups else []
        longest = max([lengths[row], *(lengths[r] for r in group)])
        full = (
            not group
            or len(group) >= plan.rows
            or longest * (len(group) + 1) > plan.tokens
            or sum(tiles[r] for r in group) + tiles[row] > plan.tiles
        )
        if full:
            groups.append([row])
        else:
            group.append(row)
    rng.shuffle(groups)
    return groups


def _collate(
    data: dict[str, Tensor],
    prefix: str,
    group: list[int],
    plan: BatchPlan,
    ignore_ids: Sequence[int],
) -> TrainBatch:
    """Right-padded arguments of the model; padding is a segment that nobody sees."""
    lengths = data[f"{prefix}.lengths"]
    ends = lengths.cumsum(0)
    spans = [slice(int(ends[r] - lengths[r]), int(ends[r])) for r in group]
    fill = {"labels": IGNORE_ID, "segment_ids": -1}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [
                data[f"{prefix}.{name}"][span].to(
                    torch.bool if dtype is torch.bool else torch.int64
                )
                for span in spans
            ],
            batch_first=True,
            padding_value=fill.get(name, 0),
        )
        for name, dtype in _ROW_FIELDS.items()
    }
    batch["attention_mask"] = batch["segment_ids"] >= 0
    if plan.supervise_prompt:
        batch["labels"] = _supervise_all(batch, ignore_ids)
    tokens = int(batch["attention_mask"].sum())
    supervised = int((batch["labels"] != IGNORE_ID).sum())
    if prefix == "text":
        batch.pop("images_seq_mask")
        return TrainBatch(tensors=batch, tokens=tokens, supervised=supervised)
    crops = data["crops"][group]
    batch["images"], batch["images_spatial_crop"] = _tiles(data, group, crops), crops[:, None]
    tiles = int((1 + crops.prod(dim=1)).sum())
    return TrainBatch(
        tensors=batch, tokens=tokens, supervised=supervised, images=len(group), tiles=tiles
    )


def _supervise_all(batch: dict[str, Tensor], ignore_ids: Sequence[int]) -> Tensor:
    """Every real text token is a target, but for the first of each segment and the placeholders."""
    segments = batch["segment_ids"]
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    keep = batch["attention_mask"] & ~starts
    for token in ignore_ids:
        keep &= batch["input_ids"] != token
    return torch.where(keep, batch["input_ids"], IGNORE_ID)


def _tiles(data: dict[str, Tensor], group: list[int], crops: Tensor) -> Tensor:
    """Normalised tiles [b, most, 3, s, s]; a picture of one tile gets its global view back."""
    counts = data["tile_counts"]
    ends = counts.cumsum(0)
    most = int((1 + crops.prod(dim=1)).max())
    side = data["tiles"].shape[-1]
    out = torch.zeros(len(group), most, 3, side, side)
    for slot, row in enumerate(group):
        tiles = _normalised(data["tiles"][int(ends[row] - counts[row]) : int(ends[row])])
        tiles = tiles.expand(2, -1, -1, -1) if len(tiles) == 1 else tiles
        out[slot, : len(tiles)] = tiles
    return out


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.5) / 0.5
