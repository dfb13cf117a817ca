"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vl2.folders import expand

_MODEL = "nano (the embedded model), tiny, small, base, a model folder, or a hub id."
_SCHEMA = "Restrict the answer to JSON of this schema: a file or JSON text."
_QUESTION = "The question, also if it looks like a file name; `-- QUESTION` does the same."
_CHOICE = "Restrict the answer to one of these; repeat the option."
_STRICT = "With --ground: restrict the answer to boxes, at least one."
_SEED = "Makes sampled answers repeatable."

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE... QUESTION", help="Picture files, then the question."),
]
Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=_MODEL)]
Name = Annotated[
    str | None,
    typer.Option(help="What requests call the model; MODEL by default.", show_default=False),
]
Question = Annotated[
    str | None, typer.Option("--question", "-q", help=_QUESTION, show_default=False)
]
Quantization = Annotated[
    str | None,
    typer.Option(help="int8 or int4, for less memory; float8 on cards.", show_default=False),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="LoRA adapter that requests call MODEL:NAME; repeat the option.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Maximum length of the answer in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is deterministic; higher is more random.")]
TopP = Annotated[
    float,
    typer.Option(help="Sample from the likeliest tokens that together have this probability."),
]
TopK = Annotated[
    int, typer.Option(help="Sample from this many of the likeliest tokens; 0 means all.")
]
Seed = Annotated[int | None, typer.Option(help=_SEED, show_default=False)]
Unguarded = Annotated[
    bool, typer.Option("--no-repetition-guard", help="Let the answer repeat itself without end.")
]
Ground = Annotated[
    bool, typer.Option("--ground", help="Locate what the question names, as boxes in pixels.")
]
Each = Annotated[
    bool,
    typer.Option("--each", help="One answer for each picture; a folder stands for its pictures."),
]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="With --each: one JSON object a line.")]
Csv = Annotated[bool, typer.Option("--csv", help="With --each: a table, one row per picture.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="PNG",
        help="Draw the result and write it to this file.",
        show_default=False,
    ),
]
Schema = Annotated[str | None, typer.Option(metavar="JSON", help=_SCHEMA, show_default=False)]
Regex = Annotated[
    str | None,
    typer.Option(help="Restrict the whole answer to this regular expression.", show_default=False),
]
Choice = Annotated[list[str] | None, typer.Option(help=_CHOICE, show_default=False)]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help="Maximum size of a picture in pixels; 40000000 by default.", show_default=False
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help=_STRICT)]


def adapters_of(given: list[str] | None) -> dict[str, str]:
    """Folders of adapters by name.

    Raises:
        ValueError: one has no name or no folder, or two have the same name.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise ValueError(f"--adapter is {text!r}: expected NAME=FOLDER")
        if name in found:
            raise ValueError(f"--adapter has {name!r} twice: give each adapter its own name")
        found[name] = str(expand(folder))
    return found
