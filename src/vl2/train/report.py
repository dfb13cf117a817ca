"""What a run will do, told before it does it: parts that train, memory of one device, FLOPs.

The formulas are in `train/memory.py` and `train/flops.py`. Estimates for planning, not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from vl2.checkpoint.count import count_parameters, model_shapes
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.parallel.pipeline_stage import TILES
from vl2.train.config import TrainConfig
from vl2.train.flops import flops_by_part, model_work, planned_sizes, recomputed_flops
from vl2.train.memory import most_tiles, rank_memory, unit_bytes
from vl2.train.select import select


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, for listings."""
    first = name.split(".")[0]
    return "specials" if first in ("image_newline", "view_seperator") else first


def trained_parts(module: nn.Module) -> dict[str, dict[str, int]]:
    """Numbers that train and that are frozen, by part of the model."""
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        (trained if parameter.requires_grad else frozen)[part_of(name)] += parameter.numel()
    return {"trained": dict(trained), "frozen": dict(frozen)}


def estimate(
    config: TrainConfig, model: VL2Config, parts: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Memory by part, FLOPs of a step, and tokens of the run; full sequences, and `TILES` in each.

    Args:
        config: of the run.
        model: its configuration.
        parts: numbers that train and that are frozen, see `trained_parts`.
    """
    data = config.data
    skeleton = build_skeleton(model)
    select(skeleton, config)
    memory = rank_memory(unit_bytes(skeleton, config), model, config)
    work = model_work(skeleton, config.compute)
    tiles = min(TILES, most_tiles(model, data.sequence_length))
    sizes = planned_sizes(model, rows=data.batch_size, length=data.sequence_length, tiles=tiles)
    by_part = flops_by_part(work, sizes)
    trained, frozen = (sum(parts[kind].values()) for kind in ("trained", "frozen"))
    active = count_parameters(model, model_shapes(model)).active
    return {
        "parameters": {"trained": trained, "frozen": frozen, "active_per_token": active},
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "flops_per_step": sum(by_part.values()),
        "flops_by_part": by_part,
        "recomputed_flops_per_step": recomputed_flops(work, sizes),
        "tiles_per_sequence": tiles,
        "tokens_per_step": data.batch_size * data.sequence_length,
        "tokens_of_the_run": data.batch_size * data.sequence_length * config.steps,
    }
