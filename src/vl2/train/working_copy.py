"""Bfloat16 twins of a float32 module: products run on the twins, the optimiser moves the master.

Under autocast every product casts its weights anew, forward and backward. The twins' weights are
cast once per step. Their gradients are added up in float32, so that micro batches lose nothing.

A small model spends its time on many short operations. Shared among threads, each waits for the
slowest one. Its micro batches run side by side instead, each on a twin and threads of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
J = TypeVar("J")
R = TypeVar("R")
Sums = list[Tensor | None]
"""By parameter: the gradient of several micro batches, None where there is none."""

FULL_PRECISION = ("mlp.gate.weight",)
"""Ends of names that stay float32: near ties of a router decide the choice of experts."""
SMALL = 100_000_000
"""Most parameters of a model with twins. A larger model fills all threads by itself, and memory."""
MOST = 8
"""Twins of a small model. A step has seldom more micro batches."""


class WorkingCopy(Generic[M]):
    """A module in bfloat16 whose weights follow the weights of `master`; buffers are shared."""

    def __init__(self, master: M, twins: int | None = None) -> None:
        """Copy the module with rounded weights; buffers, quantised weights too, are shared.

        Args:
            master: holds the parameters that train.
            twins: micro batches that run at a time; None for a choice by the model's size. Twins
                share their weights and differ in their gradients.
        """
        if twins is None:
            small = sum(p.numel() for p in master.parameters()) <= SMALL
            twins = min(torch.get_num_threads(), MOST) if small else 1
        self.master = master
        first = [_rounded(name, p) for name, p in master.named_parameters()]
        more = [[_sharing(p) for p in first] for _ in range(twins - 1)]
        self._modules = [_copy(master, parameters) for parameters in (first, *more)]
        self._parameters = [first, *more]
        self._pool = ThreadPoolExecutor(twins, thread_name_prefix="micro-batch")

    @property
    def module(self) -> M:
        """The first twin."""
        return self._modules[0]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the master's weights; called before each step, since a run may have resumed."""
        for module in self._modules:
            module.train(self.master.training)
        for twin, master in zip(self._parameters[0], self.master.parameters(), strict=True):
            twin.copy_(master)

    def run(
        self,
        jobs: Sequence[J],
        work: Callable[[M, J], R],
        cost: Callable[[J], float] = lambda _: 1.0,
    ) -> list[R]:
        """Do each job on a twin and add the gradients to the master's.

        Which twin does a job, and the order of every sum, depend on the jobs' costs alone.

        Args:
            jobs: micro batches.
            work: runs a twin forward and backward. It is called in threads of its own.
            cost: of a job, compared with the others: the slowest twin decides how long all take.

        Returns:
            What `work` returned, in the order of the jobs.
        """
        shares = _shares([cost(job) for job in jobs], min(len(jobs), len(self._modules)))
        parts = [[jobs[n] for n in share] for share in shares]
        found = self._side_by_side(parts, work) if len(parts) > 1 else [self._share(0, jobs, work)]
        for _, sums in found:
            for master, total in zip(self.master.parameters(), sums, strict=True):
                master.grad = _plus(master.grad, total)
        results = {
            n: result
            for share, (own, _) in zip(shares, found, strict=True)
            for n, result in zip(share, own, strict=True)
        }
        return [results[n] for n in range(len(jobs))]

    def _side_by_side(
        self, shares: Sequence[Sequence[J]], work: Callable[[M, J], R]
    ) -> list[tuple[list[R], Sums]]:
        threads = torch.get_num_threads()

        def run(number: int) -> tuple[list[R], Sums]:
            torch.set_num_threads(max(1, threads // len(shares)))  # of this thread
            return self._share(number, shares[number], work)

        running = [self._pool.submit(run, number) for number in range(len(shares))]
        wait(running)
        torch.set_num_threads(threads)  # the last number that was set is the one of new threads
        return [done.result() for done in running]

    def _share(
        self, twin: int, jobs: Sequence[J], work: Callable[[M, J], R]
    ) -> tuple[list[R], Sums]:
        """Results of one twin's jobs, and its gradients in float32."""
        parameters = self._parameters[twin]
        sums: Sums = [None] * len(parameters)
        results = []
        try:
            for job in jobs:
                results.append(work(self._modules[twin], job))
                for n, parameter in enumerate(parameters):
                    sums[n] = _plus(sums[n], parameter.grad)
                    parameter.grad = None
        finally:
            for parameter in parameters:
                parameter.grad = None
        return results, sums


def _shares(costs: Sequence[float], count: int) -> list[list[int]]:
    """Numbers of the jobs of each twin: the dearest first, each to whom has least by then."""
    if count == 1:
        return [list(range(len(costs)))]
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for number in sorted(range(len(costs)), key=lambda n: -costs[n]):
        least = sums.index(min(sums))
        shares[least].append(number)
        sums[least] += costs[number]
    return shares


def _plus(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The sum in float32; `total` is changed."""
    if total is None or gradient is None:
        return total if gradient is None else gradient.float()
    return total.add_(gradient)


def _copy(master: M, parameters: Sequence[nn.Parameter]) -> M:
    known: dict[int, object] = {id(buffer): buffer for buffer in master.buffers()}
    known |= {id(p): twin for twin, p in zip(parameters, master.parameters(), strict=True)}
    return copy.deepcopy(master, known)


def _rounded(name: str, parameter: nn.Parameter) -> nn.Parameter:
    """A parameter rounded to bfloat16, or a copy of one that stays in float32."""
    dtype = parameter.dtype if name.endswith(FULL_PRECISION) else torch.bfloat16
    rounded = parameter.detach().to(dtype, copy=True)
    return nn.Parameter(rounded, requires_grad=parameter.requires_grad)


def _sharing(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter with the same values in the same memory and a gradient of its own."""
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
