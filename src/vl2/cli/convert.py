"""`vl2 convert`: write a checkpoint in another dtype or layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vl2.checkpoint.sizes import format_bytes, parse_bytes
from vl2.cli import options
from vl2.folders import expand, names_something


def convert(
    src: Annotated[
        str, typer.Argument(help="A model, or the folder of a training run or of one of its steps.")
    ],
    dst: Annotated[Path, typer.Argument(help="New or empty folder to write.")],
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; auto keeps each tensor's own.")
    ] = "auto",
    quantization: Annotated[
        str, typer.Option(help="int8, float8, int4, or none to keep floats.")
    ] = "none",
    max_shard_size: Annotated[str, typer.Option(help="Maximum size of one file.")] = "5GB",
    layout: Annotated[
        str, typer.Option(help="released (one tensor per expert) or stacked.")
    ] = "released",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model in a folder that is not empty.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Convert a model to another dtype or layout, or quantise it.

    Tensors are converted one at a time, so a model may be larger than memory. For a training run,
    the newest valid state is written with its adapters merged.
    """
    from vl2.checkpoint.convert import check_target, convert_checkpoint
    from vl2.checkpoint.folder import scan_folder
    from vl2.checkpoint.report import stored_bytes

    shard_bytes = parse_bytes(max_shard_size)
    scheme = None if quantization == "none" else quantization
    if _is_run(src):
        check_target(dst, force=force)
        step = _convert_run(src, dst, dtype, scheme, layout=layout, shard_bytes=shard_bytes)
        found = {"folder": str(dst), "source": src, "step": step}
        print(json.dumps(found) if as_json else f"{dst}: step {step} of {src}")
        return
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("converting", total=None)
        folder = convert_checkpoint(
            src,
            dst,
            dtype,
            quantization=scheme,
            layout=layout,
            max_shard_bytes=shard_bytes,
            force=force,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    stored = scan_folder(folder)
    sizes = stored_bytes(stored.values())
    if as_json:
        found = {"folder": str(folder), "source": src, "tensors": len(stored), "bytes": sizes}
        print(json.dumps(found))
        return
    held = ", ".join(f"{format_bytes(n)} {name}" for name, n in sizes.items())
    print(f"{folder}: {len(stored):,} tensors, {held}")


def _is_run(src: str) -> bool:
    folder = expand(src)
    if not names_something(folder) or not folder.is_dir():
        return False
    from vl2.train.origin import is_run

    return is_run(src)


def _convert_run(
    src: str, dst: Path, dtype: str, scheme: str | None, *, layout: str, shard_bytes: int | None
) -> int:
    """Write the newest state of a run, or the step that is named; its number."""
    from vl2.checkpoint.load import model_dtype
    from vl2.checkpoint.save import save_model
    from vl2.engine.quantize import quantize_model
    from vl2.train.kept import load_kept
    from vl2.train.origin import write_history

    kept = load_kept(src)
    model = kept.model if dtype == "auto" else kept.model.to(model_dtype(dtype))
    if scheme is not None:
        quantize_model(model, scheme)
    dst.mkdir(parents=True, exist_ok=True)
    kept.processor.save_pretrained(dst)
    write_history(dst, kept.stages)
    save_model(model, dst, shard_bytes, layout=layout)
    return kept.step
