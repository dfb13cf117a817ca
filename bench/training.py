"""How fast one training step is, against the same step with loops over the experts.

    python bench/training.py [--model tiny|small|base] [--repeats 7] [--threads 2] [--quick]

A language model with the routing of the named size (64 or 72 routed experts, 6 of them per token,
shared ones beside) at a width that takes seconds on a CPU, AdamW. A step is forward, backward,
clipping and update. The arms run in turn in one process and the ratios are of their medians:

    loop           `expert_mlp_ref`, the plain twin, float32: "train_step_speedup" is against it
    matrix_loop    the same loop over one matrix per expert, which spares the twin's backward pass a
                   gradient of the whole stack for each expert: the official code's way
    grouped        ours in float32
    bfloat16       ours as the recipes train: float32 weights, bfloat16 products (autocast)
    bfloat16_loop  the loop over matrices with them

With CUDA it also prints the model FLOP utilisation of a step of Tiny's exact shapes, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vl2.config import VL2Config
from vl2.data.collate import TrainBatch
from vl2.model import moe
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import Routing, expert_mlp, expert_mlp_ref
from vl2.train.config import TRAINED, BalanceConfig, ComputeConfig, OptimConfig
from vl2.train.flops import model_work, step_flops
from vl2.train.metrics import batch_size, peak_flops
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask


def narrow(size: str, *, quick: bool) -> VL2Config:
    """The routing of a released size in a small model; text alone, so the tower hardly counts."""
    config = VL2Config.preset(size)
    debug = VL2Config.preset(f"debug_{size}")
    language = replace(
        config.language_config,
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        moe_intermediate_size=192,
        num_hidden_layers=2 if quick else 4,
        num_attention_heads=8,
        num_key_value_heads=8,
        **(
            {"kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
            if config.language_config.use_mla
            else {}
        ),
    )
    projector = replace(debug.projector_config, n_embed=256)
    return replace(debug, language_config=language, projector_config=projector)


def text_batch(config: VL2Config, rows: int, length: int, device: str) -> TrainBatch:
    """Random tokens, all supervised."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.language_config.vocab_size
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator).to(device)
    tensors = {"input_ids": ids, "labels": ids}
    return TrainBatch(tensors=tensors, tokens=ids.numel(), supervised=ids.numel() - rows)


class Step:
    """One model and what trains it."""

    def __init__(
        self, config: VL2Config, dtype: torch.dtype, device: str, *, autocast: bool = False
    ) -> None:
        model = VL2Model(config).to(device, dtype)
        model.init_weights(torch.Generator(device).manual_seed(0))
        freeze(model, TRAINED["sft"])
        model.train()
        self.task = LanguageTask(model, BalanceConfig(), autocast=autocast)
        self.optimizers = Optimizers(model, OptimConfig(learning_rate=1e-4), 1000)

    def __call__(self, batch: TrainBatch) -> float:
        """Seconds of a whole step."""
        start = time.perf_counter()
        self.task.accumulate([batch])
        self.optimizers.clip()
        self.optimizers.step()
        self.optimizers.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def matrix_loop(
    x: Tensor, routing: Routing, gate: Tensor, up: Tensor, down: Tensor, _change: None = None
) -> Tensor:
    """One expert after the other, each with matrices of its own, as the official code does."""
    total = torch.zeros_like(x, dtype=torch.float32)
    for expert, matrices in enumerate(zip(gate.unbind(), up.unbind(), down.unbind(), strict=True)):
        token, slot = (routing.experts == expert).nonzero(as_tuple=True)
        rows, (g, u, d) = x[token], matrices
        out = ((F.silu(rows @ g.T) * (rows @ u.T)) @ d.T).float()
        total = total.index_add(0, token, out * routing.weights[token, slot][:, None])
    return total.to(x.dtype)


@contextmanager
def experts_by(mlp: Callable[..., Tensor]) -> Iterator[None]:
    """Run the routed experts by another function."""
    grouped = moe.expert_mlp
    moe.expert_mlp = mlp
    try:
        yield
    finally:
        moe.expert_mlp = grouped


def compare(size: str, repeats: int, *, quick: bool) -> dict[str, object]:
    """Medians of all arms, run in turn."""
    config = narrow(size, quick=quick)
    batch = text_batch(config, 4, 512, "cpu")
    exact = Step(config, torch.float32, "cpu")
    mixed = Step(config, torch.float32, "cpu", autocast=True)
    arms = {
        "grouped": (exact, expert_mlp),
        "loop": (exact, expert_mlp_ref),
        "matrix_loop": (exact, matrix_loop),
        "bfloat16": (mixed, expert_mlp),
        "bfloat16_loop": (mixed, matrix_loop),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(repeats + 1):
        for name, (step, mlp) in arms.items():
            with experts_by(mlp):
                seconds = step(batch)
            if number:  # the first of each warms up
                taken[name].append(seconds)
    median = {name: statistics.median(values) for name, values in taken.items()}
    language = config.language_config
    return {
        "shapes": f"{language.n_routed_experts} experts of {language.moe_intermediate_size}, top "
        f"{language.num_experts_per_tok}, hidden {language.hidden_size}, "
        f"{language.num_hidden_layers} layers, 4 x 512 tokens, float32",
        **{f"{name}_tokens_per_s": round(batch.tokens / s) for name, s in median.items()},
        "repeats": repeats,
        "over_matrix_loop": round(median["matrix_loop"] / median["grouped"], 2),
        "bfloat16_over_bfloat16_loop": round(median["bfloat16_loop"] / median["bfloat16"], 2),
        "bfloat16_over_loop": round(median["loop"] / median["bfloat16"], 2),
        "bfloat16_over_matrix_loop": round(median["matrix_loop"] / median["bfloat16"], 2),
        "train_step_speedup": round(median["loop"] / median["grouped"], 2),
    }


def utilisation(repeats: int) -> dict[str, object] | None:
    """MFU of Tiny's exact shapes on a CUDA device; None without one whose peak is known."""
    if not torch.cuda.is_available() or (peak := peak_flops(torch.device("cuda"))) is None:
        return None
    config = VL2Config.tiny()
    batch = text_batch(config, 4, 4096, "cuda")
    step = Step(config, torch.bfloat16, "cuda")
    seconds = statistics.median([step(batch) for _ in range(repeats + 2)][2:])
    flops = step_flops(model_work(step.task.model, ComputeConfig()), batch_size([batch]))
    name = torch.cuda.get_device_name()
    speed = round(batch.tokens / seconds)
    return {"device": name, "tokens_per_s": speed, "mfu": round(flops / seconds / peak, 4)}


def main() -> None:
    """Measure and print JSON lines."""
    parser = argparse.ArgumentParser(description="Speed of one training step.")
    parser.add_argument("--model", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="half the layers")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found = utilisation(given.repeats)
    if found is not None:
        print(json.dumps(found))
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads()}
    row = {"model": given.model, **machine}
    print(json.dumps({**row, **compare(given.model, given.repeats, quick=given.quick)}))


if __name__ == "__main__":
    main()
