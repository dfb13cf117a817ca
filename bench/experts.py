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
import statistics
import time

import torch

from vl2.config import VL2Config
from vl2.ops.moe import chosen_expert_mlp, expert_mlp, route

TOKENS = (1, 8, 480)
LAYERS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time routed experts on this CPU.")
    parser.add_argument("--model", default="tiny")
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
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                for routing, weights in zip(routings, layers, strict=True):
                    run(x, routing, *weights)
                taken[name].append((time.perf_counter() - start) / LAYERS)
        pairs = zip(taken["grouped"][1:], taken["chosen"][1:], strict=True)  # the first warms up
        row = {
            "tokens": tokens,
            **{f"{n}_ms": round(1e3 * statistics.median(t[1:]), 3) for n, t in taken.items()},
            "speedup": round(statistics.median(a / b for a, b in pairs), 3),
            "model": arguments.model,
            "cpu": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
