"""Our C functions beside PyTorch's operations for the same, on this CPU.

    python bench/native.py [--model tiny] [--rounds 15]

Matrices have the model's exact shapes and are more than a cache holds: every call reads others.
Both ways take turns, and the median of the ratios of a round counts. Prints one JSON line for each
function; `speedup` is PyTorch's time over ours. Without a C compiler there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from vl2.benchmarks.machine import describe_machine
from vl2.benchmarks.timing import middle, ratio, seconds, take_turns
from vl2.config import LanguageConfig, VL2Config
from vl2.ops.attention import attention, head_product
from vl2.ops.backend import FEW_ROWS
from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.int4 import Int4Weight
from vl2.ops.int8 import Int8Weight
from vl2.ops.linear import experts as held_experts
from vl2.ops.linear import linear
from vl2.ops.moe import combine_experts, route, router_logits
from vl2.ops.native import kernels
from vl2.ops.norm import rms_norm
from vl2.ops.paged import Singles, Span, paged_single_attention
from vl2.ops.rope import apply_rope
from vl2.ops.stored import stored_linears

COPIES = 40
"""Matrices that calls go through in turn."""
LAYERS = 4
CACHED = 480
PROMPT = 480
Case = tuple[str, dict[str, Any], Callable[[int], Any], Callable[[int], Any] | None]


def cases(config: LanguageConfig) -> Iterator[Case]:
    """Name, facts, a call by number, and another way for PyTorch where it is not the same call."""
    width, experts = config.hidden_size, config.n_routed_experts or 1
    floats = torch.randn(COPIES, width, width)
    int8 = [Int8Weight.pack(matrix) for matrix in floats]
    int4 = [Int4Weight.pack(matrix) for matrix in floats]
    for rows in (1, 8, PROMPT):
        x = torch.randn(rows, width).bfloat16()
        yield "int8 linear", {"rows": rows}, lambda i, x=x: linear(x, int8[i % COPIES]), None
        if rows <= 8:
            run = partial(lambda i, x: linear(x, int4[i % COPIES]), x=x)
            yield "int4 linear", {"rows": rows}, run, None
    inner = config.moe_intermediate_size
    shapes = (experts, inner, width), (experts, inner, width), (experts, width, inner)
    layers = [[torch.randn(shape).mul_(0.02) for shape in shapes] for _ in range(LAYERS)]
    quantised = [
        (Int8Weight.pack(gate), Int8Weight.pack(up), Int8Weight.pack(down))
        for gate, up, down in layers
    ]
    for rows in (1, 8, PROMPT):
        x = torch.randn(rows, width)
        routing = route(torch.randn(rows, experts), config)
        both = partial(lambda i, x, r: held_experts(x, r, quantised[i % LAYERS]), x=x, r=routing)
        yield "int8 experts", {"rows": rows}, both, None
        if rows > FEW_ROWS:
            run = partial(
                lambda i, x, r: chosen_expert_mlp(x, r, *layers[i % LAYERS]), x=x, r=routing
            )
            yield "float32 experts", {"rows": rows}, run, None
            out = torch.randn(routing.experts.numel(), width)
            weighted = out, torch.randperm(len(out)), routing.weights
            yield "sum of experts", {"rows": rows}, lambda i, w=weighted: combine_experts(*w), None
    yield from stored_cases(config, floats, layers)
    yield from small_cases(config)


def stored_cases(
    config: LanguageConfig, floats: torch.Tensor, layers: list[list[torch.Tensor]]
) -> Iterator[Case]:
    """Weights kept in bfloat16 under float32, beside PyTorch with float32 weights."""
    narrow = floats.bfloat16()
    kept = [[weight.bfloat16() for weight in layer] for layer in layers]
    for rows in (1, 8, PROMPT):
        x = torch.randn(rows, config.hidden_size)
        routing = route(torch.randn(rows, config.n_routed_experts or 1), config)
        if rows <= FEW_ROWS:
            ours = partial(lambda i, x: stored_linears(x, narrow[i % COPIES, None]), x=x)
            theirs = partial(lambda i, x: F.linear(x, floats[i % COPIES]), x=x)
            yield "bfloat16 linear under float32", {"rows": rows}, ours, theirs
        ours = partial(lambda i, x, r: chosen_expert_mlp(x, r, *kept[i % LAYERS]), x=x, r=routing)
        theirs = partial(
            lambda i, x, r: chosen_expert_mlp(x, r, *layers[i % LAYERS]), x=x, r=routing
        )
        yield "bfloat16 experts under float32", {"rows": rows}, ours, theirs


def small_cases(config: LanguageConfig) -> Iterator[Case]:
    """What is many operations of PyTorch, and attention."""
    width = config.hidden_size
    weight = torch.randn(width).bfloat16()
    router = torch.randn(config.n_routed_experts or 1, width).bfloat16()
    heads, size = config.num_attention_heads, config.head_dim
    for rows in (1, PROMPT):
        x = torch.randn(1, rows, width).bfloat16()
        yield "norm", {"rows": rows}, lambda i, x=x: rms_norm(x, weight, 1e-6), None
        q, angles = torch.randn(1, rows, heads, size).bfloat16(), torch.randn(1, rows, size)
        yield "rope", {"rows": rows}, lambda i, q=q, a=angles: apply_rope(q, a, a), None
    x = torch.randn(1, width).bfloat16()
    yield "router", {"rows": 1}, lambda i: router_logits(x, router), None
    if config.use_mla:
        yield from latent_cases(config)
        return
    for count in (1, 8):
        pool = torch.randn(COPIES * CACHED, 2 * heads * size).bfloat16()
        query = torch.randn(count, heads, size).bfloat16()
        ours = partial(_singles, query=query, pool=pool)
        theirs = partial(_one_by_one, query=query, pool=pool)
        yield "attention", {"rows": count, "cached": CACHED}, ours, theirs


def latent_cases(config: LanguageConfig) -> Iterator[Case]:
    """The absorbed form's products of each head."""
    rank, nope, heads = (
        config.kv_lora_rank or 1,
        config.qk_nope_head_dim,
        config.num_attention_heads,
    )
    both = torch.randn(COPIES, heads, nope + config.v_head_dim, rank).bfloat16()
    up_key, up_value = both.split([nope, config.v_head_dim], dim=2)
    for name, w, width, turned in (("lift", up_key, nope, True), ("lower", up_value, rank, False)):
        x = torch.randn(1, 1, heads, width).bfloat16()
        yield f"latent {name}", {"rows": 1}, partial(_head, x=x, w=w, turned=turned), None


def _head(number: int, x: torch.Tensor, w: torch.Tensor, turned: bool) -> torch.Tensor:
    return head_product(x, w[number % COPIES], turned=turned)


def _runs(number: int, count: int) -> list[tuple[int, int]]:
    first = number % (COPIES // count) * count * CACHED
    return [(first + n * CACHED, first + (n + 1) * CACHED) for n in range(count)]


def _singles(number: int, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    spans = [
        Span.over(1, (run,), device=pool.device, absorbed=False)
        for run in _runs(number, len(query))
    ]
    return paged_single_attention(query, pool, Singles.of(spans), scale=0.1)


def _one_by_one(number: int, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    out = []
    for heads, (first, end) in zip(query, _runs(number, len(query)), strict=True):
        rows = pool[first:end].unflatten(1, (-1, query.shape[-1])).transpose(0, 1)[None]
        key, value = rows.chunk(2, dim=1)
        out.append(attention(heads[None, :, None], key, value, scale=0.1))
    return torch.cat(out)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time our C functions on this CPU.")
    parser.add_argument("--model", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if kernels.functions() is None:
        raise SystemExit("the C functions are not compiled here: install gcc or clang")
    machine = describe_machine()
    for name, facts, run, other in cases(VL2Config.preset(arguments.model).language_config):
        calls = max(1, 80 // facts["rows"])

        def ours(turn: int, run: Any = run, calls: int = calls) -> float:
            return seconds(lambda: [run(turn * calls + i) for i in range(calls)]) / calls

        def theirs(turn: int, run: Any = other or run, calls: int = calls) -> float:
            with kernels.left_out():
                return seconds(lambda: [run(turn * calls + i) for i in range(calls)]) / calls

        taken = take_turns({"ours": ours, "pytorch": theirs}, arguments.rounds)
        row = {
            "function": name,
            **facts,
            "ours_ms": round(1e3 * middle(taken["ours"]), 4),
            "pytorch_ms": round(1e3 * middle(taken["pytorch"]), 4),
            "speedup": ratio(taken["pytorch"], taken["ours"]),
            "model": arguments.model,
            "machine": machine,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
