"""`vl2 bench`: speed and memory of a model here, beside what the machine allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vl2.cli.terminal import show

if TYPE_CHECKING:
    from vl2.benchmarks.config import BenchConfig
    from vl2.benchmarks.reports import BenchRecord

_MODEL = "tiny, small or base (random weights), nano, a folder, a hub id."
_COLUMNS = "{:<8} {:>5} {:>6} {:>10} {:>16} {:>8} {:>9}  {}"
_MEMORY = "{:<8} {:>12} {:>10} {:>12} {:>12} {:>8}"


def bench(  # noqa: PLR0913 - each parameter is an option of the command
    what: Annotated[
        str, typer.Argument(help="decode, prefill, vision, ttft, batch, memory or summary.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help=_MODEL)] = "tiny",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights for nano or a folder, too.")
    ] = False,
    quantization: Annotated[
        list[str] | None, typer.Option(help="none, bfloat16, int8, float8, int4; repeatable.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of float weights: float32 or bfloat16.")
    ] = "float32",
    quantized_dtype: Annotated[
        str | None,
        typer.Option(help="Dtype beside int8 and int4 weights; bfloat16 on CPUs with AMX."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers to keep.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few rounds; random weights: two layers of both towers.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(help="Repetitions: 5, or 3 with --quick.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to decode: 32, quick 8.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens of text: 480, quick 256.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads; by default OMP_NUM_THREADS or the number of free cores."),
    ] = None,
    here: Annotated[bool, typer.Option("--here", hidden=True)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Measure a model's speed and memory here and compare them with the machine's limits.

    Precisions are measured in turn in one process and medians are printed: ratios are more
    reliable than single figures. summary prints every ratio; memory measures each precision in a
    process of its own.
    """
    from vl2.benchmarks.config import BENCHES, BenchConfig
    from vl2.engine.cores import choose_threads

    if what not in BENCHES:
        raise ValueError(f"benchmark is {what!r}: expected one of {', '.join(BENCHES)}")
    config = BenchConfig(
        model=model,
        random_weights=random_weights,
        forms=tuple(quantization) if quantization else None,
        dtype=dtype,
        quantized_dtype=quantized_dtype,
        layers=layers,
        quick=quick,
        rounds=rounds,
        tokens=tokens,
        prompt=prompt,
    )
    records = _measure(what, config, choose_threads(threads), here=here)
    show("".join(json.dumps(r) + "\n" for r in records) if as_json else _text(what, records))


def _measure(what: str, config: BenchConfig, threads: int, *, here: bool) -> list[BenchRecord]:
    from vl2.benchmarks.memory import measure_apart, measure_memory
    from vl2.benchmarks.reports import run_bench
    from vl2.benchmarks.summary import summarise

    if what == "summary":
        return [summarise(config)]
    if what == "memory":
        return [measure_memory(config)] if here else measure_apart(config, threads)
    return run_bench(what, config)


def _text(what: str, records: Sequence[BenchRecord]) -> str:
    first = records[0]
    lines = [
        f"{what} of {first['model']}, {first['weights']} weights, {first['dtype']} "
        f"({first['quantized_dtype']} beside int8 and int4), "
        f"{first['layers']} decoder layers, {first['vision_layers']} vision layers",
        "",
    ]
    lines += {"summary": _summary, "memory": _memory}.get(what, _speeds)(records)
    machine = first["machine"]
    extra = ", AMX" if machine["amx"] else ""
    lines += [
        "",
        f"{machine['cpu']} ({machine['instructions']}{extra}), {machine['threads']} threads of "
        f"{machine['cores']} cores, torch {machine['torch']}, peak {first['peak_gib']} GiB",
    ]
    return "\n".join(lines) + "\n"


def _speeds(records: Sequence[BenchRecord]) -> list[str]:
    heads = ("form", "batch", "prompt", "ms", "per second", "GB/s", "GFLOPS", "share of ceiling")
    lines = [_COLUMNS.format(*heads)]
    for record in records:
        if "skipped" in record:
            lines.append(_left_out(record))
            continue
        unit = "tiles" if "tiles_per_s" in record else "tokens"
        ceiling = record["ceiling"].removesuffix("_gb_per_s").removesuffix("_gflops")
        lines.append(
            _COLUMNS.format(
                record["quantization"],
                record.get("batch", "-"),
                record.get("prompt", "-"),
                f"{record['ms']:.2f}",
                f"{record[f'{unit}_per_s']:.2f} {unit}",
                f"{record['gb_per_s']:.2f}",
                f"{record['gflops']:.1f}",
                f"{record['ceiling_share']:.1%} of {ceiling}",
            )
        )
    return [*lines, "", *_ceilings(records[0]["ceilings"])]


def _ceilings(speeds: BenchRecord) -> list[str]:
    found = [(name, value) for name, value in speeds.items() if value is not None]
    shown = (f"{name.replace('_gb_per_s', '')} {v} GB/s" for name, v in found if "gb_per" in name)
    products = (f"{name.replace('_gflops', '')} {v} GFLOPS" for name, v in found if "flops" in name)
    return [f"ceilings: {', '.join((*shown, *products))}"]


def _memory(records: Sequence[BenchRecord]) -> list[str]:
    heads = ("form", "weights GiB", "load s", "loaded GiB", "load peak", "peak")
    keys = (
        "quantization",
        "weights_gib",
        "load_seconds",
        "loaded_gib",
        "load_peak_gib",
        "peak_gib",
    )
    return [
        _MEMORY.format(*heads),
        *(
            _left_out(r) if "skipped" in r else _MEMORY.format(*(r[key] for key in keys))
            for r in records
        ),
    ]


def _left_out(record: BenchRecord) -> str:
    return f"{record['quantization']:<5} left out: {record['skipped']}"


def _summary(records: Sequence[BenchRecord]) -> list[str]:
    [record] = records
    lines = []
    for key, value in record.items():
        if "_over_" in key or key.endswith("_share"):
            shown = record["reasons"].get(key, "-") if value is None else f"{value:.2f}"
            lines.append(f"{key:<30} {shown}")
    return [*lines, "", *_ceilings(record["ceilings"])]
