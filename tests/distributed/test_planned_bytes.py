"""What ranks send each other in a step is what the planner says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from tests.distributed.launch import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vl2 import geometry
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.data.collate import Sample, TrainBatch, collate_rows
from vl2.geometry import TileGrid
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.parallel.config import Layout, ParallelConfig
from vl2.parallel.mesh import join, leave
from vl2.parallel.parallelize import Blocks, parallelize_vl2
from vl2.parallel.pipeline_stage import head_unit
from vl2.processing.inputs import ModelInputs
from vl2.recipes.stages import RECIPES
from vl2.train.cluster import GPUS, Run, exchanged_bytes
from vl2.train.config import BalanceConfig, ComputeConfig, TrainConfig
from vl2.train.flops import model_work, planned_sizes
from vl2.train.memory import UnitBytes, is_block, lowest_unit, total, unit_bytes
from vl2.train.select import select
from vl2.train.task import LanguageTask

TOKENS = 40
LAYOUTS = {
    "fsdp": Layout(1, 1, 2, 1),
    "experts": Layout(1, 1, 1, 2),
    "copies": Layout(1, 2, 1, 1),
}
MICRO_BATCHES = 2
RUNS = [("pretrain", True), ("pretrain", False), ("align", True)]
"""Stage, and whether under autocast."""


class Sent(TorchDispatchMode):
    """Bytes that collectives gather, scatter, exchange, and add up over replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        name = str(operation)
        for kind, place in (("allgather_base", 0), ("reduce_scatter_base", 1)):
            if kind in name:
                self.bytes[kind] += _size(args[place])
        backward = torch._C._current_graph_task_id() >= 0
        if "allreduce_" in name and backward:  # what is logged is added up outside of it
            self.bytes["allreduce"] += _size(args[0][0])
        if "all_to_all_single" in name and args[0].is_floating_point():
            self.bytes["all_to_all"] += _size(args[0])
        return operation(*args, **(kwargs or {}))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def config_of(stage: str, autocast: bool) -> TrainConfig:
    recipe = RECIPES["debug_align"]()
    return replace(
        recipe,
        stage=stage,
        data=replace(recipe.data, micro_batch=1, sequence_length=TOKENS),
        compute=ComputeConfig(autocast=autocast, recompute="full", recompute_vision="full"),
    )


def batch_of(config: VL2Config) -> TrainBatch:
    """One row of a picture and text."""
    size, grid = config.vision_config.image_size, TileGrid(wide=1, high=1)
    places = geometry.image_tokens(config.tokens_per_side, grid)
    ids = torch.arange(TOKENS) + 10
    inputs = ModelInputs(
        input_ids=ids,
        labels=torch.where(torch.arange(TOKENS) < places, IGNORE_ID, ids),
        images=torch.randn(2, 3, size, size),
        images_seq_mask=torch.arange(TOKENS) < places,
        images_spatial_crop=torch.tensor([[1, 1]]),
    )
    return collate_rows([[Sample(source=0, position=0, row=0, inputs=inputs)]], pad_id=2)


def sent_bytes() -> dict[str, list[dict[str, int]]]:
    """What this rank sends in a step, for each of LAYOUTS and RUNS."""
    return {name: _sent_bytes(layout) for name, layout in LAYOUTS.items()}


def _sent_bytes(layout: Layout) -> list[dict[str, int]]:
    ranks = join(ParallelConfig(replicate=layout.replicate, expert=layout.expert), "cpu")
    found = []
    for stage, autocast in RUNS:
        config = config_of(stage, autocast)
        model = VL2Model(VL2Config.preset("debug_base"))
        model.init_weights(torch.Generator().manual_seed(0))
        select(model, config)
        blocks = Blocks(recompute="full", recompute_vision="full", autocast=autocast)
        parallelize_vl2(model.train(), ranks, blocks)
        task = LanguageTask(model, BalanceConfig(), autocast=autocast, ranks=ranks)
        sent = Sent()
        with sent:
            task.accumulate([batch_of(model.config)] * MICRO_BATCHES)
        found.append(dict(sent.bytes))
    leave()
    return found


def planned_bytes(layout: Layout, stage: str, autocast: bool) -> dict[str, float]:
    """The same from the formulas."""
    config, model = config_of(stage, autocast), VL2Config.preset("debug_base")
    skeleton = build_skeleton(model)
    select(skeleton, config)
    parameters = unit_bytes(skeleton, config, layout)
    blocks = total(item for unit, item in enumerate(parameters) if is_block(unit, model))
    around = total(item for unit, item in enumerate(parameters) if not is_block(unit, model))
    run = Run(
        config=config,
        model=model,
        work=model_work(skeleton, config.compute),
        sizes=planned_sizes(model, rows=1, length=TOKENS, tiles=1),
        lowest=lowest_unit(parameters),
        gpu=GPUS["a100"],
    )

    def moved(item: UnitBytes) -> tuple[int, int]:
        """Gathered and sent back; a group of one rank needs no collective."""
        dense, experts = layout.shard * layout.expert > 1, layout.shard > 1
        return (
            item.dense_in * dense + item.experts_in * experts,
            item.dense_out * dense + item.experts_out * experts,
        )

    (gathered, back), (once, back_once) = moved(blocks), moved(around)
    exchanged = exchanged_bytes(run, layout, range(head_unit(model) + 1))
    micro_batch = {
        "allgather_base": 2 * gathered + once,
        "reduce_scatter_base": back + back_once,
        # what stays on the rank passes through the collective, too
        "all_to_all": exchanged * layout.expert / max(layout.expert - 1, 1),
    }
    planned = {kind: MICRO_BATCHES * size for kind, size in micro_batch.items()}
    # over copies only once
    planned["allreduce"] = total(parameters).gradients * (layout.replicate > 1)
    return planned


def test_ranks_send_what_is_planned():
    """To the byte; of the rows that go to experts, the mean over the ranks."""
    one, two = run_ranks(2, sent_bytes, group=False)
    for name, layout in LAYOUTS.items():
        for number, (stage, autocast) in enumerate(RUNS):
            planned = planned_bytes(layout, stage, autocast)
            for kind in ("allgather_base", "reduce_scatter_base", "allreduce"):
                sent = [rank[name][number].get(kind, 0) for rank in (one, two)]
                assert sent == [planned[kind]] * 2, (name, stage, autocast, kind)
            sent = [rank[name][number].get("all_to_all", 0) for rank in (one, two)]
            assert sum(sent) / 2 == planned["all_to_all"], (name, stage, autocast)
            assert (planned["all_to_all"] > 0) == (layout.expert > 1)
