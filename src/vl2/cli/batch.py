"""`vl2 batch`: many requests from a file in OpenAI's batch format, one answer line each."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vl2.cli import options
from vl2.cli.loading import load_engine
from vl2.cli.serve import name_of
from vl2.cli.terminal import note, progress_bar, show
from vl2.overrides import override

Requests = Annotated[
    Path,
    typer.Argument(
        metavar="REQUESTS",
        help='Lines {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}.',
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTING=VALUE]...",
        help="Settings such as limits.max_images=32 or engine.max_num_seqs=16, see "
        "docs/serving.md.",
    ),
]
Answers = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="ANSWERS", help="Gets a line for each; continued if it is there."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures at the end as JSON.")]


def batch(  # noqa: PLR0913 - each parameter is an option of the command
    requests: Requests,
    output: Answers,
    words: Words = None,
    model: options.Model = "nano",
    name: options.Name = None,
    as_json: Json = False,
    adapter: options.Adapter = None,
    quantization: options.Quantization = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Answer many requests in OpenAI's batch format, without a server.

    After a kill the same command continues where it stopped. Code 1 says that requests failed;
    their errors are in their lines.
    """
    try:
        from vl2.serve.batch import Figures, answer_file, check_files
        from vl2.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is missing: pip install "vl2[serve]"') from None

    chosen = override(Settings(), list(words or ()))
    total = check_files(requests, output)
    engine = load_engine(
        model,
        dtype=dtype,
        device=device,
        quantization=quantization,
        config=chosen.engine,
        adapters=options.adapters_of(adapter),
    )
    begun = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("requests", total=total)

        def on_progress(figures: Figures) -> None:
            bar.update(task, completed=figures.answered + figures.failed)

        figures = answer_file(
            engine, name or name_of(model), requests, output, chosen.limits, on_progress
        )
    if as_json:
        seconds = round(time.monotonic() - begun, 3)
        show(json.dumps({**asdict(figures), "seconds": seconds}) + "\n")
    else:
        kept = f", {figures.kept} of them by earlier runs" if figures.kept else ""
        note(f"{figures.answered} of {figures.requests} requests answered{kept}")
    if figures.failed:
        note(f"{figures.failed} of {figures.requests} requests failed: see their lines in {output}")
        raise typer.Exit(1)
