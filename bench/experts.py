"""Routed experts on a CPU: the chosen ones one by one beside PyTorch's grouped matmul.

    python bench/experts.py [--model tiny] [--rounds 9]

Layers of the model's exact shapes with random weights, more of them than a cache holds; both ways
take turns, and the median of the ratios of a round counts. Prints one JSON line per number of
tokens; `speedup` is the time of the grouped matmul over that of the loop over chosen experts.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from vl2.benchmarks.timing import middle, ratio, seconds, take_turns
from vl2.config import VL2Config
from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.moe import expert_mlp, route

TOKENS = (1, 8, 480)
LAYERS = 5


def layer_seconds(run: Callable[..., Any], calls: Sequence[tuple[Any, ...]], turn: int) -> float:
    """Seconds of a layer, in any round."""
    return seconds(lambda: [run(*call) for call in calls]) / LAYERS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time routed experts on this CPU.")
    parser.add_argument("--model", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    config = VL2Config.preset(arguments.model).language_config
    experts, inner = config.n_routed_experts, config.moe_intermediate_size
    wide, tall = (experts, inner, config.hidden_size), (experts, config.hidden_size, inner)
    layers = [
        [torch.randn(shape).mul_(0.02) for shape in (wide, wide, tall)] for _ in range(LAYERS)
    ]
    ways = {"grouped": expert_mlp, "chosen": chosen_expert_mlp}
    for tokens in TOKENS:
        x = torch.randn(tokens, config.hidden_size)
        routings = [route(torch.randn(tokens, experts), config) for _ in layers]
        calls = [(x, routing, *weights) for routing, weights in zip(routings, layers, strict=True)]
        timers = {name: partial(layer_seconds, run, calls) for name, run in ways.items()}
        taken = take_turns(timers, arguments.rounds)
        row = {
            "tokens": tokens,
            **{f"{name}_ms": round(1e3 * middle(found), 3) for name, found in taken.items()},
            "speedup": ratio(taken["grouped"], taken["chosen"]),
            "model": arguments.model,
            "cpu": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
