"""Floating point operations of a training step, by part of the model.

A matrix that n inputs meet takes, with 2 operations per weight and input,

    forward    2 * weights * n
    backward   2 * weights * n   if the matrix trains: the gradient of its weights
             + 2 * weights * n   if something in front of it trains: the gradient of its inputs

so 6 in all where everything trains, 4 where a frozen layer only lets the gradient pass (the
language model of the first stage), and 2 where nothing in front of it trains. Of E routed experts
a token meets k. What is counted per what, for tiles of P patches:

    vision      2 * weights * P + 4 * P^2 * width per block    per tile that is encoded
    projector   2 * weights * (tokens of a tile)               per tile that is encoded
    language    2 * weights       attention, dense and shared MLPs, routers      per token
    experts     2 * weights * k / E                                              per token
    attention   2 * heads * (width of a key + width of a value)     per pair of a token and one that
                it sees: L (L + 1) / 2 in a document of L tokens; twice that going backward
    head        2 * weights                        per supervised token; no other reaches the head

Norms, softmax, rotary positions, routing, the optimiser, and padding are left out. What recomputing
adds is counted apart: the model FLOP utilisation (MFU) is of the operations above alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from vl2.config import LanguageConfig, VL2Config
from vl2.model.vl2 import VL2Model
from vl2.parallel.pipeline_stage import arrange_unit, head_unit
from vl2.train.config import ComputeConfig

PARTS: tuple[str, ...] = ("vision", "projector", "language", "experts", "attention", "head")

Sizes = Mapping[str, float]
"""Sizes of a step: encoded_tiles, tokens, pairs, supervised (see `metrics.batch_size`)."""

UnitPlace = tuple[int, int]
"""Unit of the pipeline that a parameter is in; 0 for what reads the unit's input, else 1."""

UNUSED = ("vision.attn_pool.", "vision_high.", "projector_high.")
"""The pool head is run by nothing; the hybrid tower's second half, which no recipe has, is left
out."""
LOOKED_UP = ("vision.pos_embed", "language.model.embed_tokens.weight")
FIRST = re.compile(
    r"vision\.(patch_embed\.proj|blocks\.\d+\.attn\.qkv)\b.*|projector\.layers\.0\b.*|"
    r".*\.self_attn\.(q_proj|q_a_proj|k_proj|v_proj|kv_a_proj_with_mqa)\b.*"
)
"""Parameters that read what comes into their unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Operations of some matrices of one unit, for each of what they are counted per."""

    unit: int  # of the pipeline, see `parallel.pipeline_stage`
    part: str  # one of PARTS
    per: str  # a key of `Sizes`
    forward: float
    backward: float
    again: float  # forward once more, to have activations that were not kept


def model_work(model: VL2Model, compute: ComputeConfig) -> tuple[Work, ...]:
    """Operations of a model in training, by what they are counted per.

    Args:
        model: whole, on any device; what trains in it is marked by `requires_grad`.
        compute: says what is computed twice.
    """
    config = model.config
    trained = [place_of(n, config) for n, p in model.named_parameters() if p.requires_grad]
    lowest = min(trained, default=(head_unit(config) + 1, 0))
    found = [
        _matrix(name, parameter, config, lowest)
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name not in LOOKED_UP and not name.startswith(UNUSED)
    ]
    found += _scores(config, lowest)
    return tuple(_with_recomputing(found, config, compute, lowest))


def flops_by_part(work: Iterable[Work], sizes: Sizes) -> dict[str, float]:
    """Operations of the model in a step, by part, without recomputing."""
    found: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for item in work:
        found[item.part] += (item.forward + item.backward) * sizes[item.per]
    return found


def step_flops(work: Iterable[Work], sizes: Sizes) -> float:
    """Operations of the model in a step, without recomputing: what the MFU counts."""
    return sum(flops_by_part(work, sizes).values())


def recomputed_flops(work: Iterable[Work], sizes: Sizes) -> float:
    """Operations of recomputing, which the hardware does beside the model's own."""
    return sum(item.again * sizes[item.per] for item in work)


def document_pairs(lengths: Iterable[int]) -> int:
    """Pairs of a token and one that it sees, in documents that do not see each other."""
    return sum(length * (length + 1) // 2 for length in lengths)


def planned_sizes(config: VL2Config, *, rows: int, length: int, tiles: float) -> dict[str, float]:
    """Sizes of a step, estimated before its data is known.

    All tokens that are no picture's count as supervised: an upper estimate where prompts are
    masked. A tile is counted as the rows of its tokens with their newlines, 210 in the released
    models.

    Args:
        config: of the model.
        rows: sequences of the step.
        length: of each, full of tokens of one document.
        tiles: that are encoded, mean of a sequence.
    """
    side = config.tokens_per_side
    return {
        "encoded_tiles": rows * tiles,
        "tokens": rows * length,
        "pairs": rows * document_pairs([length]),
        "supervised": rows * max(length - tiles * side * (side + 1), 0),
    }


def place_of(name: str, config: VL2Config) -> UnitPlace:
    """The place of a parameter in the order of the computation."""
    words = name.split(".")
    if name.startswith(("vision.patch_embed", "vision.pos_embed")):
        unit = 0
    elif name.startswith("vision.blocks."):
        unit = 1 + int(words[2])
    elif name.startswith("language.model.layers."):
        unit = arrange_unit(config) + 1 + int(words[3])
    elif name.startswith(("language.model.norm", "language.lm_head")):
        unit = head_unit(config)
    else:
        unit = arrange_unit(config)
    return unit, 0 if FIRST.fullmatch(name) and not name.endswith("lora_B") else 1


def _matrix(name: str, parameter: nn.Parameter, config: VL2Config, lowest: UnitPlace) -> Work:
    """One matrix, or one stack of experts' matrices."""
    place = place_of(name, config)
    part, per, inputs = _kind(name, config)
    weights = float(parameter.numel())
    if part == "experts":
        weights *= (config.language_config.num_experts_per_tok or 0) / parameter.shape[0]
    forward = 2 * weights * inputs
    gradients = int(parameter.requires_grad) + int(place > lowest)
    return Work(
        unit=place[0], part=part, per=per, forward=forward, backward=gradients * forward, again=0.0
    )


def _kind(name: str, config: VL2Config) -> tuple[str, str, int]:
    """Part of a matrix, what its inputs are counted by, and inputs for each of them."""
    if name.startswith("vision."):
        return "vision", "encoded_tiles", config.vision_config.patches_per_side**2
    if name.startswith("projector."):
        return "projector", "encoded_tiles", config.tokens_per_side**2
    if name.startswith("language.lm_head."):
        return "head", "supervised", 1
    return ("experts" if ".experts." in name else "language"), "tokens", 1


def _scores(config: VL2Config, lowest: UnitPlace) -> list[Work]:
    """Attention's own two products, in tower and language model."""
    vision = config.vision_config
    tower = 4.0 * vision.patches_per_side**4 * vision.width
    pairs = 2.0 * pair_width(config.language_config)
    blocks = [(1 + number, "vision", "encoded_tiles", tower) for number in range(vision.layers)]
    first = arrange_unit(config) + 1
    layers = [(unit, "attention", "pairs", pairs) for unit in range(first, head_unit(config))]
    return [
        Work(
            unit=unit,
            part=part,
            per=per,
            forward=forward,
            backward=2 * forward * ((unit, 1) > lowest),
            again=0.0,
        )
        for unit, part, per, forward in blocks + layers
    ]


def pair_width(config: LanguageConfig) -> int:
    """Multiplications for each pair of tokens in one layer's attention."""
    value = config.v_head_dim if config.use_mla else config.head_dim
    return config.num_attention_heads * (config.head_dim + value)


def _with_recomputing(
    work: Iterable[Work], config: VL2Config, compute: ComputeConfig, lowest: UnitPlace
) -> Iterable[Work]:
    """`selective` keeps the results of products; the head's logits are made twice in any case."""
    whole = {"vision": compute.recompute_vision == "full", "head": True}
    blocks = [*range(1, arrange_unit(config)), *range(arrange_unit(config) + 1, head_unit(config))]
    for item in work:
        twice = whole.get(item.part, compute.recompute == "full")
        inside = item.unit in blocks or item.part == "head"
        again = item.forward if twice and inside and item.unit >= lowest[0] else 0.0
        yield Work(
            unit=item.unit,
            part=item.part,
            per=item.per,
            forward=item.forward,
            backward=item.backward,
            again=again,
        )
