"""Speed on one GPU beside what the GPU allows, and the same answers as on the CPU.

    python bench/gpu.py [--model tiny --model small --model base] [--form none --form float8]
                        [--minutes 9] [--compile]

Released sizes with random weights in bfloat16, then with matrices in float8. Prints one JSON line
per figure; it ends with 1 when answers differ from the CPU's, and with 2 when there is no GPU. What
no longer fits into `--minutes` is skipped, with a line that says so; a second call with
`--form float8` measures the rest.

    machine    bandwidth (a copy of 4 GiB) and bfloat16 products (8192 cubed): the bounds
    parity     the embedded model in float32 on CPU and GPU: the same tokens?
    attention  one token of each sequence over gathered rows: PyTorch's fused kernels beside plain
               products, for the shapes of Tiny (plain heads) and Small (latent)
    step       the model's decoding step alone, recorded and not, without engine and sampling
    decode     a token of one answer through the engine; `share` is of the bandwidth bound: weights
               that the token meets and its cache, read once
    batch      a step of 64 answers, in tokens per second
    prefill    a prompt of 2,000 tokens to its first token; `mfu` is of the measured products
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vl2
from vl2.benchmarks.candidates import find_model
from vl2.benchmarks.config import BenchConfig
from vl2.benchmarks.machine import describe_machine
from vl2.benchmarks.measures import decode_timer, prefill_timer
from vl2.benchmarks.prompts import picture_messages, text_prompt
from vl2.benchmarks.random_weights import random_model
from vl2.benchmarks.timing import middle, seconds, take_turns
from vl2.benchmarks.work import text_flops, weight_bytes_read
from vl2.checkpoint.count import kv_bytes_per_token, model_shapes
from vl2.config import LanguageConfig, VL2Config
from vl2.engine.decode_batch import SPARE_SLOTS, DecodeBatch
from vl2.engine.graphs import call_again, why_not_captured
from vl2.model.vl2 import VL2Model
from vl2.ops.attention import attention
from vl2.ops.paged import empty_pools

Record = dict[str, Any]

SEQUENCES = 64
PROMPT, LONG_PROMPT = 480, 2000
BLOCK = 16
FORMS = ("none", "float8")
MINUTES = {"tiny": 1.0, "small": 2.0, "base": 3.5}
"""Rough time of each model, made, moved and measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What the machine does at best, in bytes and operations per second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model and how it is measured."""

    name: str
    form: str
    config: VL2Config
    model: VL2Model
    processor: vl2.Processor
    bounds: Bounds
    rounds: int
    sequences: int
    compile: bool

    def bound(self, batch: int, past: int) -> float:
        """Seconds in which everything that a step of `batch` tokens needs is read once."""
        language = self.config.language_config
        read = weight_bytes_read(self.model.state_dict(), language, batch)
        read += batch * past * kv_bytes_per_token(language, 2)
        return read / self.bounds.bandwidth


def seconds_of(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median time of a call, after two that do not count."""

    def settled() -> None:
        run()
        settle(device)

    def timer(turn: int) -> float:
        settle(device)
        return seconds(settled)

    timer(0)
    [taken] = take_turns({"": timer}, rounds).values()
    return middle(taken)


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_bounds(device: torch.device, *, copied: int = 2**32, width: int = 8192) -> Bounds:
    """Copy memory and multiply square matrices."""
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device, 10)
    left = torch.randn(width, width, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(left)
    product = seconds_of(lambda: torch.mm(left, left, out=out), device, 10)
    return Bounds(bandwidth=2 * copied / copy, flops=2 * width**3 / product)


def measure_parity(device: torch.device, quantization: str | None = None) -> Record:
    """Greedy answers of the embedded model, float32 on both sides, or quantised on both."""
    processor = vl2.Processor.from_pretrained("nano")
    talks = [picture_messages(processor, seed) for seed in range(4)]
    prompts = [text_prompt(processor, 20 + 30 * n, n) for n in range(4)]
    params = vl2.SamplingParams(max_tokens=48, ignore_eos=True)
    found = []
    for place in (torch.device("cpu"), device):
        model = vl2.load_model("nano", "float32", str(place), quantization)
        found.append(vl2.Engine(model, processor).generate([*talks, *prompts], params))
    pairs = list(zip(*found, strict=True))
    scores = [
        abs(a - b)
        for left, right in pairs
        if left.token_ids == right.token_ids
        for a, b in zip(left.logprobs, right.logprobs, strict=True)
    ]
    return {
        "bench": "parity",
        "quantization": quantization,
        "answers": len(pairs),
        "equal": sum(left.token_ids == right.token_ids for left, right in pairs),
        "errors": [answer.error for answer in found[1] if answer.error],
        "worst_logprob": max(scores, default=None),
    }


def measure_attention(device: torch.device, sizes: list[tuple[int, int]]) -> Iterator[Record]:
    """Fused kernels beside plain products, for (sequences, cached rows)."""
    shapes = {"tiny": (10, 1, 128), "small": (1, 16, 576)}  # keys, queries of each, width
    for name, (keys, queries, width) in shapes.items():
        for batch, past in sizes:
            shared = {"device": device, "dtype": torch.bfloat16}
            query = torch.randn(batch, keys, queries, width, **shared)
            key = torch.randn(batch, past, keys, width, **shared).transpose(1, 2)
            mask = torch.ones(batch, 1, 1, past, dtype=torch.bool, device=device)
            mask = mask.expand(-1, -1, queries, -1)
            taken = {
                way.__name__: recorded_seconds(
                    lambda way=way, q=query, k=key, m=mask: way(q, k, k, scale=0.1, mask=m), device
                )
                for way in (attention, plain_attention)
            }
            yield {
                "bench": "attention",
                "model": name,
                "batch": batch,
                "past": past,
                "fused_us": round(1e6 * taken["attention"], 1),
                "plain_us": round(1e6 * taken["plain_attention"], 1),
            }


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor
) -> Tensor:
    """Two products and a softmax in float32; all scores are written out, which are few here."""
    scores = (query @ key.transpose(-1, -2)).float().mul_(scale).masked_fill_(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def recorded_seconds(run: Callable[[], Tensor], device: torch.device, calls: int = 20) -> float:
    """Seconds of a call among many that the host does not slow down."""

    def many() -> None:
        for _ in range(calls):
            run()

    if device.type != "cuda":
        return seconds_of(many, device, 3) / calls
    many()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return seconds_of(graph.replay, device, 10) / calls


def build(
    name: str, form: str, device: torch.device, bounds: Bounds, options: argparse.Namespace
) -> Case:
    """Make a model in a form on the CPU and move it."""
    bench = BenchConfig(model=name, random_weights=True, dtype="bfloat16", layers=options.layers)
    config, processor = find_model(bench)
    model = random_model(config, form, torch.bfloat16).to(device)
    return Case(
        name=name,
        form=form,
        config=config,
        model=model,
        processor=processor,
        bounds=bounds,
        rounds=options.rounds,
        sequences=options.sequences,
        compile=options.compile,
    )


def measure_step(case: Case, batch: int) -> Record:
    """The decoding step alone; without a recording the host launches every kernel."""
    device, blocks = case.model.image_newline.device, -(-PROMPT // BLOCK)
    language: LanguageConfig = case.config.language_config
    total = batch * blocks
    pools = empty_pools(language, total * BLOCK + SPARE_SLOTS, device=device, dtype=torch.bfloat16)
    for pool in pools:
        pool.normal_()
    rows = [[7 + n, PROMPT, *range(n * blocks, (n + 1) * blocks)] for n in range(batch)]
    taken = {}
    for way in ("recorded", "plain"):
        decoding = DecodeBatch(
            case.model, pools, num_blocks=total, block_size=BLOCK, compiled=case.compile
        )
        if way == "plain":
            decoding.graphs.capture = call_again
        taken[way] = seconds_of(lambda d=decoding: d.graphs.run(rows), device, case.rounds * 4)
    bound = case.bound(batch, PROMPT)
    return {
        "bench": "step",
        "model": case.name,
        "quantization": case.form,
        "batch": batch,
        "past": PROMPT,
        "not_recorded_because": why_not_captured(case.model),
        "ms": round(1e3 * taken["recorded"], 3),
        "plain_ms": round(1e3 * taken["plain"], 3),
        "bound_ms": round(1e3 * bound, 3),
        "share": round(bound / taken["recorded"], 3),
    }


def measure_engine(case: Case) -> Iterator[Record]:
    """One answer, many answers, a prompt; through the engine, sampling included."""
    bench = BenchConfig(
        model=case.name, random_weights=True, dtype="bfloat16", tokens=32, prompt=PROMPT
    )
    longest = max(LONG_PROMPT, PROMPT + bench.decoded) + 8
    config = vl2.EngineConfig(
        max_num_seqs=case.sequences,
        max_model_len=longest,
        num_blocks=(case.sequences + 2) * -(-(PROMPT + 40) // BLOCK) + 4 * -(-longest // BLOCK),
        block_size=BLOCK,
        compile=case.compile,
    )
    engine = vl2.Engine(case.model, case.processor, config)
    past = PROMPT + bench.decoded // 2
    for name, batch in (("decode", 1), ("batch", case.sequences)):
        [taken] = take_turns({"": decode_timer(engine, bench, batch)}, case.rounds).values()
        step, bound = middle(taken), case.bound(batch, past)
        yield {
            "bench": name,
            "model": case.name,
            "quantization": case.form,
            "batch": batch,
            "past": past,
            "ms": round(1e3 * step, 3),
            "tokens_per_s": round(batch / step, 1),
            "bound_ms": round(1e3 * bound, 3),
            "share": round(bound / step, 3),
        }
    long = BenchConfig(model=case.name, random_weights=True, dtype="bfloat16", prompt=LONG_PROMPT)
    [taken] = take_turns({"": prefill_timer(engine, long)}, case.rounds).values()
    flops = text_flops(model_shapes(case.config), case.config.language_config, LONG_PROMPT)
    reached = flops / middle(taken)
    yield {
        "bench": "prefill",
        "model": case.name,
        "quantization": case.form,
        "prompt": LONG_PROMPT,
        "ms": round(1e3 * middle(taken), 2),
        "tflops": round(reached / 1e12, 2),
        "mfu": round(reached / case.bounds.flops, 3),
    }


def measure_model(case: Case) -> Iterator[Record]:
    """Every figure of one model."""
    with torch.inference_mode():
        for batch in (1, case.sequences):
            yield measure_step(case, batch)
    yield from measure_engine(case)


def describe(device: torch.device) -> Record:
    """The machine, the GPU in front."""
    found: Record = {"gpu": None, "python": platform.python_version(), **describe_machine()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def records(options: argparse.Namespace, device: torch.device, end: float) -> Iterator[Record]:
    """All figures until `end`, a time of `time.monotonic`."""
    bounds = measure_bounds(device)
    yield {
        "bench": "machine",
        "gb_per_s": round(bounds.bandwidth / 1e9, 1),
        "tflops": round(bounds.flops / 1e12, 1),
    }
    yield measure_parity(device)
    with torch.inference_mode():
        yield from measure_attention(device, [(1, 512), (1, 4096), (64, 512), (64, 4096)])
    for form, name in itertools.product(options.form, options.model):
        shared = {"bench": "model", "model": name, "quantization": form}
        if time.monotonic() + 60 * MINUTES.get(name, 1.0) > end:
            yield {**shared, "skipped": "no time left: raise --minutes"}
            continue
        start, case = time.monotonic(), build(name, form, device, bounds, options)
        yield {**shared, "built_s": round(time.monotonic() - start, 1)}
        yield from measure_model(case)
        del case
        gc.collect()
        torch.cuda.empty_cache()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", choices=sorted(MINUTES), default=None)
    parser.add_argument("--form", action="append", choices=FORMS, default=None)
    parser.add_argument("--minutes", type=float, default=9.0, help="when to begin no more models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--layers", type=int, default=None, help="decoder layers to keep")
    parser.add_argument("--compile", action="store_true", help="join kernels by torch.compile")
    options = parser.parse_args(words)
    options.model = options.model or list(MINUTES)
    options.form = options.form or list(FORMS)
    return options


def main() -> int:
    """Print everything; 1 when the GPU's answers are not the CPU's, 2 without a GPU."""
    options, end = arguments(), time.monotonic()
    if not torch.cuda.is_available():
        print(
            f"bench/gpu.py needs a CUDA device: PyTorch {torch.__version__} finds none here; "
            "`vl2 bench` measures the CPU",
            file=sys.stderr,
        )
        return 2
    device, good = torch.device("cuda", torch.cuda.current_device()), True
    machine = describe(device)
    for record in records(options, device, end + 60 * options.minutes):
        print(json.dumps({**record, "machine": machine}), flush=True)
        good &= record["bench"] != "parity" or record["equal"] == record["answers"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
