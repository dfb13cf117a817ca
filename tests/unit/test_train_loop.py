"""The plain training loop: what trains, how fast, and that stopping changes nothing."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from vl2.train.loop import Stage, StepResult, freeze, learning_rate_factor, train_stage
from vl2.train.muon import Muon, orthogonalised

STAGE = Stage(name="fit", steps=30, learning_rate=0.02, trained=("",), warmup=5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Linear(4, 8)
        self.body = nn.Linear(8, 3)

    def step(self, batch: dict[str, torch.Tensor]) -> StepResult:
        out = self.body(torch.tanh(self.vision(batch["x"])))
        loss = (out - batch["y"]).square().mean()
        return StepResult(loss=loss, report={"loss": loss.item()})


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        x = torch.randn(16, 4, generator=generator)
        yield {"x": x, "y": torch.stack((x[:, 0], x[:, 1] * x[:, 2], x.sum(-1)), dim=1)}


def test_a_stage_learns_and_writes_its_metrics(tmp_path):
    net = Net()
    before = net.step(next(batches())).loss.item()
    train_stage(net, replace(STAGE, steps=200), batches(), net.step, tmp_path)
    assert net.step(next(batches())).loss.item() < before / 3
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 201, 20))


class Stopped(Exception):
    pass


def stop_after(steps: int, source):
    for index, batch in enumerate(source):
        if index == steps:
            raise Stopped
        yield batch


def test_stopping_and_going_on_is_bitwise_the_same(tmp_path):
    stage = replace(STAGE, steps=400)
    whole, halves = Net(), Net()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train_stage(whole, stage, batches(), whole.step, tmp_path / "a")
    with pytest.raises(Stopped):
        train_stage(halves, stage, stop_after(250, batches()), halves.step, tmp_path / "b")
    fresh = Net()
    train_stage(fresh, stage, batches(), fresh.step, tmp_path / "b")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_only_what_the_stage_names_moves(tmp_path):
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    train_stage(net, replace(STAGE, trained=("body",)), batches(), net.step, tmp_path)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"body.weight", "body.bias"}
    saved = torch.load(tmp_path / "fit.pt", weights_only=True)
    assert set(saved["state"]) == moved


def test_a_stage_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing would train"):
        freeze(Net(), ("head",))


def test_schedules_warm_up_and_decay():
    assert learning_rate_factor(STAGE, 0) == pytest.approx(0.2)
    assert learning_rate_factor(STAGE, 5) == pytest.approx(1.0)
    assert learning_rate_factor(STAGE, 30) == pytest.approx(0.1)
    assert learning_rate_factor(replace(STAGE, horizon=55), 30) == pytest.approx(0.55)
    assert learning_rate_factor(replace(STAGE, schedule="constant"), 29) == 1.0


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (3, 6, 4)])
def test_orthogonalised_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_muon_decays_weights_without_a_gradient_direction():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((4, 4), 0.95))
