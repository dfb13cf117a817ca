"""Peak resident memory of a model, each form in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

from vl2.benchmarks.candidates import (
    build_form,
    engine_config,
    find_model,
    fitting_forms,
    form_bytes,
    form_state,
    wanted_forms,
)
from vl2.benchmarks.config import FORMS, BenchConfig
from vl2.benchmarks.machine import describe_machine, gib, resident_bytes
from vl2.benchmarks.measures import answer
from vl2.benchmarks.prompts import picture_messages
from vl2.benchmarks.reports import describe_model
from vl2.benchmarks.timing import seconds
from vl2.engine.engine import Engine
from vl2.failure import WorkError


def measure_memory(bench: BenchConfig) -> dict[str, Any]:
    """Build or load one form here and let it answer about a picture.

    Raises:
        ValueError: no form, or more than one, is named: the peak would be of all of them.
    """
    if bench.forms is None or len(bench.forms) != 1:
        raise ValueError(f"quantization is {bench.forms}: name exactly one to measure it here")
    [form] = bench.forms
    config, processor = find_model(bench)
    engines: list[Engine] = []

    def load() -> None:
        model = build_form(bench, config, form)
        engines.append(Engine(model, processor, engine_config(bench, config)))

    load_seconds = seconds(load)
    loaded, peak_of_load = resident_bytes(peak=False), resident_bytes()
    answer(engines[0], [picture_messages(processor, 0)], 1 + bench.decoded)
    return {
        "bench": "memory",
        **describe_model(bench, config),
        "quantization": form,
        "weights_gib": gib(form_bytes(form_state(bench, config, form))),
        "load_seconds": round(load_seconds, 2),
        "loaded_gib": gib(loaded),
        "load_peak_gib": gib(peak_of_load),
        "tokens": 1 + bench.decoded,
        "peak_gib": gib(resident_bytes()),
        "machine": describe_machine(),
    }


def measure_apart(bench: BenchConfig, threads: int) -> list[dict[str, Any]]:
    """Measure each form in a fresh process, so that a peak is of that form alone.

    Raises:
        ValueError: a form that is named does not fit.
        WorkError: a process failed, with its own message.
    """
    config, _ = find_model(bench)
    skipped: dict[str, str] = {}
    for form in wanted_forms(bench, config):
        skipped |= fitting_forms(bench, config, [form])[1]
    left = [form for form in wanted_forms(bench, config) if form not in skipped]
    if not left:
        raise ValueError("; ".join(f"quantization {f}: {why}" for f, why in skipped.items()))
    shared = {"bench": "memory", **describe_model(bench, config)}
    return [_run_apart(replace(bench, forms=(form,)), threads) for form in left] + [
        {**shared, "quantization": form, "skipped": why} for form, why in skipped.items()
    ]


def _run_apart(bench: BenchConfig, threads: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "vl2", *command_line(bench, threads)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode < 0:
        reason = f"the system ended it with signal {-done.returncode}, probably out of memory"
    else:
        reason = done.stderr.strip().splitlines()[-1].removeprefix("error: ")
    kind = ValueError if done.returncode == 2 else WorkError
    raise kind(f"{bench.model} with quantization {(bench.forms or FORMS)[0]}: {reason}")


def command_line(bench: BenchConfig, threads: int) -> list[str]:
    """Words after `vl2` that measure the same in another process."""
    numbers = {
        "--layers": bench.layers,
        "--rounds": bench.rounds,
        "--tokens": bench.tokens,
        "--prompt": bench.prompt,
        "--threads": threads,
    }
    words = ["bench", "memory", "--here", "--json", "--model", bench.model, "--dtype", bench.dtype]
    if bench.quantized_dtype is not None:
        words += ["--quantized-dtype", bench.quantized_dtype]
    words += [word for form in bench.forms or () for word in ("--quantization", form)]
    words += ["--random-weights"] if bench.random_weights else []
    words += ["--quick"] if bench.quick else []
    given = {name: value for name, value in numbers.items() if value is not None}
    return [*words, *(word for name, value in given.items() for word in (name, str(value)))]
