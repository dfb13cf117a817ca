"""What a stage of the pipeline holds of the model, and what it computes.

The model is a row of units that may be cut between any two (paper section 4.1: the vision tower is
split at block granularity beside the language layers):

    vision embedding | each vision block | adaptor and token embedding | each layer | norm and head

The adaptor's unit holds the tower's last norm and its unused pool head, too. A stage keeps its
units under their whole names, so that checkpoints and optimiser states do not depend on the cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import VL2Config
from vl2.model.adaptor import arrange_tokens
from vl2.model.vl2 import VL2Model
from vl2.parallel.pipeline_batch import MicroBatch

TOKENS, TILES = 4096, 8
"""A typical row: the paper's sequence length, two fifths of it pictures of 210 tokens a tile."""

Cut = tuple[int, int, tuple[int, ...]]
"""The largest stage, the sum of the stages' squares, and where they begin and end."""


def arrange_unit(config: VL2Config) -> int:
    """Number of the unit after the vision blocks: adaptor and token embedding."""
    return 1 + config.vision_config.layers


def head_unit(config: VL2Config) -> int:
    """Number of the last unit: final norm and output head."""
    return arrange_unit(config) + config.language_config.num_hidden_layers + 1


def unit_costs(config: VL2Config, *, tokens: int = TOKENS, tiles: int = TILES) -> list[int]:
    """Floating point operations of each unit in one forward pass of one row.

    Two per weight and input of every matrix (only of experts that a token chooses), and
    attention's two products, of which a causal layer needs half. Norms, softmax and
    table look-ups are left out; going backward costs every unit the same multiple.

    Args:
        config: of the model.
        tokens: of the row.
        tiles: of its pictures, global views among them.
    """
    vision, language = config.vision_config, config.language_config
    patches = vision.patches_per_side**2
    with torch.device("meta"):
        parts = _parts(VL2Model(config))
    inputs = [tiles * patches] * arrange_unit(config) + [tiles * config.tokens_per_side**2]
    inputs += [tokens] * (len(parts) - len(inputs))
    costs = [2 * n * _weights(unit, config) for n, unit in zip(inputs, parts, strict=True)]
    values = language.v_head_dim if language.use_mla else language.head_dim
    for block in range(1, arrange_unit(config)):
        costs[block] += 4 * tiles * patches**2 * vision.width
    for layer in range(arrange_unit(config) + 1, head_unit(config)):
        costs[layer] += tokens**2 * language.num_attention_heads * (language.head_dim + values)
    return costs


def split_points(
    config: VL2Config, stages: int, *, tokens: int = TOKENS, tiles: int = TILES
) -> list[range]:
    """The units of each stage: the dearest stage is as cheap as can be, the others are even.

    Raises:
        ValueError: more stages than units, or a hybrid tower.
    """
    _require_siglip(config)
    costs = unit_costs(config, tokens=tokens, tiles=tiles)
    if not 1 <= stages <= len(costs):
        raise ValueError(
            f"parallel.pipeline is {stages}: this model has {len(costs)} units to share "
            f"({config.vision_config.layers} vision blocks, "
            f"{config.language_config.num_hidden_layers} layers and 3 more), give 1 to {len(costs)}"
        )
    sums = [0, *itertools.accumulate(costs)]
    best: dict[int, Cut] = {0: (0, 0, (0,))}  # by the number of units that the stages so far take
    for stage in range(1, stages + 1):
        most = len(costs) - (stages - stage)  # one is left for each later stage
        best = {
            end: min(
                _extend(c, sums[end] - sums[begin], end) for begin, c in best.items() if begin < end
            )
            for end in range(stage, most + 1)
        }
    return [range(*pair) for pair in itertools.pairwise(best[len(costs)][2])]


def keep_units(model: VL2Model, units: range) -> None:
    """Take every unit out of the model but the units of one stage.

    What is left keeps its names. Single parts become None; lists of blocks and layers keep the
    blocks and layers of the stage, by their own numbers.

    Raises:
        ValueError: the model has a hybrid tower.
    """
    _require_siglip(model.config)
    for number, unit in enumerate(_parts(model)):
        for owner, name in unit if number not in units else ():
            if isinstance(owner, nn.ModuleList):
                delattr(owner, name)
            else:
                replace(owner, name, None)
    if head_unit(model.config) not in units:
        replace(model.language.model, "norm", nn.Identity())


def replace(owner: nn.Module, name: str, value: object) -> None:
    """Put something of another type in the place of a module's part or method."""
    setattr(owner, name, value)


def run_tower(
    model: VL2Model, units: range, x: Tensor | None, micro: MicroBatch
) -> Float[Tensor, "n p w"]:
    """The stage's part of the vision tower, from tiles or from the stage before."""
    features = _embed_tiles(model, micro) if x is None else x
    for block in model.vision.blocks:
        features = block(features)
    return model.vision.norm(features) if arrange_unit(model.config) in units else features


def embed(
    model: VL2Model, features: Float[Tensor, "n p w"] | None, micro: MicroBatch
) -> Float[Tensor, "b t h"]:
    """Token embeddings with picture features in place of the placeholders.

    Args:
        model: with the adaptor's unit.
        features: of all tiles, blank ones too; None when the step has no pictures.
        micro: says which tiles are whose.
    """
    device = model.image_newline.device
    embeds = model.language.embed(micro.tensors["input_ids"].to(device))
    if features is None:
        return embeds
    tokens = model.projector(features)
    if not micro.grids:  # the gradient is zero, but it is there: other ranks may wait for it
        unused = tokens.sum() + model.image_newline.sum() + model.view_seperator.sum()
        return embeds + (unused * 0).to(embeds.dtype)
    counts = [len(view) for view in micro.views]
    parts = tokens[: sum(counts)].split(counts)
    pictures = [
        arrange_tokens(
            part.expand(grid.tiles, -1, -1),
            grid,
            newline=model.image_newline,
            separator=model.view_seperator,
            global_first=model.config.global_view_pos == "head",
        )
        for part, grid in zip(parts, micro.grids, strict=True)
    ]
    mask = micro.tensors["images_seq_mask"].to(device)
    return embeds.masked_scatter(mask[..., None], torch.cat(pictures).to(embeds.dtype))


def add_gradient(hidden: Float[Tensor, "*s"], loss: Float[Tensor, ""]) -> Float[Tensor, "*s"]:
    """`hidden` as it is; going backward, the gradient of `loss` is added to what passes.

    A stage before the last one has no loss of its own to call `backward` on.
    """
    return _AddGradient.apply(hidden, loss)


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.detach()
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones_like(ctx.like)


def _require_siglip(config: VL2Config) -> None:
    if config.vision_config.tower != "siglip":
        raise ValueError(
            f"parallel.pipeline cannot cut a {config.vision_config.tower} tower: set it to 1, or "
            "train a model with a siglip tower"
        )


def _embed_tiles(model: VL2Model, micro: MicroBatch) -> Float[Tensor, "n p w"]:
    """All views one after the other, then blank tiles."""
    place, size = model.vision.pos_embed, model.config.vision_config.image_size
    views = [view.to(place.device, place.dtype, non_blocking=True) for view in micro.views]
    blank = place.new_zeros((micro.tiles - sum(map(len, views)), 3, size, size))
    return model.vision.patch_embed(torch.cat((*views, blank))) + place


def _extend(cut: Cut, cost: int, end: int) -> Cut:
    largest, squares, ends = cut
    return max(largest, cost), squares + cost**2, (*ends, end)


def _parts(model: VL2Model) -> list[list[tuple[nn.Module, str]]]:
    """Owner and name of every part of each unit."""
    vision, decoder = model.vision, model.language.model
    arrange = [(vision, "norm"), (vision, "attn_pool"), (decoder, "embed_tokens")]
    arrange += [(model, name) for name in ("projector", "image_newline", "view_seperator")]
    return [
        [(vision, "patch_embed"), (vision, "pos_embed")],
        *_each(vision.blocks),
        arrange,
        *_each(decoder.layers),
        [(decoder, "norm"), (model.language, "lm_head")],
    ]


def _each(blocks: nn.ModuleList) -> list[list[tuple[nn.Module, str]]]:
    return [[(blocks, name)] for name, _ in blocks.named_children()]


def _weights(unit: Sequence[tuple[nn.Module, str]], config: VL2Config) -> int:
    """Weights of a unit that multiply each input."""
    experts = config.language_config.n_routed_experts or 1
    chosen = config.language_config.num_experts_per_tok or 1
    total = 0
    for owner, name in unit:
        part = getattr(owner, name)
        if not isinstance(part, nn.Module) or name in ("attn_pool", "embed_tokens"):
            continue
        for weight in part.parameters():
            share = weight.numel() * chosen // experts if weight.ndim == 3 else weight.numel()
            total += share if weight.ndim > 1 else 0
    return total
