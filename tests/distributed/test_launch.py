"""The launcher of these tests: results by rank, and no failure that hides or hangs."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from tests.distributed.launch import run_ranks


def sums(start: int) -> tuple[int, str]:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return int(total), os.environ["RANK"]


def one_fails_and_one_hangs() -> None:
    if dist.get_rank() == 0:
        raise ValueError("one of us is broken")
    while True:
        time.sleep(0.1)


def test_results_come_by_rank():
    assert run_ranks(2, sums, 10) == [(21, "0"), (21, "1")]


def test_a_failure_is_told_with_its_traceback_and_where_the_others_stood():
    with pytest.raises(AssertionError) as error:
        run_ranks(2, one_fails_and_one_hangs)
    broken, hanging = str(error.value).split("rank 1 did not end")
    assert "rank 0 ended with exit code 1" in broken
    assert "ValueError: one of us is broken" in broken
    assert "in one_fails_and_one_hangs" in hanging


def test_ranks_that_do_not_end_are_stopped():
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 0 did not end within 0.5 s"):
        run_ranks(1, time.sleep, 60, timeout=0.5, group=False)
    assert time.monotonic() - start < 10
