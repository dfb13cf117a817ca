"""The check of a card: every step runs in toy sizes, and none takes another one with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("gpu", "training", "card_steps", "card_check"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import card_check

    yield card_check
    for name in ("gpu", "training", "card_steps", "card_check"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_step_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPTS / "card_check.py"), "--device", "cpu", "--dry-run"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    ends = {record["step"]: record for record in records if "ok" in record}
    assert [end["error"] for end in ends.values()] == [None] * 13
    assert done.returncode == 0, done.stderr
    for step in ends:
        assert any(record["step"] == step and "bench" in record for record in records), step
    by = {record["bench"]: record for record in records if "bench" in record}
    assert by["versions"]["math"] is True
    assert by["gradients"]["of_empty_experts"] == 0.0
    assert by["ragged"]["first_tokens_as_alone"] == [True, True]
    assert by["resume"]["bitwise_equal"] is True
    assert by["profile"]["kernels"][0]["us"] > 0


def test_without_a_card_it_says_so(check, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("sys.argv", ["card_check.py", "--out", str(tmp_path), "--only", "versions"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 2
    printed = capfd.readouterr()
    assert "finds no CUDA device here" in printed.err
    assert printed.err.count("\n") == 1


def good(run):
    yield {"bench": "good", "device": str(run.device)}


def failing(run):
    yield {"bench": "half"}
    raise RuntimeError("the card is gone")


def hanging(run):
    yield {"bench": "begun"}
    child = subprocess.Popen(["sleep", "60"])
    (run.out / "pid").write_text(str(child.pid))
    time.sleep(60)


def dying(run):
    os.kill(os.getpid(), signal.SIGKILL)
    yield {}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_step_that_fails_hangs_or_dies_takes_no_other_with_it(check, monkeypatch, tmp_path):
    steps = {"failing": failing, "hanging": hanging, "dying": dying, "good": good}
    for name, step in steps.items():
        monkeypatch.setitem(check.STEPS, name, (step, 2))
    run = check.Run(device=torch.device("cpu"), dry=True, out=tmp_path)
    records = list(check.check(run, list(steps), time.monotonic() + 60))
    ends = {record["step"]: (record["ok"], record["error"]) for record in records if "ok" in record}
    assert ends == {
        "failing": (False, "RuntimeError: the card is gone"),
        "hanging": (False, "took longer than 2 s"),
        "dying": (False, "ended with -9"),
        "good": (True, None),
    }
    assert [record["bench"] for record in records if "bench" in record] == ["half", "begun", "good"]
    for _ in range(100):
        if not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the hanging step started still runs")


def test_what_finds_no_time_is_named(check, tmp_path):
    run = check.Run(device=torch.device("cpu"), dry=True, out=tmp_path)
    [record] = check.check(run, ["small"], time.monotonic())
    assert record == {"step": "small", "ok": False, "error": "no time left: raise --minutes"}


def test_the_gradient_step_finds_wrong_gradients(check, monkeypatch, tmp_path):
    import card_steps

    right = card_steps.expert_mlp_ref

    def wrong(x, routing, gate, up, down):
        return right(x, routing, gate, up, down) + 0.1 * gate.sum() * x

    run = check.Run(device=torch.device("cpu"), dry=True, out=tmp_path)
    assert len(list(card_steps.gradients(run))) == 8
    monkeypatch.setattr(card_steps, "expert_mlp", wrong)
    with pytest.raises(AssertionError, match="half_empty: gradients of"):
        list(card_steps.gradients(run))
