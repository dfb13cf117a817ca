"""From a model's name on the command line to an engine, with a progress bar on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2.cli.terminal import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from vl2.engine.engine import Engine


def load_engine(model: str, *, dtype: str, device: str, quantization: str | None = None) -> Engine:
    """The engine of an embedded, local or hub model, in the dtypes that suit this machine.

    On a CPU, matrices stay in bfloat16 where C functions multiply them, and "auto" is then float32
    if the processor would emulate products in bfloat16.

    Raises:
        ValueError: there is no such model, or its files cannot be read.
    """
    from rich.progress import DownloadColumn

    from vl2.checkpoint.hf import load_model, resolve
    from vl2.checkpoint.load import choose_device
    from vl2.engine.cores import choose_threads
    from vl2.engine.engine import Engine
    from vl2.processing.processor import Processor

    choose_threads(None)
    folder = resolve(model)
    processor = Processor.from_pretrained(folder)
    storage = None
    if choose_device(device).type == "cpu" and quantization is None:
        dtype, storage = _cpu_dtypes(folder, dtype)
    with progress_bar(DownloadColumn()) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        weights = load_model(
            folder,
            dtype=dtype,
            device=device,
            quantization=quantization,
            storage_dtype=storage,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return Engine(weights, processor)


def _cpu_dtypes(folder: Path, dtype: str) -> tuple[str, str | None]:
    """The dtypes that a CPU computes in and keeps matrices in: `dtype` and `storage_dtype`."""
    import torch

    from vl2.checkpoint.container import main_dtype
    from vl2.checkpoint.folder import scan_folder
    from vl2.config import VL2Config
    from vl2.engine.cores import emulates_bfloat16
    from vl2.ops.native import kernels

    config = VL2Config.from_pretrained(folder)
    held = config.torch_dtype if dtype == "auto" else dtype
    if config.quantization_config is not None or held not in ("float32", "bfloat16"):
        return dtype, None
    if kernels.functions() is None or main_dtype(scan_folder(folder).values()) != torch.bfloat16:
        return dtype, None
    return "float32" if dtype == "auto" and emulates_bfloat16() else dtype, "auto"
