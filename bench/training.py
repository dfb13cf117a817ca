"""How fast one training step is, against the same step with loops over the experts.

    python bench/training.py [--model nano|tiny|small|base] [--repeats 7] [--threads 2] [--quick]

A language model with the routing of the named size (64 or 72 routed experts, 6 of them per token,
shared ones beside) at a width that takes seconds on a CPU, AdamW. A step is forward, backward,
clipping and update. The arms run in turn in one process and the ratios are of their medians:

    loop           `expert_mlp_ref`, the plain twin, float32: "train_step_speedup" is against it
    matrix_loop    the same loop over one matrix per expert, which spares the twin's backward pass a
                   gradient of the whole stack for each expert: the official code's way
    grouped        ours in float32
    bfloat16       ours as the recipes train: float32 weights, bfloat16 products (autocast)
    bfloat16_loop  the loop over matrices with them

With `--model nano` it times the embedded model as its recipe trains it: the tower's stage on 16
tiles, and a whole step on pictures of two tiles and their questions, without the optimiser. "share"
is of the fastest bfloat16 product of the tower's shapes in the same run. The arms:

    float32     as the weights are kept
    autocast    bfloat16 products, every weight cast anew; of the whole step alone
    portable    a bfloat16 twin without C, scores of the tower's attention multiplied out
    compiled    the same with compiled blocks; of the tower alone
    fused       a twin with C, attention of the decoder by PyTorch; of the whole step alone
    native      a twin with C, one batch in all threads
    halves      two micro batches side by side on twins
    twins       as many as it trains with, shared out by their size

With CUDA it also prints the model FLOP utilisation of a step of Tiny's exact shapes, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vl2.benchmarks.timing import Timer, middle, seconds, take_turns
from vl2.config import LanguageConfig, VL2Config
from vl2.data.collate import TrainBatch
from vl2.data.make.sample import Made, ask
from vl2.model import moe
from vl2.model.vl2 import VL2Model
from vl2.ops import attention
from vl2.ops.moe import Routing, expert_mlp, expert_mlp_ref, route
from vl2.ops.native import kernels
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.recipes.embedded.answers import cut_answers, encode
from vl2.recipes.embedded.see import PlaceReader, SeeTask
from vl2.recipes.embedded.shape import embedded
from vl2.train.config import TRAINED, BalanceConfig, ComputeConfig, OptimConfig
from vl2.train.flops import flops_by_part, model_work, step_flops
from vl2.train.metrics import batch_size, peak_flops
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask

Run = Callable[[Sequence[TrainBatch]], object]
Arms = Mapping[str, Run]


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
        return seconds(lambda: self._run(batch))

    def _run(self, batch: TrainBatch) -> None:
        self.task.accumulate([batch])
        self.optimizers.clip()
        self.optimizers.step()
        self.optimizers.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()


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
    timers = {name: partial(_timed, step, batch, mlp) for name, (step, mlp) in arms.items()}
    median = {name: middle(times) for name, times in take_turns(timers, repeats).items()}
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


def _timed(step: Step, batch: TrainBatch, mlp: Callable[..., Tensor], turn: int) -> float:
    with experts_by(mlp):
        return step(batch)


def utilisation(repeats: int) -> dict[str, object] | None:
    """MFU of Tiny's exact shapes on a CUDA device; None without one whose peak is known."""
    if not torch.cuda.is_available() or (peak := peak_flops(torch.device("cuda"))) is None:
        return None
    config = VL2Config.tiny()
    batch = text_batch(config, 4, 4096, "cuda")
    step = Step(config, torch.bfloat16, "cuda")
    step(batch)
    [taken] = take_turns({"": lambda turn: step(batch)}, repeats).values()
    step_s = middle(taken)
    flops = step_flops(model_work(step.task.model, ComputeConfig()), batch_size([batch]))
    name = torch.cuda.get_device_name()
    speed = round(batch.tokens / step_s)
    return {"device": name, "tokens_per_s": speed, "mfu": round(flops / step_s / peak, 4)}


def ceiling(rows: int, repeats: int) -> float:
    """The fastest bfloat16 product of the embedded tower's shapes, in operations per second."""
    width, hidden = embedded().vision_config.width, embedded().vision_config.mlp_hidden
    best = 0.0
    for inner, outer in ((width, hidden), (hidden, width), (width, 3 * width)):
        x = torch.randn(rows, inner, dtype=torch.bfloat16)
        w = torch.randn(outer, inner, dtype=torch.bfloat16)
        taken = min(seconds(lambda x=x, w=w: F.linear(x, w)) for _ in range(10 * repeats))
        best = max(best, 2.0 * rows * inner * outer / taken)
    return best


def embedded_model() -> VL2Model:
    """The embedded model with random weights."""
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


def noise_tiles(count: int) -> TrainBatch:
    """Tiles of noise with places anywhere, 128 to a tile."""
    side = embedded().vision_config.image_size
    highs = (count, side, side, 95)
    places = torch.stack([torch.randint(high, (128 * count,)) for high in highs], dim=1)
    tensors = {"tiles": torch.randn(count, 3, side, side), "places": places}
    return TrainBatch(tensors=tensors, images=count, tiles=count)


def tower_arms() -> tuple[Arms, list[TrainBatch]]:
    """The ways to train the tower."""
    whole, cut = [noise_tiles(16)], [noise_tiles(8) for _ in range(2)]
    reader = PlaceReader(embedded_model())
    task, quick = SeeTask(reader), SeeTask(reader)
    for block in quick.twin.module.vision.blocks:
        block.compile()

    def exact(batches: Sequence[TrainBatch]) -> None:
        [batch] = batches
        logits = reader(batch.tensors["tiles"], batch.tensors["places"])
        F.cross_entropy(logits, batch.tensors["places"][:, 3]).backward()

    arms: Arms = {
        "float32": exact,
        "portable": without_native(task.accumulate),
        "compiled": without_native(quick.accumulate),
        "native": task.accumulate,
        "twins": lambda _: task.accumulate(cut),
    }
    return arms, whole


def whole_arms() -> tuple[Arms, list[TrainBatch]]:
    """The ways to train the whole model, on pictures of two tiles with eight questions each."""
    config = embedded()
    tokenizer = Processor.from_pretrained("nano").tokenizer
    size = config.vision_config.image_size
    processor = Processor(tokenizer, ProcessorConfig.for_model(config), image_size=size)
    pictures = [Image.effect_noise((2 * size, size), 60).convert("RGB") for _ in range(12)]
    asks = tuple(ask("line.read", "What does it say?", f"{n} " * 12) for n in range(8))
    made = [Made(image=picture, marks=(), asks=asks) for picture in pictures]
    rng = np.random.default_rng(0)
    data = encode(made, processor, rng)
    whole = list(cut_answers(data, rng, 0, tokens=8192, tiles=36))
    halves = list(cut_answers(data, rng, 0, tokens=4096, tiles=18))
    quarters = list(cut_answers(data, rng, 0, tokens=2048, tiles=9))
    model = embedded_model()
    balance = BalanceConfig(bias_step=0.001)
    exact, mixed = (LanguageTask(model, balance, autocast=on) for on in (False, True))
    with mock.patch("vl2.train.task._takes_twin", return_value=False):
        cast = LanguageTask(model, balance, autocast=True)
    arms: Arms = {
        "float32": evenly_routed(exact.accumulate),
        "autocast": evenly_routed(cast.accumulate),
        "portable": evenly_routed(without_native(mixed.accumulate)),
        "fused": evenly_routed(with_fused(mixed.accumulate)),
        "native": evenly_routed(mixed.accumulate),
        "halves": evenly_routed(lambda _: mixed.accumulate(halves)),
        "twins": evenly_routed(lambda _: mixed.accumulate(quarters)),
    }
    return arms, whole


def evenly_routed(run: Run) -> Run:
    """The same with every expert equally busy, as they are soon in training: choices at random."""

    def chosen(logits: Tensor, config: LanguageConfig, _bias: Tensor | None) -> Routing:
        return route(logits, config, 10 * torch.rand_like(logits))

    def step(batches: Sequence[TrainBatch]) -> object:
        with mock.patch.object(moe, "route", chosen):
            return run(batches)

    return step


def with_fused(run: Run) -> Run:
    """The same with PyTorch's own attention in the decoder."""

    def step(batches: Sequence[TrainBatch]) -> object:
        with mock.patch.object(attention, "FEW_KEYS", 0):
            return run(batches)

    return step


def without_native(run: Run) -> Run:
    """The same without the functions in C."""

    def step(batches: Sequence[TrainBatch]) -> object:
        with kernels.left_out():
            return run(batches)

    return step


def timer(run: Run, batches: Sequence[TrainBatch]) -> Timer:
    """Seconds of one run over the batches."""
    return lambda _: seconds(lambda: run(batches))


def measure_embedded(repeats: int) -> Iterator[dict[str, object]]:
    """The tower's stage, then a whole step: both beside the same ceiling."""
    best = ceiling(16 * embedded().vision_config.patches_per_side ** 2, repeats)
    model = embedded_model()
    for part, prepare in (("tower", tower_arms), ("whole", whole_arms)):
        arms, batches = prepare()
        timers = {name: timer(run, batches) for name, run in arms.items()}
        median = {name: middle(times) for name, times in take_turns(timers, repeats).items()}
        size = batch_size(batches)
        parts = flops_by_part(model_work(model, ComputeConfig()), size)
        work = parts["vision"] if part == "tower" else sum(parts.values())
        images, tokens = (sum(getattr(b, of) for b in batches) for of in ("images", "tokens"))
        yield {
            "part": part,
            "gemm_gflops": round(best / 1e9),
            "step_s": {name: round(s, 3) for name, s in median.items()},
            "pictures_per_s": {name: round(images / s, 1) for name, s in median.items()},
            "tokens_per_s": {name: round(tokens / s) for name, s in median.items()},
            "gflops": {name: round(work / s / 1e9) for name, s in median.items()},
            "share": {name: round(work / s / best, 3) for name, s in median.items()},
            "repeats": repeats,
        }


def main() -> None:
    """Measure and print JSON lines."""
    parser = argparse.ArgumentParser(description="Speed of one training step.")
    parser.add_argument("--model", choices=("nano", "tiny", "small", "base"), default="tiny")
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
    if given.model == "nano":
        for found in measure_embedded(given.repeats):
            print(json.dumps({**row, **found}))
        return
    print(json.dumps({**row, **compare(given.model, given.repeats, quick=given.quick)}))


if __name__ == "__main__":
    main()
