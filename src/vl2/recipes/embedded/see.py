"""The tower's own stage: the place of a character asks the patch that holds it for its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vl2.data.collate import TrainBatch
from vl2.data.make.fonts import ASCII
from vl2.model.vl2 import VL2Model
from vl2.recipes.embedded.shards import to_pixels
from vl2.recipes.embedded.tiles import CELLS
from vl2.train.task import StepReport
from vl2.train.working_copy import WorkingCopy

EXAM_TILES = 10
"""Tiles that are examined at a time."""


class PlaceReader(nn.Module):
    """The tower with a head that is told a place within a patch; the head is thrown away."""

    def __init__(self, model: VL2Model) -> None:
        super().__init__()
        config = model.config.vision_config
        self.side, self.patch = config.patches_per_side, config.patch_size
        self.vision = model.vision
        self.heads = nn.ModuleDict(
            {
                "cell": nn.Embedding(CELLS * CELLS, config.width),
                "hidden": nn.Linear(config.width, config.width),
                "char": nn.Linear(config.width, 1 + len(ASCII)),
            }
        )

    def forward(
        self, tiles: Float[Tensor, "n 3 s s"], places: Int[Tensor, "m 4"]
    ) -> Float[Tensor, "m c"]:
        """Logits of the character at each place (tile, x, y, _)."""
        features = self.vision(tiles)
        tile, x, y = places[:, 0], places[:, 1], places[:, 2]
        column, row = (v // self.patch for v in (x, y))
        held = features[tile, row * self.side + column]
        cell = (y % self.patch * CELLS // self.patch) * CELLS + x % self.patch * CELLS // self.patch
        hidden = F.gelu(self.heads["hidden"](held) + self.heads["cell"](cell))
        return self.heads["char"](hidden)


class SeeTask:
    """Cross entropy over the places.

    Args:
        module: trained; products run on its bfloat16 twins.
    """

    def __init__(self, module: PlaceReader) -> None:
        self.module = module
        self.twin = WorkingCopy(module)

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Gradients of the mean over the micro batches, and the share of characters named right."""
        self.twin.refresh()

        def work(reader: PlaceReader, batch: TrainBatch) -> tuple[float, float, float]:
            tiles, places = batch.tensors["tiles"], batch.tensors["places"]
            logits = reader(tiles.to(torch.bfloat16), places).float()
            target = places[:, 3]
            loss = F.cross_entropy(logits, target) / len(batches)
            loss.backward()
            hit = (logits.argmax(-1) == target).float()
            there = target > 0
            return loss.item(), hit[there].mean().item(), hit[~there].mean().item()

        losses, chars, empty = zip(*self.twin.run(batches, work), strict=True)
        return StepReport(loss=sum(losses), values={"chars": mean(chars), "empty": mean(empty)})

    def after_step(self) -> None:
        """Nothing follows."""

    def discard(self) -> None:
        """Nothing follows."""


@torch.no_grad()
def named_share(reader: PlaceReader, data: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares of a shard's characters that are named right.

    Args:
        reader: in float32.
        data: what `draw_tiles` gave.
    """
    hits = []
    for start in range(0, len(data["tiles"]), EXAM_TILES):
        tiles = to_pixels(data["tiles"][start : start + EXAM_TILES])
        places = data["places"].long()
        mine = places[(places[:, 0] >= start) & (places[:, 0] < start + EXAM_TILES)].clone()
        mine[:, 0] -= start
        hits.append(reader(tiles, mine).argmax(-1) == mine[:, 3])
    return {"chars": torch.cat(hits).float().mean().item()}
