"""The vision tower's warm-up: it learns to say what lies under each patch, and where that ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vl2.data.collate import TrainBatch
from vl2.data.synthetic import COLOURS, LETTERS, SHAPES
from vl2.model.vl2 import VL2Model
from vl2.recipes.nano_corpus import PATCH_LABELS
from vl2.train.task import StepReport

EDGE_BINS = 32
"""Classes of an edge's place on the tile: one of 3.5 pixels, a third of a coordinate's first digit.

Classes and not lengths, because the language model writes places digit by digit."""


class VisionWarmup(nn.Module):
    """The tower with linear heads for what lies under each patch; the heads are thrown away."""

    def __init__(self, model: VL2Model) -> None:
        super().__init__()
        width = model.config.vision_config.width
        self.side = model.config.vision_config.patches_per_side
        self.vision = model.vision
        self.heads = nn.ModuleDict(
            {
                "shape_id": nn.Linear(width, 1 + len(SHAPES)),
                "colour_id": nn.Linear(width, 1 + len(COLOURS)),
                "char_id": nn.Linear(width, 1 + len(LETTERS)),
                "edges": nn.Linear(width, 4 * EDGE_BINS),
            }
        )

    @property
    def module(self) -> nn.Module:
        """What the trainer trains."""
        return self

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        """Cross entropy of the three names, and of the four edges where there is an object."""
        [batch] = batches
        tensors = batch.tensors
        features = self.vision(tensors["tiles"]).flatten(0, 1)
        losses, report = [], {}
        for name in PATCH_LABELS:
            target = tensors[name].flatten().long()
            logits = self.heads[name](features)
            losses.append(F.cross_entropy(logits, target) + _foreground_loss(logits, target))
            hit = (logits.argmax(-1) == target)[target > 0].float()
            report[name] = hit.mean().item() if len(hit) else 1.0
        inside = tensors["box"].flatten(0, 2).abs().sum(-1) > 0
        edges = edge_classes(tensors["box"], self.side).flatten(0, 2)[inside]
        logits = self.heads["edges"](features[inside]).unflatten(-1, (4, EDGE_BINS))
        losses.append(F.cross_entropy(logits.flatten(0, 1), edges.flatten()))
        report["edges"] = (logits.argmax(-1) - edges).abs().float().mean().item() / EDGE_BINS
        loss = torch.stack(losses).sum()
        loss.backward()
        return StepReport(loss=loss.item(), values=report)

    def after_step(self) -> None:
        """Nothing follows."""

    def discard(self) -> None:
        """Nothing follows."""


def edge_classes(box: Float[Tensor, "n g g 4"], side: int) -> Int[Tensor, "n g g 4"]:
    """Class of each edge's place on the tile, from its distance to the patch's centre.

    Args:
        box: left, top, right, bottom relative to the centre, in tile sides, as in `dense_labels`.
        side: patches along a side of the tile.
    """
    centres = (torch.arange(side) + 0.5) / side
    x, y = centres.expand(side, side), centres[:, None].expand(side, side)
    places = box + torch.stack((x, y, x, y), dim=-1)
    return (places * EDGE_BINS).long().clamp(0, EDGE_BINS - 1)


def _foreground_loss(logits: Tensor, target: Tensor) -> Tensor:
    there = target > 0
    return F.cross_entropy(logits[there], target[there]) if there.any() else logits.sum() * 0
