"""A rank that stands still is named, and the job ends everywhere; nobody is suspected wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.distributed.job import Job
from tests.distributed.launch import run_ranks

from vl2.data.loader import TrainLoader
from vl2.parallel.config import ParallelConfig
from vl2.parallel.mesh import join, leave
from vl2.parallel.watchdog import STUCK, Watchdog
from vl2.train import setup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LIMIT = 3.0
STEPS = 8
DATA = ("data.sources.0.rows=32", "data.micro_batch=1", "data.batch_size=4")
MORE = (
    "data.sequence_length=256",
    "compute.threads=1",
    "checkpoint.every=1",
    f"steps={STEPS}",
    "log_every=1",
)


def words_of(folder: Path, *more: str) -> list[str]:
    common = (f"out={folder / 'run'}", f"parallel.watchdog={LIMIT}", *DATA, *MORE)
    return ["train", "debug_align", *common, *more]


def steps_of(folder: Path) -> list[int]:
    file = folder / "run" / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def named(job: Job) -> list[str]:
    """What is said of ranks; a log line may be broken anywhere."""
    said = " ".join(job.output.split())
    return re.findall(r"rank \d \(process \d+ on \S+\) .*?; all ranks end", said)


def hang_in_the_third_step(words: list[str]) -> list[str]:
    """Rank 1 does not come back from its data."""
    if os.environ["RANK"] == "1":
        steps = TrainLoader.__iter__

        def hang(self: TrainLoader) -> Iterator[Any]:
            for number, batches in enumerate(steps(self), start=1):
                if number == 3:
                    time.sleep(1000)
                yield batches

        TrainLoader.__iter__ = hang
    return words


def test_a_stopped_rank_and_one_that_hangs_are_named_and_the_run_goes_on(tmp_path: Path):
    with Job(2, words_of(tmp_path, "data.workers=1"), tmp_path / "log1", nodes=1) as job:
        job.until(lambda: len(steps_of(tmp_path)) >= 2)
        os.kill(job.ranks()[1], signal.SIGSTOP)
        stopped = time.monotonic()
        assert job.wait() == [1]
        assert time.monotonic() - stopped < LIMIT + 10
        [line] = named(job)
        assert re.match(rf"rank 1 .* sent no sign of life for {LIMIT:g} s, last at step \d", line)
        assert f"exitcode  : {STUCK}" in job.output
        assert job.left() == []  # nor a data worker

    with Job(2, words_of(tmp_path), tmp_path / "log2", first=hang_in_the_third_step) as job:
        assert job.wait() == [STUCK, STUCK]
        [start] = map(int, re.findall(r"resuming after step (\d+) of", job.output))
        assert start >= 1
        [line] = named(job)
        place = rf"rank 1 .* has made no progress for \d+ s at step {start + 2}, waiting for data"
        assert re.match(place, line), line
        assert "in hang" in job.output
        assert job.left() == []

    with Job(2, words_of(tmp_path), tmp_path / "log3") as job:
        assert job.wait() == [0, 0]
    assert steps_of(tmp_path) == list(range(1, STEPS + 1))


def stop_before_the_first_step(words: list[str]) -> list[str]:
    if os.environ["RANK"] == "1":
        setup.prepare = mock.Mock(side_effect=lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP))
    return words


def test_a_rank_that_is_lost_before_the_first_step_is_named(tmp_path: Path):
    words = words_of(tmp_path, "parallel.watchdog=1")
    with Job(2, words, tmp_path / "log", first=stop_before_the_first_step) as job:
        assert job.wait() == [STUCK, -signal.SIGKILL]
        [line] = named(job)
        assert re.match(r"rank 1 .* last at step 0, starting", line)


# --- the watchdog without a run


def suspend_all(seconds: float) -> list[bool]:
    """The whole job is suspended, then one rank saves for long, while the other has left."""
    ranks = join(ParallelConfig(), "cpu")
    main, other = ranks.gather_text(str(os.getpid()))
    stop = f"sleep {seconds / 4}; kill -STOP {other} {main}; sleep {2 * seconds}"
    go_on = f"kill -CONT {main}; sleep {seconds / 10}; kill -CONT {other}"
    with Watchdog(ranks, seconds):
        ranks.pulse.at(1, "computing")
        if ranks.is_main:
            subprocess.Popen(["sh", "-c", f"{stop}; {go_on}"])
        time.sleep(seconds / 2)
        ranks.pulse.at(2, "computing")
        time.sleep(seconds / 2)
        ranks.pulse.at(3, "saving")
        if ranks.is_main:
            time.sleep(2 * seconds)
    ranks.barrier()
    leave()
    return [True]


def test_a_suspended_job_a_long_save_and_a_rank_that_has_left_are_not_suspected():
    assert run_ranks(2, suspend_all, 1.0, group=False) == [[True], [True]]


def stop_the_server(seconds: float) -> None:
    """Without torchrun rank 0 serves what the ranks tell each other."""
    ranks = join(ParallelConfig(), "cpu")
    with Watchdog(ranks, seconds):
        time.sleep(seconds)
        if ranks.is_main:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)


def test_a_rank_that_cannot_hear_of_the_others_ends():
    with pytest.raises(AssertionError) as error:
        run_ranks(2, stop_the_server, 1.0, group=False, timeout=30)
    stopped, ended = str(error.value).split("rank 1 ended")
    assert "did not end within" in stopped
    assert f"with exit code {STUCK}" in ended
