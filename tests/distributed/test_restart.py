"""A run of two ranks that is stopped, killed and started again ends as the one that never was."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.job import Job
from torch import Tensor

from vl2.checkpoint.commit import newest_valid
from vl2.checkpoint.manifest import step_number

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STEPS = 8
ROWS = "data.sources.0.rows=32"
FIGURES = ("step", "loss", "grad_norm", "lr", "balance_loss", "load_text", "load_image")


def words_of(folder: Path) -> list[str]:
    """Everything trains and is sharded over both ranks; states at odd places, in the background."""
    data = ("data.micro_batch=1", "data.batch_size=4", "data.sequence_length=256", ROWS)
    more = ("stage=pretrain", "balance.bias_step=0.001", "compute.threads=1", "checkpoint.every=3")
    return ["train", "debug_align", f"out={folder}", *data, *more, f"steps={STEPS}", "log_every=1"]


def figures(folder: Path) -> list[dict[str, float]]:
    """Of each step that was logged, without its times."""
    file = folder / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k in FIGURES} for line in lines]


def model(folder: Path) -> dict[str, Tensor]:
    [file] = (folder / "model").glob("*.safetensors")
    return load_file(file)


def kept_step(folder: Path) -> int:
    newest = newest_valid(folder / "checkpoints")
    assert newest is not None
    return step_number(newest)


class Part(NamedTuple):
    """What one start of the job did."""

    codes: list[int]
    output: str
    left: list[str]
    steps: int  # that were logged when it ended
    kept: int  # newest step on the disk then


def run_part(folder: Path, disturb: tuple[int, int, int] | None = None, nodes: int = 0) -> Part:
    """Start the job, and disturb it.

    Args:
        folder: of the run.
        disturb: the step behind which a signal is sent, which one, and the rank; -1 is torchrun.
        nodes: that torchrun starts it on, and once more when it fails.
    """
    log = folder.with_name(f"log{len(list(folder.parent.glob('log*')))}")
    with Job(2, words_of(folder), log, nodes=nodes, restarts=1) as job:
        if disturb is not None:
            behind, number, rank = disturb
            job.until(lambda: len(figures(folder)) >= behind, 90)
            os.kill(job.agents[0].pid if rank < 0 else job.ranks()[rank], number)
        codes = job.wait(90)
        return Part(codes, job.output, job.left(), len(figures(folder)), kept_step(folder))


class Story(NamedTuple):
    """The run that was never disturbed, the other one, and the parts of the latter."""

    whole: Path
    parts: Path
    torchrun_stopped: Part
    rank_stopped: Part
    rank_killed: Part


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("restart")
    whole, parts = root / "whole", root / "parts"
    assert run_part(whole).codes == [0, 0]
    return Story(
        whole,
        parts,
        run_part(parts, (1, signal.SIGTERM, -1), nodes=1),
        run_part(parts, (3, signal.SIGTERM, 1)),
        run_part(parts, (6, signal.SIGKILL, 1), nodes=2),
    )


def assert_stopped(part: Part, behind: int) -> None:
    assert part.left == []
    assert part.kept == part.steps, part.output  # behind the same step on both ranks
    assert behind <= part.steps < STEPS
    told = re.findall(r"stopped by signal 15 at step (\d+) of", part.output)
    assert told == [str(part.steps)]


def test_sigterm_to_torchrun_stops_all_ranks_behind_one_step(story: Story):
    assert story.torchrun_stopped.codes == [1]  # torchrun's own
    assert_stopped(story.torchrun_stopped, behind=1)


def test_sigterm_to_one_rank_stops_all_ranks_behind_one_step(story: Story):
    assert story.rank_stopped.codes == [75, 75]
    assert f"resuming after step {story.torchrun_stopped.steps} of" in story.rank_stopped.output
    assert_stopped(story.rank_stopped, behind=3)


def test_a_job_of_which_a_rank_is_killed_starts_again_and_ends(story: Story):
    part = story.rank_killed
    assert part.codes == [0, 0], part.output  # two nodes
    assert "error: rank 0 lost another rank" in part.output
    assert part.left == []
    starts = [int(step) for step in re.findall(r"resuming after step (\d+) of", part.output)]
    assert len(starts) == 2
    assert starts[0] == story.rank_stopped.steps
    assert starts[0] <= starts[1] < STEPS


def test_the_disturbed_run_is_the_undisturbed_one(story: Story):
    assert figures(story.parts) == figures(story.whole)
    assert len(figures(story.whole)) == STEPS
    one, two = model(story.whole), model(story.parts)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
