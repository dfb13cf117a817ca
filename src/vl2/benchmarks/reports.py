"""Figures of one benchmark per form: speeds, what they read and compute, shares of the ceilings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vl2.benchmarks.candidates import SEQUENCES, Candidates, dtype_of, gather
from vl2.benchmarks.ceilings import Ceiling, fastest_int8_gemm, machine_ceilings
from vl2.benchmarks.config import FORMS, STORED, BenchConfig
from vl2.benchmarks.machine import describe_machine, gib, resident_bytes
from vl2.benchmarks.measures import (
    TILES,
    decode_timer,
    first_token_timer,
    prefill_timer,
    vision_timer,
)
from vl2.benchmarks.prompts import picture_messages
from vl2.benchmarks.timing import Timer, middle, take_turns
from vl2.benchmarks.work import text_flops, tile_bytes_read, tile_flops, weight_bytes_read
from vl2.config import VL2Config

BenchRecord = dict[str, Any]
FLOATS = ("none", STORED)
"""Forms that multiply floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What one timer of a form measures.

    Attributes:
        timer: seconds of it.
        unit: of `amount`, "tokens" or "tiles".
        amount: how many of them come out of those seconds.
        flops: operations in those seconds.
        read: bytes of weights that are met in those seconds.
        ceiling: name of the bound that it is held against, of `machine_ceilings`.
        more: further entries of the record.
    """

    timer: Timer
    unit: str
    amount: float
    flops: float
    read: float
    ceiling: str
    more: BenchRecord


Measure = Callable[[Candidates, BenchConfig, str], list[Figure]]


def run_bench(name: str, bench: BenchConfig) -> list[BenchRecord]:
    """Measure one of decode, prefill, vision, ttft and batch; a record per form.

    Raises:
        ValueError: the model or what is asked of it is wrong.
    """
    candidates = gather(bench, wide=FORMS if name == "batch" else ())
    figures = {
        f"{form} {number}": (form, figure)
        for form in candidates.engines
        for number, figure in enumerate(MEASURES[name](candidates, bench, form))
    }
    ceilings = machine_ceilings(quick=bench.quick)
    timers = {key: figure.timer for key, (_, figure) in figures.items()}
    timers |= {key: ceiling.timer for key, ceiling in ceilings.items()}
    taken = {key: middle(s) for key, s in take_turns(timers, bench.counted_rounds).items()}
    speeds = ceiling_speeds(ceilings, taken)
    shared = {"bench": name, **describe_model(bench, candidates.config)}
    shared["rounds"] = bench.counted_rounds
    return [
        {
            **shared,
            "quantization": form,
            **figure_record(figure, taken[key], speeds),
            "ceilings": speeds,
            "peak_gib": gib(resident_bytes()),
            "machine": describe_machine(),
        }
        for key, (form, figure) in figures.items()
    ] + [{**shared, "quantization": f, "skipped": why} for f, why in candidates.skipped.items()]


def describe_model(bench: BenchConfig, config: VL2Config) -> BenchRecord:
    """What was measured, and how."""
    return {
        "model": bench.model,
        "weights": "random" if bench.is_random else "loaded",
        "layers": config.language_config.num_hidden_layers,
        "vision_layers": config.vision_config.layers,
        "quick": bench.quick,
        "dtype": bench.dtype,
        "quantized_dtype": dtype_of(bench, "int8"),
    }


def ceiling_speeds(
    ceilings: Mapping[str, Ceiling], taken: Mapping[str, float]
) -> dict[str, float | None]:
    """Every bound in GB/s or GFLOPS; those of our own C are None where it is not compiled."""
    found: dict[str, float | None] = {
        f"{name}_{ceiling.unit}": round(ceiling.speed(taken[name]), 2)
        for name, ceiling in ceilings.items()
    }
    return {"native_row_gb_per_s": None, "native_gemm_gflops": None, **found}


def figure_record(figure: Figure, taken: float, speeds: Mapping[str, float | None]) -> BenchRecord:
    """What a figure that took so many seconds says, beside its ceiling."""
    reached = {"gb_per_s": figure.read / taken / 1e9, "gflops": figure.flops / taken / 1e9}
    bound = next(key for key in speeds if key.startswith(figure.ceiling))
    best, unit = speeds[bound], bound.removeprefix(f"{figure.ceiling}_")
    return {
        **figure.more,
        "ms": round(1e3 * taken, 3),
        f"{figure.unit}_per_s": round(figure.amount / taken, 3),
        **{name: round(value, 3) for name, value in reached.items()},
        "ceiling": bound,
        "ceiling_share": round(reached[unit] / best, 4) if best else None,
    }


def _decode(candidates: Candidates, bench: BenchConfig, form: str) -> list[Figure]:
    return [_step(candidates, bench, form, 1)]


def _batch(candidates: Candidates, bench: BenchConfig, form: str) -> list[Figure]:
    return [_step(candidates, bench, form, size) for size in (1, SEQUENCES)]


def _step(candidates: Candidates, bench: BenchConfig, form: str, batch: int) -> Figure:
    """One decoding step of some answers at once."""
    language = candidates.config.language_config
    past = bench.prompt_tokens + bench.decoded // 2
    return Figure(
        timer=decode_timer(candidates.engines[form], bench, batch),
        unit="tokens",
        amount=batch,
        flops=batch * text_flops(candidates.shapes, language, 1, past),
        read=_text_bytes(candidates, form, batch),
        ceiling="stream" if form in FLOATS else "int8_row",
        more={"batch": batch, "prompt": bench.prompt_tokens, "tokens": bench.decoded},
    )


def _prefill(candidates: Candidates, bench: BenchConfig, form: str) -> list[Figure]:
    language = candidates.config.language_config
    return [
        Figure(
            timer=prefill_timer(candidates.engines[form], bench),
            unit="tokens",
            amount=bench.prompt_tokens,
            flops=text_flops(candidates.shapes, language, bench.prompt_tokens),
            read=_text_bytes(candidates, form, bench.prompt_tokens),
            ceiling=fastest_int8_gemm() if form == "int8" else "fp32_gemm",
            more={"prompt": bench.prompt_tokens},
        )
    ]


def _vision(candidates: Candidates, bench: BenchConfig, form: str) -> list[Figure]:
    return [
        Figure(
            timer=vision_timer(candidates.engines[form]),
            unit="tiles",
            amount=TILES,
            flops=TILES * tile_flops(candidates.shapes, candidates.config),
            read=tile_bytes_read(candidates.read[form]),
            # The tower of an int4 model is held in int8.
            ceiling=fastest_int8_gemm() if form in ("int8", "int4") else "fp32_gemm",
            more={},
        )
    ]


def _first_token(candidates: Candidates, bench: BenchConfig, form: str) -> list[Figure]:
    engine = candidates.engines[form]
    tokens = len(engine.processor(picture_messages(engine.processor, 0)).input_ids)
    read = tile_bytes_read(candidates.read[form])
    # A picture of one tile is its own overview, so the tower sees it once.
    flops = tile_flops(candidates.shapes, candidates.config)
    flops += text_flops(candidates.shapes, candidates.config.language_config, tokens)
    return [
        Figure(
            timer=first_token_timer(engine),
            unit="tokens",
            amount=tokens,
            flops=flops,
            read=read + _text_bytes(candidates, form, tokens),
            ceiling=fastest_int8_gemm() if form == "int8" else "fp32_gemm",
            more={"prompt": tokens},
        )
    ]


def _text_bytes(candidates: Candidates, form: str, tokens: int) -> int:
    """Bytes of weights that so many tokens of one pass meet in a form."""
    state = candidates.read[form]
    return weight_bytes_read(state, candidates.config.language_config, tokens)


MEASURES: dict[str, Measure] = {
    "decode": _decode,
    "prefill": _prefill,
    "vision": _vision,
    "ttft": _first_token,
    "batch": _batch,
}
