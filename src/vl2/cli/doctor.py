"""`vl2 doctor`: what a bug report should say about the machine and the installation."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import vl2
from vl2.cli import options
from vl2.cli.terminal import show

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "huggingface_hub", "typer")


def doctor(as_json: options.Json = False) -> None:
    """Print versions, devices, threads and folders."""
    from importlib import metadata

    report = {
        "vl2": vl2.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in PACKAGES},
        **_devices(),
        **_folders(),
    }
    if as_json:
        show(json.dumps(report) + "\n")
        return
    wide = max(len(name) for name in report) + 2
    for name, value in report.items():
        show(f"{name:{wide}}{value}\n")


def _devices() -> dict[str, Any]:
    import torch

    instructions = torch.backends.cpu.get_cpu_capability()
    cards = [
        f"{card.name} ({card.total_memory / 2**30:.0f} GiB)"
        for card in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {instructions}",
        "threads": torch.get_num_threads(),
        "cuda": ", ".join(cards) or "none",
    }


def _folders() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from vl2.checkpoint.hf import resolve

    try:
        embedded = str(resolve("nano"))
    except ValueError as error:
        embedded = f"missing: {error}"
    return {"hub cache": HF_HUB_CACHE, "embedded model": embedded}
