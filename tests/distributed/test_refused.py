"""What ranks cannot train together is one line from rank 0, and none of them waits or writes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch.distributed as dist
from tests.distributed.job import Job
from tests.distributed.launch import run_ranks

from vl2.checkpoint.commit import lock_root
from vl2.failure import WorkError
from vl2.parallel.mesh import ONE, Ranks
from vl2.train import setup

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    ranks: int
    words: tuple[str, ...]
    message: str


CASES = {
    "a batch for two on three ranks": Case(
        3, ("data.batch_size=2",), r"data\.batch_size is 2: expected a multiple of .* 1 x 3"
    ),
    "a layout of three on two ranks": Case(
        2, ("parallel.expert=3",), r"2 ranks do not divide into .* expert 3 .* multiple of 3"
    ),
    "more shards than ranks": Case(
        2, ("parallel.shard=4",), r"2 ranks do not divide into .* shard 4"
    ),
    "eight experts on three ranks": Case(
        3, ("parallel.expert=3",), r"parallel\.expert is 3: expected a divisor of .* 8 routed"
    ),
    "more stages than units": Case(
        9, ("parallel.pipeline=9", "data.batch_size=9"), r"parallel\.pipeline is 9: .* 8 units"
    ),
    "more stages than micro batches": Case(
        2, ("parallel.pipeline=2", "data.batch_size=1"), r"1 micro batches in a step for 2 .*gpipe"
    ),
    "a setting that is none": Case(2, ("optim.learning_rate=0",), r"learning_rate is 0\.0"),
    "no data": Case(3, ("data.sources.0.path=none", "data.sources.0.format=llava"), r"none"),
}


def words_of(folder: Path, *more: str) -> list[str]:
    given = ("steps=2", "data.micro_batch=1", "data.batch_size=3", "compute.threads=1")
    return ["train", "debug_align", f"out={folder / 'run'}", *given, *more]


def assert_refused(job: Job, message: str, folder: Path) -> None:
    codes = job.wait(20)
    assert all(code > 0 for code in codes), codes
    assert len(job.errors) == 1, job.output
    assert re.search(message, job.errors[0]), job.errors
    assert "Traceback" not in job.output
    assert not (folder / "run").exists(), list((folder / "run").rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path):
    case = CASES[name]
    with Job(case.ranks, words_of(tmp_path, *case.words), tmp_path / "log") as job:
        assert_refused(job, case.message, tmp_path)


def test_torchrun_ends_as_well(tmp_path: Path):
    words = words_of(tmp_path, "parallel.expert=3")
    with Job(2, words, tmp_path / "log", nodes=1) as job:
        assert job.wait(60) == [1]
        assert [line for line in job.errors if "2 ranks do not divide" in line] == job.errors
        assert len(job.errors) == 1
        assert job.left() == []
    assert not (tmp_path / "run").exists()


def other_learning_rate(words: list[str]) -> list[str]:
    return [*words, "optim.learning_rate=0.1"] if os.environ["RANK"] == "1" else words


def other_layout(words: list[str]) -> list[str]:
    return [*words, "parallel.replicate=2"] if os.environ["RANK"] == "1" else words


def layout_that_does_not_divide(words: list[str]) -> list[str]:
    return [*words, "parallel.expert=3"] if os.environ["RANK"] == "1" else words


def other_release(words: list[str]) -> list[str]:
    if os.environ["RANK"] == "1":
        mock.patch.object(setup, "version", return_value="0.0.1").start()
    return words


@pytest.mark.parametrize(
    "first",
    [other_learning_rate, other_layout, layout_that_does_not_divide, other_release],
)
def test_a_rank_that_was_started_otherwise_is_refused(first, tmp_path: Path):
    words = words_of(tmp_path, "data.batch_size=2")
    with Job(2, words, tmp_path / "log", first=first) as job:
        message = r"rank 1 was started with another release or configuration than rank 0"
        assert_refused(job, message, tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path):
    words = words_of(tmp_path, "data.batch_size=2")
    with lock_root(tmp_path / "run" / "checkpoints"):
        with Job(2, words, tmp_path / "log") as job:
            assert job.wait(30) == [2, 2]
        [line] = job.errors
        assert "in use by another training run" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def what_is_told(kind: str) -> list[str]:
    """What this rank raises if the other one's work fails."""

    def work() -> None:
        if dist.get_rank() == 1:
            raise {"use": ValueError, "work": WorkError}[kind]("step 3: not finite")

    ranks = Ranks(layout=ONE._replace(replicate=2), rank=dist.get_rank(), group=dist.group.WORLD)
    try:
        ranks.together(work)
    except (ValueError, WorkError) as error:
        return [type(error).__name__, str(error)]
    return []


@pytest.mark.parametrize(("kind", "name"), [("use", "SharedError"), ("work", "WorkError")])
def test_the_kind_of_an_error_reaches_all_ranks(kind: str, name: str):
    told = run_ranks(2, what_is_told, kind)
    assert told == [[name, "rank 1: step 3: not finite"]] * 2
