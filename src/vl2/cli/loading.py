"""From a model's name on the command line to an engine, with a progress bar on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from vl2.engine.engine import Engine


def load_engine(model: str, *, dtype: str, device: str) -> Engine:
    """The engine of an embedded, local or hub model, in the dtypes that suit this machine.

    On a CPU, matrices stay as the files hold them where C functions multiply them, and "auto" is
    float32 where the processor would emulate products in bfloat16.

    Raises:
        ValueError: there is no such model, or its files cannot be read.
    """
    from vl2.checkpoint.hf import load_model, resolve
    from vl2.checkpoint.load import choose_device
    from vl2.config import VL2Config
    from vl2.engine.cores import choose_threads, emulates_bfloat16
    from vl2.engine.engine import Engine
    from vl2.ops.native import kernels
    from vl2.processing.processor import Processor

    choose_threads(None)
    folder = resolve(model)
    processor = Processor.from_pretrained(folder)
    storage = None
    if choose_device(device).type == "cpu":
        if dtype == "auto" and emulates_bfloat16():
            dtype = "float32"
        held = VL2Config.from_pretrained(folder).quantization_config
        if held is None and kernels.functions() is not None:
            storage = "auto"
    with _bar() as bar:
        task = bar.add_task(f"loading {model}", total=None)
        weights = load_model(
            folder,
            dtype=dtype,
            device=device,
            storage_dtype=storage,
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
