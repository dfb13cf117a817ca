"""What each row of ops/backend.py's table moves: a whole token, a whole prompt, a training step.

    python bench/native_rows.py [--model tiny] [--forms int8 int4 ...] [--layers 6] [--rounds 10]
    python bench/native_rows.py --training [--rounds 10]

A prompt, and a training step, run with all rows in C and then with one row left to PyTorch, in
turns; of an answer every other token does, `STEPS` pairs to a round. Prints one JSON line for each
row that is asked for, form and work: `gain` is the median of the time without the row over the time
with it, and `quarters` are the quartiles of these ratios. Times are the processor's, in one thread,
so that what else runs on a machine hardly counts. With `--threads 2` products take less time, and
what is not a product moves more: times are the clock's then, of a machine that is idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

import torch
from training import timer as training_timer
from training import tower_arms, whole_arms

from vl2.benchmarks.candidates import gather
from vl2.benchmarks.config import BenchConfig
from vl2.benchmarks.machine import describe_machine
from vl2.benchmarks.measures import FIRST_SEED, prefill_timer
from vl2.benchmarks.prompts import text_prompt
from vl2.benchmarks.timing import Timer, middle, seconds, take_turns
from vl2.engine.config import SamplingParams
from vl2.engine.engine import Engine
from vl2.ops import activations, attention
from vl2.ops.backend import TABLE, Row
from vl2.ops.native import kernels

FORMS = {
    "float32": ("none", "float32"),
    "bfloat16": ("none", "bfloat16"),
    "stored": ("bfloat16", "float32"),
    "int8": ("int8", "float32"),
    "int4": ("int4", "float32"),
}
"""How weights are held, and the dtype of floats where they are not quantised."""
BATCHES = {"token": 1, "batch of 8": 8}
STEPS = 4
NUMBERS = count(1)


class Asked(dict[str, Row]):
    """The table, which remembers the rows that were asked for."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Row:
        self.names.add(name)
        return super().__getitem__(name)


def by_pytorch(name: str, engine: Engine) -> AbstractContextManager[Any]:
    """Leave a row of the table to PyTorch; the engine asks for one once, when it is made."""
    if name == "single attention":
        return mock.patch.object(engine._runner, "_singly", False)
    return mock.patch.dict(TABLE, {name: replace(TABLE[name], dtypes=())})


@contextmanager
def by_pytorch_in(*modules: Any) -> Iterator[None]:
    """Leave what these files ask for to PyTorch."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "in_c", return_value=False))
        yield


def decode_timer(engine: Engine, bench: BenchConfig, batch: int) -> Timer:
    """Seconds of one decoding step of answers that have begun and are long enough."""
    for number in range(batch):
        prompt = text_prompt(engine.processor, bench.prompt_tokens, FIRST_SEED + number)
        engine.abort(number)  # of the row before
        engine.add_request(
            number, prompt, SamplingParams(max_tokens=bench.decoded, ignore_eos=True)
        )
    while engine.load["waiting"]:
        engine.step()
    return lambda _: seconds(engine.step)


def asked_for(timer: Timer) -> list[str]:
    """Rows of the table that a run without gradients asks for."""
    asked = Asked()
    with mock.patch("vl2.ops.backend.TABLE", asked):
        timer(0)
    return sorted(name for name in asked.names if not TABLE[name].trains)


def gain(timer: Timer, without: Any, rounds: int) -> dict[str, Any]:
    """Times with C, and in turns within a context; no two prompts are alike, which are cached."""

    def ours(_turn: int) -> float:
        return timer(next(NUMBERS))

    def other(_turn: int) -> float:
        with without():
            return timer(next(NUMBERS))

    taken = take_turns({"with": ours, "without": other}, rounds)
    ratios = [b / a for a, b in zip(taken["with"], taken["without"], strict=True) if a > 0]
    low, half, high = statistics.quantiles(ratios, n=4)
    return {
        "gain": round(half, 3),
        "quarters": [round(low, 3), round(high, 3)],
        "with_ms": round(1e3 * middle(taken["with"]), 2),
    }


def inference_rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Tokens and prompts of every form."""
    for name in given.forms:
        form, dtype = FORMS[name]
        bench = BenchConfig(
            model=given.model,
            forms=(form,),
            dtype=dtype,
            layers=given.layers,
            tokens=2 * STEPS * given.rounds + 8,
        )
        found = gather(bench, wide=(form,))
        engine, config = found.engines[form], found.config.language_config
        for work in given.works:
            batch = BATCHES.get(work)
            prepare = partial(decode_timer, batch=batch) if batch else prefill_timer
            rounds = given.rounds * STEPS if batch else given.rounds
            for row in given.rows or asked_for(prepare(engine, bench)):
                facts = {"row": row, "form": name, "work": work, "layers": config.num_hidden_layers}
                yield facts | gain(prepare(engine, bench), partial(by_pytorch, row, engine), rounds)
            for number in range(batch or 0):
                engine.abort(number)
        del found, engine


def training_rows(rounds: int) -> Iterator[dict[str, Any]]:
    """The embedded model's steps, as its recipe trains it: the two parts of training.c apart."""
    parts = {
        "GELU and SiLU": partial(by_pytorch_in, activations),
        "softmax": partial(by_pytorch_in, attention),
    }
    for work, prepare, arm in (
        ("step of the tower", tower_arms, "native"),
        ("whole step", whole_arms, "native"),
    ):
        arms, batches = prepare()
        for part, without in parts.items():
            step = training_timer(arms[arm], batches)
            yield {"row": part, "form": "training", "work": work} | gain(step, without, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What each row in C moves.")
    parser.add_argument("--model", default="tiny", choices=("nano", "tiny", "small", "base"))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    works = (*BATCHES, "prompt")
    parser.add_argument("--works", nargs="+", default=list(works), choices=works)
    parser.add_argument("--rows", nargs="+", choices=list(TABLE), help="all that are asked for")
    parser.add_argument("--layers", type=int, help="decoder layers to keep, where memory is short")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--training", action="store_true", help="the training steps alone")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds: {given.rounds} give no quartiles: expected at least 2")
    if kernels.functions() is None:
        raise SystemExit("the C functions are not compiled here: install gcc or clang")
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    facts = {"model": "nano" if given.training else given.model, "rounds": given.rounds}
    facts |= {"threads": given.threads, "machine": describe_machine()}
    rows = training_rows(given.rounds) if given.training else inference_rows(given)
    try:
        with mock.patch.object(time, "perf_counter", clock):
            for row in rows:
                print(json.dumps(row | facts), flush=True)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
