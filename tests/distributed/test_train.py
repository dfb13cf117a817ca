"""`vl2 train` on several ranks gives the model that one rank gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.launch import run_ranks
from torch import Tensor

from vl2.parallel.config import ParallelConfig
from vl2.recipes.stages import RECIPES
from vl2.train.config import CheckpointConfig, TrainConfig
from vl2.train.setup import run

STEPS = 10
LAYOUTS = {
    2: {
        "fsdp": ParallelConfig(),
        "replicas": ParallelConfig(replicate=2, shard=1),
        "experts": ParallelConfig(expert=2),
        "pipeline": ParallelConfig(pipeline=2),
    },
    4: {
        "fsdp x experts": ParallelConfig(shard=2, expert=2),
        "pipeline x fsdp": ParallelConfig(pipeline=2, shard=2),
    },
}


def config(folder: Path, parallel: ParallelConfig, steps: int = STEPS) -> TrainConfig:
    """Everything trains, with pictures and moving biases, in batches of 8 rows."""
    recipe = RECIPES["debug_align"]()
    return replace(
        recipe,
        stage="pretrain",
        steps=steps,
        out=str(folder),
        data=replace(recipe.data, batch_size=8, micro_batch=1, sequence_length=256),
        balance=RECIPES["debug_pretrain"]().balance,
        checkpoint=CheckpointConfig(every=5),
        compute=replace(recipe.compute, threads=1),
        parallel=parallel,
        log_every=1,
    )


def train_all(root: str, world: int) -> None:
    for name, layout in LAYOUTS[world].items():
        run(config(Path(root) / name, layout))


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def state(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted((folder / "model").glob("*.safetensors")):
        found |= load_file(file)
    return found


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """The tower's key biases move no score: their gradient is rounding, and Adam walks on it."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat((query, value))


def worst_difference(one: Path, two: Path) -> float:
    """Largest relative difference of a tensor of two trained models."""
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    pairs = ((without_key_bias(n, a[n]), without_key_bias(n, b[n])) for n in a)
    return max(float((x - y).norm() / x.norm().clamp(min=1e-12)) for x, y in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(config(folder, ParallelConfig()))
    return folder


@pytest.mark.parametrize("world", LAYOUTS)
def test_every_layout_trains_the_model_of_one_rank(world: int, alone: Path, tmp_path: Path):
    run_ranks(world, train_all, str(tmp_path), world, timeout=180, group=False)
    for name in LAYOUTS[world]:
        assert losses(tmp_path / name) == pytest.approx(losses(alone), rel=1e-5), name
        assert worst_difference(alone, tmp_path / name) < 1e-5, name  # measured: 1e-6
