"""Which layouts of a run fit into so many GPUs, and how long each takes: planned, not measured.

The formulas are in `train/flops.py`, `train/memory.py` and `train/cluster.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vl2.checkpoint.sizes import format_bytes
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.parallel.config import Layout, ParallelConfig
from vl2.parallel.pipeline_stage import TILES, head_unit, split_points
from vl2.train import cluster
from vl2.train.cluster import GPUS, Run
from vl2.train.config import TrainConfig
from vl2.train.flops import flops_by_part, model_work, planned_sizes, recomputed_flops
from vl2.train.memory import (
    UnitBytes,
    lowest_unit,
    most_tiles,
    rank_memory,
    unit_bytes,
)
from vl2.train.select import select

DAY = 86_400
LISTED = 5
"""Layouts of a plan that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One layout's memory and time."""

    layout: Layout
    micro_batches: int  # of a rank in a step
    memory: Mapping[str, int]  # bytes of the fullest rank by part
    seconds: Mapping[str, float]  # of a step by what they are spent on
    exchanged: float  # bytes that a rank sends to other ranks' experts in a step
    room: float  # bytes of the GPU

    @property
    def needed(self) -> int:
        """Bytes that the fullest rank needs."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the GPU has the bytes that are needed."""
        return self.needed <= self.room

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


class LayoutPlanner:
    """Plans one run on one kind of GPU; what layouts share is computed once."""

    def __init__(
        self, config: TrainConfig, model: VL2Config, gpu: str, *, tiles: float = TILES
    ) -> None:
        """Count the run.

        Args:
            config: of the run.
            model: its configuration.
            gpu: a key of `cluster.GPUS`.
            tiles: that a sequence has encoded, on average.

        Raises:
            ValueError: an unknown GPU, or more tiles than a sequence has room for.
        """
        data, most = config.data, most_tiles(model, config.data.sequence_length)
        if gpu not in GPUS:
            raise ValueError(f"gpu is {gpu!r}: expected one of {', '.join(GPUS)}")
        if not 0 <= tiles <= most:
            raise ValueError(
                f"tiles is {tiles:g}: expected 0 to {most}, whose tokens fill a sequence of "
                f"{data.sequence_length}"
            )
        self._config, self._skeleton = config, build_skeleton(model)
        select(self._skeleton, config)
        self._parameters: dict[tuple[int, int], tuple[UnitBytes, ...]] = {}
        self._stages: dict[int, list[range]] = {}
        self.tiles, self.tokens = tiles, data.batch_size * data.sequence_length
        self.sizes = planned_sizes(
            model, rows=data.batch_size, length=data.sequence_length, tiles=tiles
        )
        share = data.micro_batch / data.batch_size
        self.run = Run(
            config=config,
            model=model,
            work=model_work(self._skeleton, config.compute),
            sizes={name: size * share for name, size in self.sizes.items()},
            lowest=lowest_unit(unit_bytes(self._skeleton, config)),
            gpu=GPUS[gpu],
        )

    @property
    def flops(self) -> dict[str, float]:
        """Operations of the model in a step by part, without recomputing."""
        return flops_by_part(self.run.work, self.sizes)

    def plan(self, layout: Layout) -> Planned:
        """Memory and time of one layout.

        Raises:
            ValueError: it does not divide the model or the batch.
        """
        obstacle = find_obstacle(self.run.config, self.run.model, layout)
        if obstacle is not None:
            raise ValueError(obstacle)
        run, parameters, stages = self.run, self._bytes(layout), self._cut(layout.pipeline)
        micro_batches = self._micro_batches(layout)
        gpipe = run.config.parallel.schedule == "gpipe"
        memories = [
            rank_memory(
                parameters,
                run.model,
                run.config,
                layout,
                units=units,
                in_flight=micro_batches if gpipe else min(layout.pipeline - number, micro_batches),
            )
            for number, units in enumerate(stages)
        ]
        exchanged = max(cluster.exchanged_bytes(run, layout, units) for units in stages)
        return Planned(
            layout=layout,
            micro_batches=micro_batches,
            memory=max(memories, key=lambda parts: sum(parts.values())),
            seconds=cluster.step_seconds(run, layout, parameters, stages, micro_batches),
            exchanged=exchanged * micro_batches,
            room=run.gpu.memory,
        )

    def layouts(self, gpus: int) -> list[Planned]:
        """Every layout of so many GPUs that the run divides into, the fastest first.

        Raises:
            ValueError: there is none.
        """
        config, model = self.run.config, self.run.model
        possible = [item for item in _layouts(gpus) if find_obstacle(config, model, item) is None]
        found = [self.plan(item) for item in possible]
        if not found:
            data = self.run.config.data
            raise ValueError(
                f"{gpus} GPUs cannot share steps of data.batch_size {data.batch_size} in "
                f"micro batches of {data.micro_batch}, in any layout: make it a multiple of "
                f"{gpus * data.micro_batch}, or take fewer GPUs"
            )
        return sorted(found, key=lambda planned: planned.step)

    def report(self, planned: Planned) -> dict[str, Any]:
        """One layout as plain data."""
        per_day = self.tokens / planned.step * DAY
        peak = self.run.gpu.flops * planned.layout.world
        return {
            "layout": planned.layout._asdict(),
            "micro_batches": planned.micro_batches,
            "fits": planned.fits,
            "memory_bytes": {**planned.memory, "total": planned.needed},
            "step_seconds": {**planned.seconds, "total": planned.step},
            "mfu": sum(self.flops.values()) / planned.step / peak,
            "tokens_per_day": per_day,
            "days": self.tokens * self.run.config.steps / per_day,
            "all_to_all_bytes_per_rank": planned.exchanged,
        }

    def assumptions(self) -> dict[str, Any]:
        """Everything that the plan takes for granted."""
        gpu = self.run.gpu
        return {
            "gpu": {name: getattr(gpu, name) for name in gpu.__slots__},
            "gpus_per_node": cluster.NODE,
            "tiles_per_sequence": self.tiles,
            "efficiency": cluster.EFFICIENCY,
            "memory_share": cluster.MEMORY_SHARE,
            "link_share": cluster.LINK_SHARE,
            "launch_seconds": cluster.LAUNCHES,
            "hop_seconds": {"inside": cluster.HOP_INSIDE, "between": cluster.HOP_BETWEEN},
            "tile_imbalance": cluster.TILE_IMBALANCE,
            "expert_imbalance": cluster.EXPERT_IMBALANCE,
        }

    def _micro_batches(self, layout: Layout) -> int:
        data = self.run.config.data
        return data.batch_size // (data.micro_batch * layout.data)

    def _bytes(self, layout: Layout) -> tuple[UnitBytes, ...]:
        key = layout.shard, layout.expert
        if key not in self._parameters:
            self._parameters[key] = unit_bytes(self._skeleton, self._config, layout)
        return self._parameters[key]

    def _cut(self, stages: int) -> list[range]:
        model, length = self.run.model, self.run.config.data.sequence_length
        if stages == 1:
            return [range(head_unit(model) + 1)]
        if stages not in self._stages:
            tiles = max(round(self.tiles), 1)
            self._stages[stages] = split_points(model, stages, tokens=length, tiles=tiles)
        return self._stages[stages]


def find_obstacle(config: TrainConfig, model: VL2Config, layout: Layout) -> str | None:
    """Why a layout cannot run, in one line."""
    data = config.data
    experts, units = model.language_config.n_routed_experts or 0, head_unit(model) + 1
    if layout.expert > 1 and (not experts or experts % layout.expert):
        return (
            f"parallel.expert is {layout.expert}: expected a divisor of the model's "
            f"{experts} routed experts"
        )
    if layout.pipeline > 1 and model.vision_config.tower == "hybrid":
        return "parallel.pipeline cannot cut a hybrid tower: set it to 1"
    if layout.pipeline > units:
        return (
            f"parallel.pipeline is {layout.pipeline}: this model has {units} units to share, "
            f"give 1 to {units}"
        )
    if data.batch_size % (data.micro_batch * layout.data):
        return (
            f"data.batch_size is {data.batch_size}: expected a multiple of data.micro_batch x "
            f"replicate x shard x expert = {data.micro_batch} x {layout.data}"
        )
    if config.parallel.schedule != "1f1b":
        return None
    if (steps := data.batch_size // (data.micro_batch * layout.data)) < layout.pipeline:
        return (
            f"{steps} micro batches in a step for {layout.pipeline} pipeline stages: "
            "lower data.micro_batch or parallel.pipeline, or set parallel.schedule=gpipe"
        )
    return None


def plan_training(
    config: TrainConfig,
    model: VL2Config,
    *,
    gpus: int,
    gpu: str,
    layout: ParallelConfig | None = None,
    tiles: float = TILES,
) -> dict[str, Any]:
    """The best layouts that fit, or the one that was asked for.

    Args:
        config: of the run.
        model: its configuration.
        gpus: number of them.
        gpu: a key of `cluster.GPUS`.
        layout: only this one.
        tiles: that a sequence has encoded, on average.

    Raises:
        ValueError: nothing fits, or the numbers do not divide.
    """
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}: expected at least 1")
    planner = LayoutPlanner(config, model, gpu, tiles=tiles)
    asked = None if layout is None else layout.layout(gpus)
    planned = planner.layouts(gpus) if asked is None else [planner.plan(asked)]
    fitting = [item for item in planned if item.fits]
    if not fitting:
        raise ValueError(_too_large(min(planned, key=lambda item: item.needed), gpu))
    return {
        "recipe": config.name,
        "gpu": gpu,
        "gpus": gpus,
        "tokens_per_step": planner.tokens,
        "tokens_of_the_run": planner.tokens * config.steps,
        "flops_per_step": sum(planner.flops.values()),
        "flops_by_part": planner.flops,
        "recomputed_flops_per_step": recomputed_flops(planner.run.work, planner.sizes),
        "layouts_tried": len(planned),
        "layouts_that_fit": len(fitting),
        "layouts": [planner.report(item) for item in fitting[:LISTED]],
        "assumptions": planner.assumptions(),
    }


def _layouts(gpus: int) -> Iterator[Layout]:
    for pipeline in _divisors(gpus):
        for expert in _divisors(gpus // pipeline):
            for replicate in _divisors(gpus // pipeline // expert):
                shard = gpus // pipeline // expert // replicate
                yield Layout(pipeline, replicate, shard, expert)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _too_large(least: Planned, gpu: str) -> str:
    """Why nothing fits, in one line."""
    layout = ", ".join(f"{name} {ranks}" for name, ranks in least.layout._asdict().items())
    largest = sorted(least.memory.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
    return (
        f"{gpu} is too small: {layout} needs {format_bytes(least.needed)} of "
        f"{format_bytes(int(least.room))} ({parts}, ...); take more GPUs, data.micro_batch=1, "
        "compute.recompute=full or init.dtype=bfloat16"
    )
