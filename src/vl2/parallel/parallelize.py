"""The one function that makes a single-device model a model of many ranks."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.parallel.activation_checkpoint import Recompute, recompute_activations
from vl2.parallel.compile_blocks import compile_blocks
from vl2.parallel.expert import shard_experts
from vl2.parallel.fsdp import shard_parameters
from vl2.parallel.mesh import Ranks
from vl2.parallel.pipeline_stage import keep_units, split_points


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """How blocks and layers run, on one rank as on many."""

    recompute: Recompute = "none"  # of the language model
    recompute_vision: Recompute = "none"
    compile: bool = False
    autocast: bool = False  # bfloat16 products on float32 weights


def parallelize_vl2(model: VL2Model, ranks: Ranks, blocks: Blocks) -> None:
    """Change `model` in place, whose weights are the same on every rank and frozen where they are.

    The order is fixed: a stage keeps its units; experts are dealt out, because recomputing has to
    repeat their exchange; compiled blocks contain what is recomputed; FSDP wraps what is compiled.
    A stage is then run by `pipeline.Pipeline`.

    Raises:
        ValueError: the layout does not fit the model.
    """
    meshes, layout = ranks.meshes, ranks.layout
    if layout.pipeline > 1:
        keep_units(model, stage_units(model.config, ranks))
    if meshes is not None and layout.expert > 1:
        shard_experts(model, meshes.experts["expert"])
    recompute_activations(model, blocks.recompute, blocks.recompute_vision)
    if blocks.compile:
        compile_blocks(model, autocast=blocks.autocast)
    if meshes is not None:
        shard_parameters(model, meshes, autocast=blocks.autocast)


def stage_units(config: VL2Config, ranks: Ranks) -> range:
    """The units of the model that this rank's stage of the pipeline holds."""
    return split_points(config, ranks.layout.pipeline)[ranks.rank // ranks.layout.data]
