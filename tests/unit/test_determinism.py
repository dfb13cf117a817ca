"""`compute.deterministic`: the same bits again, also on a card."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vl2.overrides import override
from vl2.recipes.stages import RECIPES
from vl2.train.determinism import WORKSPACE, use_deterministic_algorithms
from vl2.train.setup import build, prepare


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def trained(folder: Path, *settings: str) -> tuple[list[bool], dict[str, torch.Tensor]]:
    """Whether kernels were deterministic at each step, and the model after two of them."""
    short = [f"out={folder}", "steps=2", "data.workers=0", "compute.deterministic=true"]
    short += ["data.micro_batch=1", "data.batch_size=1", "checkpoint.asynchronous=false"]
    trainer = build(prepare(override(RECIPES["debug_align"](), [*short, *settings])))
    chosen, model = [], trainer.task.module
    model.register_forward_pre_hook(
        lambda *_: chosen.append(torch.are_deterministic_algorithms_enabled())
    )
    with trainer.store:
        trainer.run()
    return chosen, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_run_is_deterministic_from_its_first_step(tmp_path):
    assert set(trained(tmp_path, "compute.device=cpu", "steps=1")[0]) == {True}
    assert os.environ[WORKSPACE] == ":4096:8"


def test_a_workspace_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    use_deterministic_algorithms()
    assert os.environ[WORKSPACE] == ":16:8"
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_two_deterministic_runs_on_a_card_are_equal(tmp_path):
    runs = [trained(tmp_path / name, "compute.device=cuda")[1] for name in ("first", "second")]
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
