"""Training on many GPUs, on paper: the paper's own runs, Base on eight cards, 8 to 4,096 GPUs.

    python bench/scaling.py [--gpu h100] [--recipe base_pretrain] [--batch 4096]

Prints JSON lines. Nothing here is measured: formulas and assumptions are those of `vl2 plan train`
(`vl2/train/flops.py`, `memory.py`, `cluster.py`), and the last line prints the assumptions.

    paper        a released size on the nodes that the paper names (section 4.2): which MFU its days
                 imply for all three stages; the days at one MFU for all sizes, which is that of the
                 three runs together; the days that the planner gives, stage by stage
    eight_cards  which layouts of Base's recipes fit into eight GPUs
    scaling      the fastest layout with and without expert parallelism, and with parameters sharded
                 over all ranks and nothing else (fsdp)
    degree       the fastest layout for each degree of expert parallelism, on 72 nodes because Base
                 has 72 experts
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vl2.config import VL2Config
from vl2.overrides import override
from vl2.recipes.stages import RECIPES, SIZES
from vl2.train.cluster import GPUS
from vl2.train.layouts import DAY, LayoutPlanner, Planned

PAPER: dict[str, tuple[int, int]] = {"tiny": (16, 7), "small": (33, 10), "base": (42, 14)}
"""Nodes of eight A100, and days."""
STAGES = ("align", "pretrain", "sft")
TILES = (0.0, 4.0, 8.0, 12.0)
"""Means per sequence that the implied MFU is given for. The paper has no figure: 70 % of its tokens
are of samples with pictures, and 8 tiles fill two fifths of a sequence."""
MEAN_TILES = 8.0
CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("h100", "base_align", ()),
    ("h100", "base_pretrain", ()),
    ("h100", "base_sft", ()),
    ("h100", "base_sft", ("optim.moments=float32",)),
    ("h100", "base_sft", ("init.dtype=bfloat16",)),
    ("h100", "base_lora", ()),
    ("h200", "base_pretrain", ()),
)
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description="Training on many GPUs, on paper.")
    parser.add_argument("--gpu", choices=tuple(GPUS), default="h100")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="base_pretrain")
    parser.add_argument("--batch", type=int, default=4096, help="sequences of a step")
    given = parser.parse_args()
    planner = planner_of(given.recipe, given.gpu, [f"data.batch_size={given.batch}"])
    for line in (*paper(), *eight_cards(), *scaling(planner, COUNTS), *degrees(given.gpu)):
        print(json.dumps(line))
    print(json.dumps({"what": "assumptions", **planner.assumptions()}))


def planner_of(
    recipe: str, gpu: str, settings: Sequence[str] = (), tiles: float = MEAN_TILES
) -> LayoutPlanner:
    """The planner of a recipe of a released size."""
    config = override(RECIPES[recipe](), settings)
    return LayoutPlanner(config, VL2Config.preset(recipe.split("_")[0]), gpu, tiles=tiles)


def run_flops(size: str, tiles: float) -> float:
    """Operations of all three stages."""
    planners = [planner_of(f"{size}_{stage}", "a100", tiles=tiles) for stage in STAGES]
    return sum(sum(p.flops.values()) * p.run.config.steps for p in planners)


def paper() -> Iterator[dict[str, Any]]:
    """The paper's three runs."""
    peak = GPUS["a100"].flops
    flops = {size: {tiles: run_flops(size, tiles) for tiles in TILES} for size in PAPER}
    spent = {size: 8 * nodes * days * DAY * peak for size, (nodes, days) in PAPER.items()}
    one = sum(flops[size][MEAN_TILES] for size in PAPER) / sum(spent.values())
    for size, (nodes, days) in PAPER.items():
        at_one = flops[size][MEAN_TILES] / (8 * nodes * DAY * peak * one)
        planned = {stage: planned_stage(size, stage, 8 * nodes) for stage in STAGES}
        total = sum(stage["days"] for stage in planned.values())
        yield {
            "what": "paper",
            "size": size,
            "gpus": 8 * nodes,
            "days": days,
            "tokens": sum(SIZES[size].tokens.values()),
            "flops": float(f"{flops[size][MEAN_TILES]:.4g}"),
            "implied_mfu_by_tiles": {
                f"{tiles:g}": round(count / spent[size], 4) for tiles, count in flops[size].items()
            },
            "one_mfu": round(one, 4),
            "days_at_one_mfu": round(at_one, 2),
            "error_at_one_mfu": round(at_one / days - 1, 3),
            "planned_days": round(total, 2),
            "planned_error": round(total / days - 1, 3),
            "planned_stages": planned,
        }


def planned_stage(size: str, stage: str, gpus: int) -> dict[str, Any]:
    """A stage on as many of the GPUs as its batch can be dealt out to.

    A batch that is larger than the number of GPUs is taken as its nearest multiple.
    """
    recipe = f"{size}_{stage}"
    batch = RECIPES[recipe]().data.batch_size
    count = gpus if batch >= gpus else max(n for n in COUNTS if n <= min(batch, gpus))
    even = max(round(batch / count), 1) * count
    steps = round(SIZES[size].tokens[stage] / even / RECIPES[recipe]().data.sequence_length)
    planner = planner_of(recipe, "a100", [f"data.batch_size={even}", f"steps={steps}"])
    best = next(item for item in planner.layouts(count) if item.fits)
    found = planner.report(best)
    return {
        "days": round(found["days"], 2),
        "mfu": round(found["mfu"], 3),
        "gpus": count,
        "batch_size": even,
        "layout": name_of(best),
    }


def eight_cards() -> Iterator[dict[str, Any]]:
    """Base on eight GPUs of 80 and 141 GB; memory of each layout in GiB."""
    for gpu, recipe, settings in CASES:
        planned = planner_of(recipe, gpu, settings).layouts(8)
        yield {
            "what": "eight_cards",
            "gpu": gpu,
            "recipe": recipe,
            "settings": list(settings),
            "memory_gib": gib(GPUS[gpu].memory),
            "fits": {name_of(p): gib(p.needed) for p in planned if p.fits},
            "too_large": {name_of(p): gib(p.needed) for p in planned if not p.fits},
        }


def scaling(planner: LayoutPlanner, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One recipe on more and more GPUs, the batch as it is."""
    data = planner.run.config.data
    for gpus in counts:
        fitting = [item for item in planner.layouts(gpus) if item.fits]
        kinds = {
            "without_expert": [p for p in fitting if p.layout.expert == 1],
            "with_expert": [p for p in fitting if p.layout.expert > 1],
            "fsdp": [p for p in fitting if p.layout.shard == gpus],
        }
        yield {
            "what": "scaling",
            "recipe": planner.run.config.name,
            "batch_size": data.batch_size,
            "gpus": gpus,
            **{kind: summary(planner, found[0]) for kind, found in kinds.items() if found},
        }


def degrees(gpu: str, gpus: int = 576, batch: int = 4608) -> Iterator[dict[str, Any]]:
    """Base's pretraining for each degree of expert parallelism."""
    planner = planner_of("base_pretrain", gpu, [f"data.batch_size={batch}"])
    fitting = [item for item in planner.layouts(gpus) if item.fits and item.layout.pipeline == 1]
    for degree in sorted({item.layout.expert for item in fitting}):
        best = next(item for item in fitting if item.layout.expert == degree)
        found = {"gpus": gpus, "batch_size": batch, "expert": degree}
        yield {"what": "degree", **found, **summary(planner, best)}


def summary(planner: LayoutPlanner, planned: Planned) -> dict[str, Any]:
    """One layout in short."""
    found = planner.report(planned)
    seconds = planned.seconds
    shares = {name: round(part / planned.step, 3) for name, part in seconds.items()}
    return {
        "layout": name_of(planned),
        "memory_gib": gib(planned.needed),
        "step_seconds": round(planned.step, 2),
        "mfu": round(found["mfu"], 3),
        "tokens_per_day": float(f"{found['tokens_per_day']:.3g}"),
        "days": float(f"{found['days']:.3g}"),
        "all_to_all_gib_per_rank": gib(planned.exchanged),
        "shares": {name: share for name, share in shares.items() if share >= 0.01},
    }


def name_of(planned: Planned) -> str:
    """The axes that have more than one rank."""
    axes = planned.layout._asdict().items()
    return " x ".join(f"{name} {ranks}" for name, ranks in axes if ranks > 1) or "one"


def gib(size: float) -> float:
    """Bytes in GiB."""
    return round(size / 2**30, 1)


if __name__ == "__main__":
    main()
