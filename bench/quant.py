"""What int8 and int4 weights change: speed of a decoder layer, and distance of logits from floats.

    python bench/quant.py [--model tiny] [--layers 2] [--rounds 30] [--prefill 480]

Some layers of the model's exact shapes (the first one dense, the others with experts) and its
output head hold random weights in float32, int8 and int4 in one process. They take turns, so that a
noisy machine slows all of them, and the median of the ratios of one round counts. `read_share` is
the speed with which weights are read over that of one large int8 product of the same run. The
cosine is of the logits of random tokens. Set OMP_NUM_THREADS to the cores that are really free: on
a busy machine a second thread makes every small product wait. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vl2.benchmarks.ceilings import machine_ceilings
from vl2.benchmarks.random_weights import cut_layers
from vl2.benchmarks.timing import Timer, middle, ratio, seconds, take_turns
from vl2.benchmarks.work import weight_bytes_read
from vl2.config import VL2Config
from vl2.engine.quantize import quantize_model
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache

FORMS = ("float32", "int8", "int4")
CONTEXT = 480
"""Cached tokens that a decoded one attends to: a picture of one tile and a short question."""


def build(name: str, layers: int) -> VL2Model:
    """A model of exact widths with few layers and the smallest vision tower."""
    model = VL2Model(cut_layers(VL2Config.preset(name), layers, 1))
    model.init_weights(torch.Generator().manual_seed(5))
    return model.eval()


def in_forms(model: VL2Model) -> dict[str, VL2Model]:
    """The model in each form; the floats are those given."""
    forms = {"float32": model}
    for scheme in FORMS[1:]:
        forms[scheme] = copy.deepcopy(model)
        quantize_model(forms[scheme], scheme)
    return forms


def logits_cosine(forms: dict[str, VL2Model], tokens: int) -> dict[str, float]:
    """Mean and least cosine of the logits of every position with those of the floats."""
    vocabulary = forms["float32"].config.language_config.vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))
    logits = {form: model(ids).logits[0] for form, model in forms.items()}
    found = {}
    for form in FORMS[1:]:
        near = torch.cosine_similarity(logits[form], logits["float32"], dim=-1)
        found[f"{form}_mean"] = round(float(near.mean()), 6)
        found[f"{form}_least"] = round(float(near.min()), 6)
    return found


def step_of(model: VL2Model, tokens: int) -> Callable[[], Tensor]:
    """One decoding step of one sequence, or a prefill of many tokens, with logits of the last."""
    language = model.language
    config = language.config
    embeds = torch.randn(1, tokens, config.hidden_size)
    past = CONTEXT if tokens == 1 else 0
    cache = KVCache.empty(config, 1, past + tokens)
    for rows in cache.layers:
        rows.normal_()

    def step() -> Tensor:
        cache.length = past
        return language.logits(language(embeds, cache=cache).hidden[:, -1:])

    return step


def timers(steps: Mapping[str, Callable[[], Tensor]]) -> dict[str, Timer]:
    """Seconds of each step, in any round."""
    return {form: lambda turn, step=step: seconds(step) for form, step in steps.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure quantised layers against floats.")
    parser.add_argument("--model", default="tiny", choices=("tiny", "small", "base", "nano"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prefill", type=int, default=480, help="tokens; 0 leaves it out")
    arguments = parser.parse_args()
    machine = {
        "cpu": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"model": arguments.model, "layers": arguments.layers, **machine}))
    with torch.inference_mode():
        forms = in_forms(build(arguments.model, arguments.layers))
        print(json.dumps({"logits_cosine": logits_cosine(forms, 64)}), flush=True)
        steps = {form: step_of(model, 1) for form, model in forms.items()}
        print(json.dumps({"decode": decode(forms, steps, arguments.rounds)}), flush=True)
        if arguments.prefill:
            steps = {form: step_of(model, arguments.prefill) for form, model in forms.items()}
            taken = take_turns(timers(steps), max(3, arguments.rounds // 10))
            print(json.dumps({"prefill": {"tokens": arguments.prefill, **compared(taken)}}))


def compared(taken: dict[str, list[float]]) -> dict[str, float]:
    """Medians in milliseconds and the ratios between neighbours."""
    found = {f"{form}_ms": round(1e3 * middle(s), 2) for form, s in taken.items()}
    found["int8_over_float32"] = ratio(taken["float32"], taken["int8"])
    found["int4_over_int8"] = ratio(taken["int8"], taken["int4"])
    return found


def decode(
    forms: dict[str, VL2Model], steps: dict[str, Callable[[], Tensor]], rounds: int
) -> dict[str, float]:
    """Times of one token, and what share of the streaming speed of int8 they read weights with."""
    ceiling = machine_ceilings()["int8_row"]
    taken = take_turns({**timers(steps), "streaming": ceiling.timer}, rounds)
    speed = ceiling.amount / middle(taken["streaming"])
    found = compared(taken)
    for form, model in forms.items():
        read = weight_bytes_read(model.state_dict(), model.config.language_config)
        read /= middle(taken[form])
        found[f"{form}_read_share"] = round(read / speed, 3)
    return {**found, "streaming_gb_per_s": round(speed / 1e9, 2)}


if __name__ == "__main__":
    main()
