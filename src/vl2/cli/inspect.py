"""`vl2 inspect`: what a model is and takes, from its config and the headers of its files."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vl2.checkpoint.sizes import format_bytes


def inspect(
    model: Annotated[
        str, typer.Argument(help="tiny, small, base, nano, a model folder, or a hub id.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model's configuration, parameters, size, cache size and tokens per tile grid.

    No weights are read: a released size needs no files, of a folder only headers are checked.
    """
    from vl2.checkpoint.report import describe

    report = describe(model)
    print(json.dumps(report, indent=2) if as_json else _text(report))


def _text(report: dict[str, Any]) -> str:
    numbers = report["parameters"]
    rows = [("model", report["model"]), *report["config"].items()]
    rows += [
        ("parameters", f"{numbers['total']:,} in {report['released_tensors']:,} released tensors"),
        ("active", f"{numbers['active']:,}: {numbers['language_active']:,} of the language model"),
        ("", "(no input embedding, with output head), and tower and adaptor"),
    ]
    sizes = report["weight_bytes"].items()
    rows.append(("weights", ", ".join(f"{format_bytes(size)} {name}" for name, size in sizes)))
    cache = report["kv_bytes_per_token"].items()
    rows.append(("cache", ", ".join(f"{size:,} bytes/token {name}" for name, size in cache)))
    files = report["files"]
    if files:
        held = ", ".join(f"{format_bytes(size)} {name}" for name, size in files["bytes"].items())
        rows.append(("files", f"{len(files['weights'])} with {files['tensors']:,} tensors: {held}"))
    lines = [f"{name:<14}{value}" for name, value in rows]
    grids = [f"{grid} {tokens:,}" for grid, tokens in report["image_tokens"].items()]
    for start in range(0, len(grids), 6):
        name = "" if start else "image tokens"
        line = "".join(f"{cell:<12}" for cell in grids[start : start + 6])
        lines.append(f"{name:<14}{line}".rstrip())
    return "\n".join(lines)
