"""`vl2 train` on several ranks gives the model that one rank gives."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.launch import run_ranks
from torch import Tensor

from vl2.data.config import SourceConfig
from vl2.data.loader import TrainLoader
from vl2.parallel.config import ParallelConfig
from vl2.recipes.stages import RECIPES
from vl2.train.config import CheckpointConfig, TrainConfig
from vl2.train.setup import prepare, run

STEPS = 10
TEXT = "text.jsonl"
"""Beside the run folders: documents of 100 to 200 tokens, of which one or two fill a row."""
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
    """Everything trains, biases move, and of 8 rows a step some are text alone."""
    recipe = RECIPES["debug_align"]()
    sources = (*recipe.data.sources, SourceConfig(path=str(folder.parent / TEXT), format="text"))
    return replace(
        recipe,
        stage="pretrain",
        steps=steps,
        out=str(folder),
        data=replace(
            recipe.data, sources=sources, batch_size=8, micro_batch=1, sequence_length=256
        ),
        balance=RECIPES["debug_pretrain"]().balance,
        checkpoint=CheckpointConfig(every=5),
        compute=replace(recipe.compute, threads=1),
        parallel=parallel,
        log_every=1,
    )


def write_text(folder: Path) -> None:
    lines = [
        {"text": f"{row} " + "the quick dog ran over a hill " * (12 + row)} for row in range(9)
    ]
    (folder / TEXT).write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    write_text(folder)
    run(config(folder / "run", ParallelConfig()))
    return folder / "run"


def test_some_rows_of_a_step_are_text_alone(tmp_path: Path):
    write_text(tmp_path)
    prepared = prepare(config(tmp_path / "run", ParallelConfig()))
    data, processor = prepared.config.data, prepared.origin.processor
    with TrainLoader(data, processor, prepared.sources, prepared.index) as loader:
        steps = list(itertools.islice(loader, STEPS))
    seen = [["images" in batch.tensors for batch in step] for step in steps]
    assert sum(any(step) and not all(step) for step in seen) > STEPS // 2


@pytest.mark.parametrize("world", LAYOUTS)
def test_every_layout_trains_the_model_of_one_rank(world: int, alone: Path, tmp_path: Path):
    write_text(tmp_path)
    run_ranks(world, train_all, str(tmp_path), world, timeout=180, group=False)
    for name in LAYOUTS[world]:
        assert losses(tmp_path / name) == pytest.approx(losses(alone), rel=1e-5), name
        worst = worst_difference(alone, tmp_path / name)
        assert worst < 1e-5, (name, worst)
