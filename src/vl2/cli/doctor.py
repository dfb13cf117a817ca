"""`vl2 doctor`: what a bug report should say, and whether this machine gives the right answers."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vl2
from vl2.cli import options
from vl2.cli.terminal import note, show

if TYPE_CHECKING:
    from vl2.engine.self_check import Check
    from vl2.processing.inputs import ModelInputs
    from vl2.processing.processor import Processor

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "huggingface_hub", "typer")
TEXT_ONLY = 4
"""One prompt in so many has no picture."""


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="Also check this model: nano, a folder or a hub id."),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(help="Also compare with the official code's numbers in this folder."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the model's checks.")] = 64,
    max_tokens: options.MaxTokens = 24,
    compiled: Annotated[bool, typer.Option(help="Also compile the model: takes a minute.")] = True,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Print versions, devices, threads and folders, and check a model on this machine.

    With a MODEL, its answers to drawn pictures are compared token by token: alone and in a batch,
    with and without the cache, with prompts in chunks, with reused prefixes, with guessed tokens,
    compiled. If they differ, the first difference is shown and the exit code is 1. In float32 all
    must be equal; in bfloat16 near ties may differ.
    """
    _show(_report(), as_json=as_json)
    if model is None and golden is None:
        return
    failed = False
    folders = _golden_folders(golden) if golden else []
    checks = itertools.chain(
        _model_checks(model, prompts, max_tokens, compiled, dtype, device) if model else (),
        _golden_checks(folders, device),
    )
    for check in checks:
        failed |= not check.passed and check.skipped is None
        show(json.dumps(asdict(check)) + "\n" if as_json else _line(check))
    if failed:
        note("the answers differ: please report the lines above with the versions")
        raise typer.Exit(1)


def _report() -> dict[str, Any]:
    from importlib import metadata

    return {
        "vl2": vl2.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in PACKAGES},
        **_devices(),
        **_folders(),
    }


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show(json.dumps(report) + "\n")
        return
    wide = max(len(name) for name in report) + 2
    for name, value in report.items():
        show(f"{name:{wide}}{value}\n")


def _model_checks(
    model: str, prompts: int, max_tokens: int, compiled: bool, dtype: str, device: str
) -> Iterator[Check]:
    from vl2.cli.loading import load_engine
    from vl2.engine.self_check import SelfCheck

    engine = load_engine(model, dtype=dtype, device=device)
    check = SelfCheck(
        model=engine.model,
        processor=engine.processor,
        prompts=_prompts(engine.processor, prompts),
        max_tokens=max_tokens,
    )
    yield from check.run(compiling=compiled)


def _golden_folders(folder: Path) -> list[Path]:
    from vl2.engine.self_check import golden_folders

    return golden_folders(folder)


def _golden_checks(folders: Sequence[Path], device: str) -> Iterator[Check]:
    from vl2.engine.self_check import check_golden

    for golden in folders:
        yield check_golden(golden, device="cpu" if device == "auto" else device)


def _prompts(processor: Processor, count: int) -> list[ModelInputs]:
    """Questions about drawn pictures of several sizes, some without their picture."""
    import numpy as np

    from vl2.data.source_synthetic import KINDS
    from vl2.data.synthetic import ask, draw_scene

    asked = []
    for number in range(count):
        rng = np.random.default_rng(number)
        scene = draw_scene(rng, recipe=KINDS["drills"].recipe)
        content: list[dict[str, Any]] = [{"type": "text", "text": ask(scene, rng)[0].text}]
        if number % TEXT_ONLY:
            wide, high = scene.image.size
            stretched = scene.image.resize((wide * (1 + number % 3), high))
            content.insert(0, {"type": "image", "image": stretched})
        asked.append(processor([{"role": "user", "content": content}], allow_grounding_tokens=True))
    return asked


def _line(check: Check) -> str:
    """One check for people."""
    if check.skipped is not None:
        return f"{check.name:34}not run: {check.skipped}\n"
    done = f"{check.prompts} prompts, {check.tokens} tokens, {check.seconds:.1f} s"
    if check.worst_logit is not None:
        done += f", logits within {check.worst_logit:.1e}"
    if check.passed:
        return f"{check.name:34}same ({done})\n"
    line = f"{check.name:34}DIFFERS in {check.differing} of {done}\n"
    first = check.divergence
    if first is not None:
        margin = "" if first.margin is None else f", margin {first.margin:.2e}"
        line += (
            f"{'':34}prompt {first.prompt}, token {first.place}: expected {first.expected}, "
            f"found {first.found}{margin}\n"
        )
    return line


def _devices() -> dict[str, Any]:
    import torch

    from vl2.core_count import available_cores
    from vl2.engine.cores import choose_threads
    from vl2.ops import backend
    from vl2.ops.native import kernels

    instructions = torch.backends.cpu.get_cpu_capability()
    cards = [
        f"{card.name} ({card.total_memory / 2**30:.0f} GiB)"
        for card in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {instructions}",
        "cores to use": available_cores(),
        "threads": choose_threads(None),
        "C functions": kernels.describe(),
        **{f"in C: {name}": when for name, when in backend.table().items()},
        "cuda": ", ".join(cards) or "none",
    }


def _folders() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from vl2.model_folder import resolve

    try:
        embedded = str(resolve("nano"))
    except ValueError as error:
        embedded = f"missing: {error}"
    return {"hub cache": HF_HUB_CACHE, "embedded model": embedded}
