"""Batches for the trainer: the plan is made here, records are read and tiled by a pool of workers.

The stream does not depend on the number of workers, on how far they read ahead, or on the number of
ranks, and resumes exactly from a small state.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from vl2.data.collate import Sample, TrainBatch
from vl2.data.config import DataConfig
from vl2.data.decode import RowDecoder
from vl2.data.index import RowIndex
from vl2.data.mixture import RowOrder
from vl2.data.plan import MicroPlan, Planner, micro_plans
from vl2.data.processes import sheltered, worker_context
from vl2.data.sources import Source
from vl2.data.substitute import Crash, DataWorkError, Tally, samples_of, samples_text
from vl2.processing.processor import Processor

_PLAN = 2
"""Version of the rules for which rows share a sequence and a step: raise it when they change."""

_PLANNED = (
    "sequence_length",
    "batch_size",
    "packing",
    "balance_tiles",
    "isolate_documents",
    "mask_prompt",
    "seed",
)


class TrainLoader:
    """An endless iterator of steps, each a list of micro batches.

    `state()` is the place after the last batch that was handed out, whatever the workers have
    prepared since; `restore` continues there, with any number of workers and, at the end of a step,
    of ranks. All randomness comes from the seed and the place in the order. Use it as a context
    manager, or call `close`, to end the workers.

    The counts of bad records are of all ranks, if `gather` tells them of each other: all of them
    give up at the same step then.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        sources: Sequence[Source],
        index: RowIndex,
        *,
        rank: int = 0,
        world: int = 1,
        gather: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        """Plan the first sequences' order; nothing is decoded and no worker started yet.

        Args:
            config: what to train on and how it is packed.
            processor: of the model.
            sources: opened from `config.sources`, in their order; workers open their own.
            index: tokens and tiles of their rows.
            rank: of this process among the processes that share each step.
            world: number of these processes.
            gather: gives the texts of all these processes; called once a step, by all of them.

        Raises:
            ValueError: no usable row in a source, two sources of one name, or ranks that cannot
                share a step evenly.
        """
        names = tuple(source.name for source in sources)
        if len(set(names)) < len(names):
            raise ValueError(
                f"sources are named {list(names)}: give each its own data.sources.name"
            )
        assert len(names) == len(config.sources), "sources are not the sources of the configuration"
        self.config, self.index = config, index
        self._counts = [index.counts(number) for number in range(len(names))]
        self._tiles = [index.tiles(number) for number in range(len(names))]
        self._order = RowOrder(
            self._counts,
            [source.weight for source in config.sources],
            names=names,
            longest=config.sequence_length,
            seed=config.seed,
        )
        self._share = {"rank": rank, "world": world}
        self._tally = Tally(names, config)
        self._gather = gather
        self._met: list[Sample] = []
        self._decoder = RowDecoder(config, processor, sources, self._counts)
        self._plans = _Plans()
        self._pool: DataLoader | None = None
        self._workers: list[BaseProcess] = []
        self._stream: Iterator[TrainBatch | Crash] | None = None
        self._place: dict[str, int] = {"position": 0, "bin": 0, "done": 0}
        self._micro_plans(self._place)  # refuses ranks that do not fit

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides the stream: the index's, how rows are packed, and the seed."""
        settings = {name: getattr(self.config, name) for name in _PLANNED}
        parts = {"index": self.index.fingerprint, "plan": _PLAN, **settings}
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __iter__(self) -> Iterator[list[TrainBatch]]:
        """The micro batches of each step, or of what is left of it, from the state on.

        Raises:
            DataError: too many records of a source are bad.
            DataWorkError: a worker died, or shows a mistake of ours.
        """
        step = []
        for batch in self.micro_batches():
            step.append(batch)
            if batch.closes_step:
                yield step
                step = []

    def micro_batches(self) -> Iterator[TrainBatch]:
        """Micro batches one by one, for steps that are too large to be held at once."""
        while True:
            yield self._next()

    def state(self) -> dict[str, Any]:
        """Where the stream stands and what was counted, as JSON; its size does not grow."""
        return {"place": dict(self._place), "sources": self._tally.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after what `state` had handed out; iterators in use continue from there too.

        Raises:
            ValueError: the state is of other sources or settings.
        """
        place = {name: int(state["place"][name]) for name in self._place}
        self._micro_plans(place)
        self._tally.restore(state["sources"])
        self._place, self._stream, self._met = place, None, []

    def close(self) -> None:
        """End the workers; iterating again starts new ones."""
        self._stream, self._pool = None, None  # the pool's own end waits some seconds for workers
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers = []

    def __enter__(self) -> TrainLoader:
        """The loader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        self.close()

    def _micro_plans(self, place: Mapping[str, int]) -> Iterator[MicroPlan]:
        planner = Planner(self._order, self._counts, self._tiles, self.config)
        planner.restore(place)
        return micro_plans(planner, **self._share, done=place["done"])

    def _next(self) -> TrainBatch:
        if self._stream is None:
            self._stream = self._start()
        batch = self._await() if self.config.workers else next(self._stream)
        if isinstance(batch, Crash):
            raise batch.error()
        self._count(batch)
        self._place = dict(batch.state)
        return batch

    def _count(self, batch: TrainBatch) -> None:
        """Count what was met: at once, or with what the other ranks met at the step's end."""
        self._met += batch.samples
        if self._gather is None:
            met, self._met = self._met, []
        elif batch.closes_step:
            met, self._met = samples_of(self._gather(samples_text(self._met))), []
        else:
            return
        for sample in met:
            self._tally.add(sample)

    def _await(self) -> TrainBatch | Crash:
        assert self._stream is not None
        try:
            return next(self._stream)
        except (RuntimeError, OSError, EOFError) as error:  # also while a tensor is fetched
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataWorkError(
                f"a data worker died ({reason}): look for lack of memory, of /dev/shm or of open "
                "files, or take fewer workers"
            ) from error

    def _start(self) -> Iterator[TrainBatch | Crash]:
        """Decoded plans from the state on, in their order."""
        plans = self._micro_plans(self._place)
        if not self.config.workers:
            return map(self._decoder.__getitem__, plans)
        self._plans.plans = plans
        if self._pool is None:
            self._pool = self._make_pool()
        before = set(multiprocessing.active_children())
        with sheltered():
            stream = iter(self._pool)
        self._workers += [p for p in multiprocessing.active_children() if p not in before]
        return stream

    def _make_pool(self) -> DataLoader:
        context = worker_context()
        self._lifeline = context.Pipe(duplex=False)
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=self._plans,
            num_workers=self.config.workers,
            prefetch_factor=self.config.prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_end_with_trainer, self._lifeline[0]),  # pyright: ignore[reportArgumentType]
            multiprocessing_context=context,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(0),  # leaves the trainer's own alone
        )


class _Plans:
    """The pool's sampler: plans from the loader's place on."""

    def __init__(self) -> None:
        self.plans: Iterator[MicroPlan] = iter(())

    def __iter__(self) -> Iterator[MicroPlan]:
        return self.plans


def _as_it_is(batch: Any) -> Any:
    return batch


def _end_with_trainer(lifeline: Connection, _worker: int) -> None:
    """End this worker when the trainer is gone, however it went.

    Only the trainer holds the pipe's other end. PyTorch's own watch looks at the parent, which here
    is the fork server, and that one stays as long as a worker does.
    """

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
