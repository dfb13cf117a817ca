"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "nano (the embedded model), tiny, small, base, a model folder, or a hub id."
_SCHEMA = "The answer is JSON of this schema: a file, or text."
_QUESTION = "The question, if it could be taken for the name of a file; so does `-- QUESTION`."
_CHOICE = "The answer is one of these; give it several times."
_STRICT = "With --ground: the answer has at least one box."
_SEED = "Makes sampled answers repeatable."

Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=_MODEL)]
Question = Annotated[
    str | None, typer.Option("--question", "-q", help=_QUESTION, show_default=False)
]
Quantization = Annotated[
    str | None,
    typer.Option(help="int8 or int4, for less memory; float8 on cards.", show_default=False),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token, above 0 samples.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")]
TopK = Annotated[int, typer.Option(help="Sample from this many likeliest tokens; 0 means all.")]
Seed = Annotated[int | None, typer.Option(help=_SEED, show_default=False)]
Ground = Annotated[
    bool, typer.Option("--ground", help="Locate what the question names; boxes in pixels.")
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
    typer.Option("--save", metavar="PNG", help="Write the drawing here.", show_default=False),
]
Schema = Annotated[str | None, typer.Option(metavar="JSON", help=_SCHEMA, show_default=False)]
Regex = Annotated[
    str | None,
    typer.Option(help="The whole answer matches this regular expression.", show_default=False),
]
Choice = Annotated[list[str] | None, typer.Option(help=_CHOICE, show_default=False)]
MaxPixels = Annotated[
    int | None,
    typer.Option(help="Largest picture, in pixels; 40000000 by default.", show_default=False),
]
Strict = Annotated[bool, typer.Option("--strict", help=_STRICT)]
