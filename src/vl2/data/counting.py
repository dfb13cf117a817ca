"""Tokens and tiles of the rows of a source, counted in one or several processes with one result.

Rows are cut into chunks of neighbours, because a row group of Parquet is decoded as a whole. What
chunks give is put together in their order, so it does not depend on who counted which.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vl2.data.config import SourceConfig
from vl2.data.encode import record_size
from vl2.data.processes import sheltered, worker_context
from vl2.data.records import RecordError
from vl2.data.source_record import fault_of
from vl2.data.sources import Source, open_source
from vl2.data.substitute import Crash, DataWorkError, crash_of
from vl2.logs import get_logger
from vl2.processing.processor import Processor

log = get_logger(__name__)

UNUSABLE = -1
"""Both counts of a row that cannot be used."""

NAMED = 10
"""Rows that cannot be used and are named with their place."""

CHUNK = 256
"""Rows that a process counts at a time: a tenth of a second."""

ROWS_FOR_A_PROCESS = 4_000
"""Below this the start of one more process, some seconds, costs more than it brings."""

_REPORT_SECONDS = 10.0


@dataclass(kw_only=True, slots=True)
class Unusable:
    """The rows of a source that cannot be used."""

    reasons: Counter[str] = field(default_factory=Counter)  # first reasons first
    named: list[tuple[int, str]] = field(default_factory=list)  # the first few: row and reason

    def add(self, other: Unusable) -> None:
        """Add the rows of a later chunk."""
        self.reasons.update(other.reasons)
        self.named += other.named[: NAMED - len(self.named)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """The results of a chunk."""

    sizes: np.ndarray  # [2, rows]
    unusable: Unusable


def count_rows(
    rows: Sequence[int],
    config: SourceConfig,
    source: Source,
    processor: Processor,
    *,
    mask_prompt: bool,
    processes: int,
) -> tuple[np.ndarray, Unusable]:
    """Sizes [2, rows] of these rows, int32, and what is wrong with the others.

    Args:
        rows: numbers in the source.
        config: from which a process opens its own source.
        source: opened from it.
        processor: of the model.
        mask_prompt: whether answers alone are learnt.
        processes: that may be used; with few rows this one counts alone.

    Raises:
        DataWorkError: a process died, or a row shows a mistake of ours.
    """
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    found: dict[int, Counted] = {}
    several = min(processes, len(rows) // ROWS_FOR_A_PROCESS)
    with _progress(source.name, len(rows)) as advance:
        if several > 1:
            results = _in_processes(chunks, config, processor, mask_prompt, several)
        else:
            results = (
                (n, _count_chunk(chunk, source, processor, mask_prompt))
                for n, chunk in enumerate(chunks)
            )
        for number, counted in results:
            if isinstance(counted, Crash):
                raise counted.error()
            found[number] = counted
            advance(len(chunks[number]))
    unusable = Unusable()
    for number in range(len(chunks)):
        unusable.add(found[number].unusable)
    empty = np.empty((2, 0), dtype=np.int32)
    sizes = [found[number].sizes for number in range(len(chunks))]
    return np.concatenate([empty, *sizes], axis=1), unusable


def _count_chunk(
    rows: Sequence[int], source: Source, processor: Processor, mask_prompt: bool
) -> Counted | Crash:
    sizes = np.full((2, len(rows)), UNUSABLE, dtype=np.int32)
    unusable = Unusable()
    for place, row in enumerate(rows):
        try:
            size = record_size(source[row], processor, mask_prompt=mask_prompt)
            sizes[:, place] = size.tokens, size.tiles
        except RecordError as error:
            reasons = Counter([fault_of(error)])
            unusable.add(Unusable(reasons=reasons, named=[(row, str(error))]))
        except Exception as error:
            where = f"source {source.name!r}: {source.place(row)} cannot be counted"
            return crash_of(where, error)
    return Counted(sizes=sizes, unusable=unusable)


def _in_processes(
    chunks: Sequence[Sequence[int]],
    config: SourceConfig,
    processor: Processor,
    mask_prompt: bool,
    processes: int,
) -> Iterator[tuple[int, Counted | Crash]]:
    """Chunks as they are counted; each process has one that it counts and one that waits."""
    context = worker_context()
    workers: dict[Any, BaseProcess] = {}
    waiting = iter(enumerate(chunks))
    left = len(chunks)
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            arguments = (there, config, processor, mask_prompt)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            with sheltered():
                worker.start()
            there.close()  # theirs alone, so that its end shows here
            workers[here] = worker
        ready: list[Any] = [*workers, *workers]
        while left:
            for connection in ready:
                if (task := next(waiting, None)) is not None:
                    connection.send(task)
            ready = wait([*workers])
            for connection in ready:
                yield connection.recv()
            left -= len(ready)
    except (EOFError, OSError):
        raise DataWorkError(
            "a process that counts the rows died: look for lack of memory, then start again; what "
            "it had counted is lost"
        ) from None
    finally:
        for connection, worker in workers.items():
            worker.kill()
            worker.join()
            connection.close()


def _work(connection: Connection, config: SourceConfig, processor: Processor, mask: bool) -> None:
    """Count chunks for as long as the other side is there; it ends this process."""
    source = open_source(config)
    try:
        while True:
            number, rows = connection.recv()
            connection.send((number, _count_chunk(rows, source, processor, mask)))
    except (EOFError, OSError):
        return  # the trainer has gone, however it went


@contextmanager
def _progress(name: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Shows how many rows are done: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = console.is_terminal and log.isEnabledFor(logging.INFO)
    bar = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown
    )
    task = bar.add_task(f"{name}: rows counted", total=rows)
    done, reported = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, reported
        done += more
        bar.update(task, completed=done)
        if not shown and time.monotonic() - reported > _REPORT_SECONDS:
            log.info("%s: tokens of %d of %d rows counted", name, done, rows)
            reported = time.monotonic()

    with bar:
        yield advance
