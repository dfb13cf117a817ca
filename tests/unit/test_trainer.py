"""The trainer: it learns, stopping changes nothing, and bad steps leave no trace."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from vl2.checkpoint.commit import committed
from vl2.checkpoint.dcp import CheckpointStore, read_extra
from vl2.checkpoint.manifest import step_number
from vl2.data.collate import Sample, TrainBatch
from vl2.failure import WorkError
from vl2.train.config import CheckpointConfig, GuardConfig, OptimConfig
from vl2.train.metrics import MetricsLog
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import StepReport
from vl2.train.trainer import Trainer, TrainingStopped


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.Linear(4, 8)
        self.body = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))


class NetTask:
    """Regression; `poison` maps a step's number to what its loss is multiplied with."""

    def __init__(
        self, net: Net, poison: dict[int, float] | None = None, once: bool = False
    ) -> None:
        self.module = self.net = net
        self.poison, self.once = dict(poison or {}), once
        self.discarded = 0

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        [batch] = batches
        out = self.net.body(torch.tanh(self.net.vision(batch.tensors["x"])))
        loss = (out - batch.tensors["y"]).square().mean()
        factor = self.poison.get(batch.samples[0].position, 1.0)
        if self.once:
            self.poison.pop(batch.samples[0].position, None)
        (loss * factor).backward()
        return StepReport(loss=float(loss.detach()) * factor)

    def after_step(self) -> None:
        self.net.seen += 1

    def discard(self) -> None:
        self.discarded += 1


class Numbers:
    """Batches that are a function of their index."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Sequence[TrainBatch]]:
        while True:
            index, self.next = self.next, self.next + 1
            generator = torch.Generator().manual_seed(index)
            x = torch.randn(64, 4, generator=generator)
            y = torch.stack((x[:, 0], x[:, 1] * x[:, 2], x.sum(-1)), dim=1).tanh()
            y += 0.3 * torch.randn(64, 3, generator=generator)
            samples = (Sample(source=0, position=index, row=index, id=f"r{index}"),)
            tensors = {"x": x, "y": y}
            yield [TrainBatch(tensors=tensors, source_names=("s",), samples=samples, tokens=64)]

    def state(self) -> dict[str, int]:
        return {"next": self.next}

    def restore(self, state: dict[str, int]) -> None:
        self.next = state["next"]

    def close(self) -> None:
        self.closed = True


def trainer(folder: Path, task: NetTask, steps: int = 40, **settings) -> Trainer:
    freeze(task.module, settings.pop("trained", ("",)))
    checkpoint = CheckpointConfig(
        every=settings.pop("every", 10), asynchronous=settings.pop("asynchronous", False)
    )
    return Trainer(
        task,
        Numbers(),
        Optimizers(task.module, OptimConfig(learning_rate=0.01, warmup=5), steps),
        CheckpointStore(folder / "checkpoints", keep=3),
        MetricsLog(folder, steps=steps, every=10, stage="fit"),
        guard=GuardConfig(**settings.pop("guard", {})),
        checkpoint=checkpoint,
        fingerprint=settings.pop("fingerprint", None),
    )


def run(folder: Path, task: NetTask, steps: int = 40, **settings) -> Trainer:
    folder.mkdir(exist_ok=True)
    made = trainer(folder, task, steps, **settings)
    try:
        made.run()
    finally:
        made.store.close()
    return made


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(text) for text in (folder / name).read_text().splitlines()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


def test_a_run_learns_and_writes_its_metrics(tmp_path: Path):
    net = Net()
    run(tmp_path, NetTask(net), steps=300)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(10, 301, 10))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert {"grad_norm", "lr", "tokens_per_s", "data_wait"} <= rows[0].keys()
    assert net.seen == 300


@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_runs_go_on_bit_for_bit(tmp_path: Path, asynchronous: bool):
    whole = Net()
    run(tmp_path / "whole", NetTask(whole))
    parts = tmp_path / "parts"
    for last in (7, 20, 33, 40):
        task = NetTask(Net())
        parts.mkdir(exist_ok=True)
        made = trainer(parts, task, 40, every=1, asynchronous=asynchronous)
        take = made._take

        def limited(*arguments, made=made, take=take, last=last):
            if made.step == last:
                raise KeyboardInterrupt
            return take(*arguments)

        made._take = limited
        try:
            made.run()
        except KeyboardInterrupt:
            assert made.step == last
        finally:
            made.store.close()
    assert same(task.module, whole)
    assert [row["step"] for row in lines(parts)] == [10, 20, 30, 40]
    kept = ("step", "lr", "loss", "grad_norm")
    expected = [{k: row[k] for k in kept} for row in lines(tmp_path / "whole")]
    assert [{k: row[k] for k in kept} for row in lines(parts)] == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_at_a_steps_end_with_its_state(tmp_path: Path, number: int):
    net = Net()
    task = NetTask(net)
    after = task.after_step

    def signalled() -> None:
        after()
        if net.seen == 13:
            os.kill(os.getpid(), number)

    task.after_step = signalled
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped, match="step 13 of 40"):
        run(tmp_path, task)
    assert signal.getsignal(number) is before
    again = Net()
    run(tmp_path, NetTask(again))
    whole = Net()
    run(tmp_path / "whole", NetTask(whole))
    assert same(again, whole)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 100.0])
def test_one_bad_step_costs_one_step_and_is_written_down(tmp_path: Path, factor: float):
    net = Net()
    made = run(tmp_path, NetTask(net, {50: factor}), steps=60)
    assert net.seen == 59
    assert made.guard.skipped == 1
    [line] = lines(tmp_path, "quarantine.jsonl")
    assert line["step"] == 51
    assert line["samples"] == [{"source": "s", "id": "r50", "position": 50}]
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_thrown_away_step_moves_nothing(tmp_path: Path):
    task = NetTask(Net(), {3: float("nan")})
    made = trainer(tmp_path, task)
    made._resume()
    batches = iter(made.loader)
    for _ in range(3):
        made._take(next(batches), 0.0, 0.0)
    before = {k: v.clone() for k, v in made._tensors().items()}
    made._take(next(batches), 0.0, 0.0)
    made.store.close()
    after = made._tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert task.discarded == 1


def test_a_fault_that_does_not_come_back_costs_nothing(tmp_path: Path):
    net, clean = Net(), Net()
    made = run(tmp_path / "a", NetTask(net, {20: float("nan")}, once=True))
    run(tmp_path / "b", NetTask(clean))
    assert made.guard.skipped == 0
    assert same(net, clean)


def test_bad_steps_in_a_row_go_back_and_skip_their_batches(tmp_path: Path):
    net = Net()
    made = run(tmp_path, NetTask(net, {n: float("nan") for n in (23, 24, 25)}))
    assert made.guard.rollbacks == 1
    assert made.step == 40
    assert made.loader.next == 46  # six batches more than steps: 20, 21, 22 again, 23 to 25 never
    assert net.seen == 40


def test_a_run_that_stays_bad_ends_with_a_reason(tmp_path: Path):
    bad = {n: float("nan") for n in range(15, 400)}
    with pytest.raises(WorkError, match=r"3 bad steps in a row.*learning_rate"):
        run(tmp_path, NetTask(Net(), bad), guard={"rollbacks": 2})


def test_a_clean_run_is_not_disturbed(tmp_path: Path):
    made = run(tmp_path, NetTask(Net()), steps=1500, every=1500)
    assert made.guard.skipped == 0


def test_a_state_of_another_run_is_refused_before_a_tensor_moves(tmp_path: Path):
    run(tmp_path, NetTask(Net()), fingerprint={"stage": "align"})
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="stage was 'align', is 'sft'"):
        run(tmp_path, NetTask(net), fingerprint={"stage": "sft"})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_only_what_trains_is_kept(tmp_path: Path):
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    made = run(tmp_path, NetTask(net), trained=("body",))
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"body.weight", "body.bias", "seen"}
    kept = {k for k in made._tensors() if k.startswith("model.")}
    assert kept == {"model.body.weight", "model.body.bias", "model.seen"}


class LateTask(NetTask):
    """Teaches the tower nothing before batch 5, as text alone does."""

    def accumulate(self, batches: Sequence[TrainBatch]) -> StepReport:
        report = super().accumulate(batches)
        if batches[0].samples[0].position < 5:
            for parameter in self.net.vision.parameters():
                parameter.grad = None
        return report


def test_a_run_goes_on_from_before_a_parameters_first_gradient(tmp_path: Path):
    whole, parts = Net(), Net()
    run(tmp_path / "whole", LateTask(whole), steps=10)
    task = LateTask(Net())
    after = task.after_step

    def stopped() -> None:
        after()
        if task.net.seen == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    task.after_step = stopped
    with pytest.raises(TrainingStopped):
        run(tmp_path / "parts", task, steps=10)
    run(tmp_path / "parts", LateTask(parts), steps=10)
    assert same(parts, whole)


def test_a_run_of_which_every_step_is_bad_fails_and_keeps_nothing(tmp_path: Path):
    for steps in (1, 2, 3, 40):
        folder = tmp_path / str(steps)
        bad = {n: float("nan") for n in range(50)}
        with pytest.raises(WorkError, match=r"3 bad steps in a row at step .* no saved state"):
            run(folder, NetTask(Net(), bad), steps, every=1)
        assert committed(folder / "checkpoints") == []


@pytest.mark.parametrize("first", [0, 25])
def test_more_skips_in_a_row_than_steps_are_no_way_without_end(tmp_path: Path, first: int):
    bad = {n: float("nan") for n in range(first, 400)}
    with pytest.raises(WorkError, match="40 bad steps in a row"):
        run(tmp_path, NetTask(Net(), bad), guard={"skips_in_a_row": 10**9, "rollbacks": 2})
    kept = [step_number(folder) for folder in committed(tmp_path / "checkpoints")]
    assert kept == ([10, 20] if first else [])


@pytest.mark.parametrize("first", range(5, 10))
@pytest.mark.parametrize("count", [1, 2])
def test_no_state_is_kept_inside_a_streak(tmp_path: Path, first: int, count: int):
    bad = {n: float("nan") for n in range(first, first + count)}
    made = trainer(tmp_path, NetTask(Net(), bad), 10, every=4)
    streaks, save = [], made._save

    def saved(*, asynchronous: bool) -> None:
        streaks.append((made.step, made.guard.in_a_row))
        save(asynchronous=asynchronous)

    made._save = saved
    made.run()
    made.store.close()
    assert {in_a_row for _, in_a_row in streaks} == {0}
    assert streaks[0][0] == 4
    assert 8 <= streaks[1][0] <= 10  # after the streak, not before the next time it is due
    assert streaks[-1][0] == made.step == 10
    assert made.guard.in_a_row == 0


def test_a_signal_inside_a_streak_waits_for_its_end(tmp_path: Path):
    task = NetTask(Net(), {12: float("nan"), 13: float("nan")})
    discard = task.discard

    def signalled() -> None:
        discard()
        os.kill(os.getpid(), signal.SIGTERM)

    task.discard = signalled
    with pytest.raises(TrainingStopped, match="step 15 of 40"):
        run(tmp_path, task)
    [*_, last] = committed(tmp_path / "checkpoints")
    assert read_extra(last)["guard"]["in_a_row"] == 0


@pytest.mark.parametrize("every", [1, 100])
def test_parameters_that_are_not_finite_are_never_kept(tmp_path: Path, every: int):
    task = NetTask(Net())
    after, times = task.after_step, []

    def broken() -> None:
        after()
        if (
            task.net.seen == 40 and not times
        ):  # as a step that is too large breaks them: no loss shows it
            times.append(1)
            task.net.body.weight.data[0, 0] = float("inf")

    task.after_step = broken
    if every == 100:
        with pytest.raises(WorkError, match=r"not finite at step .* no saved state to go back to"):
            run(tmp_path, task, every=every)
        assert committed(tmp_path / "checkpoints") == []
        return
    made = run(tmp_path, task, every=every)
    assert made.guard.rollbacks == 1
    assert all(p.isfinite().all() for p in task.net.parameters())


def test_a_run_whose_states_are_all_damaged_is_refused(tmp_path: Path):
    run(tmp_path, NetTask(Net()))
    for folder in committed(tmp_path / "checkpoints"):
        (folder / "extra.json").write_text("{}")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    match = (
        r"every saved state in .* is damaged \(steps 20, 30, 40; .*extra.json has 2 bytes.* step 0"
    )
    with pytest.raises(ValueError, match=match):
        run(tmp_path, NetTask(Net()))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
