"""How fast the embedded model's tower trains on this CPU, beside what a product reaches here.

    python bench/tower.py [--tiles 16] [--repeats 5] [--threads 2]

A step is the loss of characters at their places, forward and backward, without the optimiser. The
arms run in turn in one process:

    float32     as the weights are kept
    fused       the bfloat16 twin with PyTorch's fused attention
    multiplied  scores of attention multiplied out
    compiled    the same with compiled blocks
    native      GELU and softmax in C
    both        compiled around them, as the twin trains

"share" is of the fastest bfloat16 product of the tower's own shapes in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from vl2.benchmarks.timing import middle, seconds, take_turns
from vl2.data.collate import TrainBatch
from vl2.model import siglip
from vl2.model.vl2 import VL2Model
from vl2.ops.native import kernels
from vl2.recipes.embedded.see import PlaceReader, SeeTask
from vl2.recipes.embedded.shape import embedded


def tower_flops(tiles: int) -> float:
    """Operations of a step: products of weights and of attention, forward and backward."""
    config = embedded().vision_config
    patches, width = config.patches_per_side**2, config.width
    weights = config.layers * (4 * width**2 + 2 * width * config.mlp_hidden)
    weights += 3 * config.patch_size**2 * width
    scores = 2 * config.layers * patches * width
    return 6.0 * tiles * patches * (weights + scores)


def ceiling(rows: int, repeats: int) -> float:
    """The fastest bfloat16 product of the tower's shapes, in operations per second."""
    width, hidden = embedded().vision_config.width, embedded().vision_config.mlp_hidden
    best = 0.0
    for inner, outer in ((width, hidden), (hidden, width), (width, 3 * width)):
        x = torch.randn(rows, inner, dtype=torch.bfloat16)
        w = torch.randn(outer, inner, dtype=torch.bfloat16)
        taken = min(seconds(lambda x=x, w=w: F.linear(x, w)) for _ in range(10 * repeats))
        best = max(best, 2.0 * rows * inner * outer / taken)
    return best


def random_batch(tiles: int) -> TrainBatch:
    """Noise with places anywhere."""
    side = embedded().vision_config.image_size
    places = torch.stack([torch.randint(high, (1024,)) for high in (tiles, side, side, 95)], dim=1)
    return TrainBatch(tensors={"tiles": torch.randn(tiles, 3, side, side), "places": places})


def float32_step(module: PlaceReader, batch: TrainBatch) -> None:
    """The same loss on the weights themselves."""
    tiles, places = batch.tensors["tiles"], batch.tensors["places"]
    F.cross_entropy(module(tiles, places), places[:, 3]).backward()


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own attention."""
    return F.scaled_dot_product_attention(query, key, value)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(0))
    reader, batch = PlaceReader(model), random_batch(arguments.tiles)
    task, quick, both = SeeTask(reader), *(SeeTask(reader, compiled=True) for _ in range(2))

    def with_fused() -> None:
        with kernels.left_out(), mock.patch.object(siglip, "patch_attention", fused):
            task.accumulate([batch])

    def without_native() -> None:
        with kernels.left_out():
            task.accumulate([batch])

    def with_compiled() -> None:
        with kernels.left_out():
            quick.accumulate([batch])

    arms: dict[str, Callable[[], object]] = {
        "float32": lambda: float32_step(reader, batch),
        "fused": with_fused,
        "multiplied": without_native,
        "compiled": with_compiled,
        "native": lambda: task.accumulate([batch]),
        "both": lambda: both.accumulate([batch]),
    }
    timers = {name: lambda _, arm=arm: seconds(arm) for name, arm in arms.items()}
    taken = take_turns(timers, arguments.repeats)
    best = ceiling(
        arguments.tiles * embedded().vision_config.patches_per_side ** 2, arguments.repeats
    )
    medians = {name: middle(times) for name, times in taken.items()}
    speed = {name: tower_flops(arguments.tiles) / time_ for name, time_ in medians.items()}
    row = {
        "bench": "tower",
        "machine": f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}",
        "tiles": arguments.tiles,
        "gemm_gflops": round(best / 1e9),
        "step_s": {name: round(time_, 3) for name, time_ in medians.items()},
        "tiles_per_s": {name: round(arguments.tiles / time_, 1) for name, time_ in medians.items()},
        "gflops": {name: round(value / 1e9) for name, value in speed.items()},
        "share": {name: round(value / best, 3) for name, value in speed.items()},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
