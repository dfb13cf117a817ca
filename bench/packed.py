"""What packing int8 weights for AMX gains over plain int8 layers, and what the packing costs.

    python bench/packed.py [--model tiny] [--layers 2] [--rounds 30] [--prefill 480] [--tiles 2]

Some layers of the model's exact shapes (the first one dense, the others with experts), its output
head and as many vision blocks hold the same random int8 weights plain and packed. Both take turns
in one process, and the median of the ratios of one round counts. Results must be equal bit for bit,
or the script fails. `operations` are PyTorch's operations that Python calls for one decoded token,
counted for two and three layers so that one MoE layer is the difference. Prints JSON lines. On a
CPU without AMX there is nothing to measure, and the script says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vl2.benchmarks.timing import middle, ratio, seconds, take_turns
from vl2.config import VL2Config
from vl2.model.packed import pack_model, unpack_model
from vl2.model.quantized import default_plan, quantize_modules
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache
from vl2.ops.packed import has_packed_int8

CONTEXT = 480
"""Cached tokens that a decoded one attends to: a picture of one tile and a short question."""
Step = Callable[[], Tensor]


def build(name: str, layers: int) -> VL2Model:
    """An int8 model of exact widths with few layers on both sides."""
    config = VL2Config.preset(name)
    language = replace(config.language_config, num_hidden_layers=layers)
    vision = replace(config.vision_config, layers=layers, global_pool="")
    model = VL2Model(replace(config, language_config=language, vision_config=vision)).eval()
    model.init_weights(torch.Generator().manual_seed(5))
    quantize_modules(model, default_plan(model, "int8"))
    return model


def language_step(model: VL2Model, tokens: int) -> Step:
    """One decoding step of one sequence, or a prefill of many tokens, with logits of the last."""
    language, config = model.language, model.config.language_config
    generator = torch.Generator().manual_seed(7)
    embeds = torch.randn(1, tokens, config.hidden_size, generator=generator)
    past = CONTEXT if tokens == 1 else 0
    cache = KVCache.empty(config, 1, past + tokens)
    for rows in cache.layers:
        rows.normal_(generator=generator)

    def step() -> Tensor:
        cache.length = past
        return language.logits(language(embeds, cache=cache).hidden[:, -1:])

    return step


def vision_step(model: VL2Model, tiles: int) -> Step:
    """Tiles through the vision blocks."""
    side = model.config.vision_config.image_size
    pixels = torch.randn(tiles, 3, side, side, generator=torch.Generator().manual_seed(7))
    return lambda: model.vision(pixels)


def compared(plain: Step, packed: Step, rounds: int) -> dict[str, float | bool]:
    """Medians in milliseconds and of the ratios, both in turn, after a round that warms up."""
    if not torch.equal(plain(), packed()):
        raise SystemExit("packed layers give other numbers than plain ones")
    timers = {"plain": lambda turn: seconds(plain), "packed": lambda turn: seconds(packed)}
    taken = take_turns(timers, rounds)
    return {
        **{f"{form}_ms": round(1e3 * middle(found), 2) for form, found in taken.items()},
        "packed_over_plain": ratio(taken["plain"], taken["packed"]),
        "equal": True,
    }


def operations(step: Step) -> int:
    """PyTorch's operations of a step that no other one calls."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    return sum(event.cpu_parent is None for event in recorded.events() or ())


def packing(model: VL2Model) -> dict[str, float]:
    """Seconds to pack and unpack a gigabyte of weights; the model is packed then."""
    read = sum(t.nbytes for key, t in model.state_dict().items() if key.endswith(".int8"))
    found = {"gb": round(read / 1e9, 3)}
    for name, change in (("pack", pack_model), ("unpack", unpack_model)):
        found[f"{name}_s_per_gb"] = round(seconds(partial(change, model)) / read * 1e9, 2)
    pack_model(model)
    return found


def both_forms(name: str, layers: int) -> tuple[VL2Model, VL2Model, dict[str, float]]:
    """The model plain and packed, and what packing took."""
    plain = build(name, layers)
    packed = copy.deepcopy(plain)
    return plain, packed, packing(packed)


def counted(name: str) -> dict[str, int]:
    """Operations of one token with two layers, and what a further MoE layer adds."""
    found = {}
    for layers in (2, 3):
        plain, packed, _ = both_forms(name, layers)
        for form, model in (("plain", plain), ("packed", packed)):
            found[f"{form}_{layers}_layers"] = operations(language_step(model, 1))
    for form in ("plain", "packed"):
        found[f"{form}_moe_layer"] = found[f"{form}_3_layers"] - found[f"{form}_2_layers"]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure packed int8 layers against plain ones.")
    parser.add_argument("--model", default="tiny", choices=("tiny", "small", "base", "nano"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prefill", type=int, default=480, help="tokens; 0 leaves it out")
    parser.add_argument("--tiles", type=int, default=2, help="of a picture; 0 leaves it out")
    arguments = parser.parse_args()
    machine = {
        "cpu": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packed_int8": has_packed_int8(),
    }
    print(json.dumps({"model": arguments.model, "layers": arguments.layers, **machine}))
    if not has_packed_int8():
        raise SystemExit("this CPU has no AMX: pack_model leaves every layer as it is")
    few = max(3, arguments.rounds // 6)
    with torch.inference_mode():
        plain, packed, took = both_forms(arguments.model, arguments.layers)
        print(json.dumps({"packing": took}), flush=True)
        for tokens, rounds in ((1, arguments.rounds), (8, few), (arguments.prefill, few)):
            if tokens:
                first, second = language_step(plain, tokens), language_step(packed, tokens)
                found = compared(first, second, rounds)
                name = "decode" if tokens == 1 else "prefill"
                print(json.dumps({name: {"tokens": tokens, **found}}), flush=True)
        if arguments.tiles:
            first, second = (vision_step(model, arguments.tiles) for model in (plain, packed))
            found = {"tiles": arguments.tiles, **compared(first, second, few)}
            print(json.dumps({"vision": found}), flush=True)
        print(json.dumps({"operations": counted(arguments.model)}))


if __name__ == "__main__":
    main()
