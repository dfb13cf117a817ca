"""From a model's name on the command line to an engine, with a progress bar on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from vl2.engine.engine import Engine


def load_engine(model: str, *, dtype: str, device: str) -> Engine:
    """The engine of an embedded, local or hub model.

    Raises:
        ValueError: there is no such model, or its files cannot be read.
    """
    from vl2.checkpoint.hf import load_model, resolve
    from vl2.engine.cores import choose_threads
    from vl2.engine.engine import Engine
    from vl2.processing.processor import Processor

    choose_threads(None)
    folder = resolve(model)
    processor = Processor.from_pretrained(folder)
    with _bar() as bar:
        task = bar.add_task(f"loading {model}", total=None)
        weights = load_model(
            folder,
            dtype=dtype,
            device=device,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return Engine(weights, processor)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
