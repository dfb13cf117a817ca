"""`vl2 plan train`: which layouts of a run fit into so many GPUs, and how long they take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2.checkpoint.sizes import format_bytes

if TYPE_CHECKING:
    from vl2.config import VL2Config
    from vl2.train.config import TrainConfig

_COLUMNS = "{:>8} {:>9} {:>6} {:>6} {:>10} {:>9} {:>6} {:>10} {:>9} {:>11}"


def plan_train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file of a run.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as data.micro_batch=2.")
    ] = None,
    *,
    gpus: Annotated[int, typer.Option(help="Number of GPUs, in nodes of eight.")],
    gpu: Annotated[str, typer.Option(help="Kind of GPU: a100, h100 or h200.")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="Plan this layout only, such as expert=8,replicate=2; shard takes the rest."
        ),
    ] = None,
    tiles: Annotated[
        float | None, typer.Option(help="Average number of tiles in a sequence.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan the training of a recipe on many GPUs: memory, time, and the layouts that fit.

    Estimated, not measured; the formulas are in vl2/train/flops.py, memory.py and cluster.py.
    """
    from vl2.cli.train import find_recipe
    from vl2.overrides import override
    from vl2.parallel.pipeline_stage import TILES
    from vl2.train.layouts import plan_training
    from vl2.train.origin import check_layout

    words = [] if layout is None else [f"parallel.{word.strip()}" for word in layout.split(",")]
    config = override(find_recipe(recipe), [*(settings or []), *words])
    config, model = _as_held(config, model_of(config))
    scheme = None if config.lora is None else config.lora.quantization
    # A quantised base has but one kind of layout: ranks that all hold it.
    asked = config.parallel if words or scheme is not None else None
    if asked is not None:
        check_layout(scheme, asked.layout(gpus))
    found = plan_training(
        config,
        model,
        gpus=gpus,
        gpu=gpu,
        layout=asked,
        tiles=TILES if tiles is None else tiles,
    )
    print(json.dumps(found, indent=2) if as_json else _text(found))


def model_of(config: TrainConfig) -> VL2Config:
    """The model of a run; that of a released size is known without its files.

    Raises:
        ValueError: there is no such model.
    """
    from vl2.checkpoint.report import find_config
    from vl2.config import VL2Config
    from vl2.train.origin import model_folder

    if config.init.preset is not None:
        return VL2Config.preset(config.init.preset)
    return find_config(model_folder(str(config.init.model)))[0]


def _as_held(config: TrainConfig, model: VL2Config) -> tuple[TrainConfig, VL2Config]:
    """A quantised model as the float one that adapters are put into, held in its scheme.

    Raises:
        ValueError: it is quantised and the run has no adapters, or asks for another scheme.
    """
    from dataclasses import replace

    from vl2.train.origin import check_quantized

    held = model.quantization_config
    if held is None:
        return config, model
    lora = check_quantized(held.scheme, config.lora, str(config.init.model))
    lora = replace(lora, quantization=held.scheme)
    return replace(config, lora=lora), replace(model, quantization_config=None)


def _text(found: dict[str, Any]) -> str:
    assumed, best = found["assumptions"], found["layouts"][0]
    whole, again = found["flops_per_step"], found["recomputed_flops_per_step"]
    shares = {name: count / whole for name, count in found["flops_by_part"].items()}
    memory = {name: format_bytes(size) for name, size in best["memory_bytes"].items()}
    lines = [
        f"{found['recipe']} on {found['gpus']:,} x {found['gpu']}: planned, not measured",
        f"a step: {found['tokens_per_step']:,} tokens, {assumed['tiles_per_sequence']:g} tiles in "
        f"a sequence; {whole:.3g} FLOPs, {again:.3g} more to recompute",
        f"FLOPs: {_listed(shares, '{:.0%}')}",
        f"{found['layouts_that_fit']} of {found['layouts_tried']} layouts fit into "
        f"{format_bytes(int(assumed['gpu']['memory']))}; the fastest:",
        "",
        _COLUMNS.format(
            *("pipeline", "replicate", "shard", "expert", "memory", "step"),
            *("MFU", "tokens/day", "days", "all-to-all"),
        ),
        *map(_row, found["layouts"]),
        "",
        f"memory of the first: {_listed(memory, '{}')}",
        f"seconds of its step: {_listed(best['step_seconds'], '{:.3g}')}",
        "all-to-all: bytes that a rank sends to other ranks' experts in a step",
        "",
        *_assumed(assumed),
    ]
    return "\n".join(lines)


def _assumed(assumed: dict[str, Any]) -> list[str]:
    gpu = assumed["gpu"]
    return [
        f"assumed: {gpu['name']}, {assumed['gpus_per_node']} in a node, each with "
        f"{gpu['flops'] / 1e12:g} TFLOP/s in bfloat16, memory at {gpu['bandwidth'] / 1e12:g} TB/s, "
        f"NVLink {gpu['nvlink'] / 1e9:g} and network {gpu['network'] / 1e9:g} GB/s in a direction",
        f"share of the peak that products reach: {_listed(assumed['efficiency'], '{:g}')}",
        f"share of the bandwidth that is reached: memory {assumed['memory_share']:g}, links "
        f"{assumed['link_share']:g}; fullest rank / mean: tiles {assumed['tile_imbalance']:g}, "
        f"experts {assumed['expert_imbalance']:g}",
    ]


def _row(layout: dict[str, Any]) -> str:
    return _COLUMNS.format(
        *layout["layout"].values(),
        format_bytes(layout["memory_bytes"]["total"]),
        f"{layout['step_seconds']['total']:.3g} s",
        f"{layout['mfu']:.1%}",
        f"{layout['tokens_per_day'] / 1e9:.3g} B",
        f"{layout['days']:.3g}",
        format_bytes(round(layout["all_to_all_bytes_per_rank"])),
    )


def _listed(values: dict[str, Any], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())
