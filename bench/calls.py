"""Python calls, and files of vl2, on the way to a product with held weights.

    python bench/calls.py

A line of JSON for a linear layer, and for experts of one and of seven tokens, per kind of weight,
in inference mode. Runs without the checks of shapes, which wrap every function.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

os.environ["JAXTYPING_DISABLE"] = "1"  # before vl2 is imported

import torch

import vl2
from vl2.config import VL2Config
from vl2.model.linear import Linear
from vl2.model.moe import Experts
from vl2.model.quantized import quantized_copy
from vl2.ops.kinds import KINDS
from vl2.ops.moe import Routing

WIDTH, EXPERTS, CHOSEN = 128, 8, 3
OURS = str(Path(vl2.__file__).parent)


def count(run: Callable[[], object]) -> dict[str, int]:
    """Calls of a run that has run before, what it calls first left out of the count."""
    called: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_filename)

    with torch.inference_mode():
        run()
        sys.setprofile(note)
        run()
        sys.setprofile(None)
    found = called[1:]  # the first is `run` itself
    return {"calls": len(found), "files": len({f for f in found if f.startswith(OURS)})}


def main() -> None:
    """Print the counts."""
    config = replace(
        VL2Config.tiny().language_config,
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_key_value_heads=4,
        moe_intermediate_size=96,
        n_routed_experts=EXPERTS,
    )
    for kind in KINDS:
        layer = quantized_copy(Linear(WIDTH, 200, bias=False), kind, "language.linear")
        x = torch.randn(1, WIDTH)
        found = count(lambda layer=layer, x=x: layer(x))
        print(json.dumps({"kind": kind, "what": "linear", "rows": 1, **found}))
        stack = quantized_copy(Experts(config), kind, "language.experts")
        for rows in (1, 7):
            x, scores = torch.randn(rows, WIDTH), torch.rand(rows, EXPERTS)
            weights, chosen = scores.topk(CHOSEN)
            routing = Routing(chosen, weights, scores)
            found = count(lambda stack=stack, x=x, routing=routing: stack(x, routing))
            print(json.dumps({"kind": kind, "what": "experts", "rows": rows, **found}))


if __name__ == "__main__":
    main()
