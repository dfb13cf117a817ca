"""From a model's name to an engine, in the dtypes that suit this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vl2.checkpoint.container import main_dtype
from vl2.checkpoint.folder import scan_folder
from vl2.checkpoint.load import choose_device, load_model
from vl2.config import VL2Config
from vl2.engine.config import EngineConfig
from vl2.engine.cores import choose_threads, emulates_bfloat16
from vl2.engine.engine import Engine
from vl2.model_folder import resolve
from vl2.ops.native import kernels
from vl2.processing.processor import Processor


def load_engine(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    config: EngineConfig | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """The engine of an embedded, local or hub model, with LoRA adapters by name.

    On a CPU, matrices stay in bfloat16 where C functions multiply them, and "auto" is then float32
    if the processor would emulate products in bfloat16.

    Raises:
        ValueError: there is no such model, or its files or an adapter's cannot be used.
    """
    choose_threads(None)
    folder = resolve(model)
    processor = Processor.from_pretrained(folder)
    storage = None
    if choose_device(device).type == "cpu" and quantization is None:
        dtype, storage = _cpu_dtypes(folder, dtype)
    weights = load_model(
        folder,
        dtype=dtype,
        device=device,
        quantization=quantization,
        storage_dtype=storage,
        on_progress=on_progress,
    )
    return Engine(weights, processor, config, adapters=adapters)


def _cpu_dtypes(folder: Path, dtype: str) -> tuple[str, str | None]:
    """The dtypes that a CPU computes in and keeps matrices in: `dtype` and `storage_dtype`."""
    config = VL2Config.from_pretrained(folder)
    held = config.torch_dtype if dtype == "auto" else dtype
    if config.quantization_config is not None or held not in ("float32", "bfloat16"):
        return dtype, None
    if kernels.functions() is None or main_dtype(scan_folder(folder).values()) != torch.bfloat16:
        return dtype, None
    return "float32" if dtype == "auto" and emulates_bfloat16() else dtype, "auto"
