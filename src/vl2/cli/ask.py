"""`vl2 ask`: one question about pictures, one answer, or one for each picture."""

from __future__ import annotations

import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from vl2.cli import options
from vl2.cli.answering import Question, show_answer
from vl2.cli.each import ask_each, files_of
from vl2.cli.loading import load_engine
from vl2.cli.pictures import (
    PICTURE_NAME,
    check_picture_target,
    open_picture,
    policy_of,
    save_png,
    side_by_side,
)
from vl2.cli.terminal import note
from vl2.folders import expand, names_something

if TYPE_CHECKING:
    from PIL import Image

    from vl2.engine.config import Completion, StructuredOutputsParams


def ask(  # noqa: PLR0913 - each parameter is an option of the command
    words: options.Words = None,
    question: options.Question = None,
    model: options.Model = "nano",
    ground: options.Ground = False,
    each: options.Each = False,
    jsonl: options.JsonLines = False,
    csv: options.Csv = False,
    as_json: options.Json = False,
    save: options.Save = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    no_repetition_guard: options.Unguarded = False,
    schema: options.Schema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    strict: options.Strict = False,
    max_pixels: options.MaxPixels = None,
    quantization: options.Quantization = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Ask about one or more pictures and print the answer.

    With --ground the question names what to locate: "the red circle" or "Locate the red circle.".
    It is sent in the official form, unless it has marks of its own (<|ref|>, <|grounding|>). Boxes
    are listed on stderr in pixels of the picture; --save draws them.
    """
    from vl2.engine.config import RepetitionGuard, SamplingParams

    paths, text = split_words(words or (), question)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        repetition_guard=None if no_repetition_guard else RepetitionGuard(),
        structured_outputs=form_of(schema, regex, choice, strict=strict),
    )
    asked = Question(text=text, ground=ground, params=params, policy=policy_of(max_pixels))
    form = _output_form(each, {"--json": as_json, "--jsonl": jsonl, "--csv": csv}, save)
    if each:
        files = files_of(paths)
        engine = load_engine(model, dtype=dtype, device=device, quantization=quantization)
        ask_each(engine, asked, files, form)
        return
    check_picture_target(save)
    if save and not paths:
        raise ValueError("--save needs a picture to draw on: name one before the question")
    pictures = [open_picture(path, asked.policy) for path in paths]
    engine = load_engine(model, dtype=dtype, device=device, quantization=quantization)
    inputs = asked.inputs(engine, pictures, paths)
    names = {"model": model, "pictures": [*map(str, paths)]} if as_json else None
    answer = show_answer(engine, inputs, params, names)
    if save:
        _draw(pictures, answer, save)


def _output_form(each: bool, asked: dict[str, bool], save: Path | None) -> str:
    """What comes out: "text", "json", "jsonl" or "csv".

    Raises:
        ValueError: options that exclude each other.
    """
    given = [name for name, wanted in asked.items() if wanted]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    form = given[0] if given else "--text"
    if each and form == "--json":
        raise ValueError("--json prints one answer: with --each use --jsonl or --csv")
    if not each and form in ("--jsonl", "--csv"):
        raise ValueError(f"{form} prints one answer per picture: add --each, or use --json")
    if each and save:
        raise ValueError("--save draws one answer: ask about the picture without --each")
    return form.removeprefix("--")


def form_of(
    schema: str | None, regex: str | None, choice: list[str] | None, *, strict: bool
) -> StructuredOutputsParams | None:
    """The form that an answer must have, if any.

    Raises:
        ValueError: more than one form.
    """
    from vl2.engine.config import StructuredOutputsParams

    if schema is None and regex is None and not choice and not strict:
        return None
    if schema is not None and not schema.lstrip().startswith("{"):
        schema = _read_schema(schema)
    return StructuredOutputsParams(
        json=schema, regex=regex, choice=choice or None, grounding=strict
    )


def _read_schema(name: str) -> str:
    """The text of a schema's file; editors begin it with a byte order mark or write UTF-16.

    Raises:
        ValueError: there is no such file, or it holds no JSON.
    """
    file = expand(name)
    if not names_something(file) or not file.is_file():
        raise ValueError(f"--schema {name}: no such file, and no JSON object either")
    data = file.read_bytes()
    encoding = "utf-16" if data[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = data.decode(encoding)
        json.loads(text)
    except ValueError as error:
        raise ValueError(f"--schema {name}: no JSON in UTF-8 or UTF-16: {error}") from None
    return text


def split_words(words: Sequence[str], question: str | None = None) -> tuple[list[Path], str]:
    """Pictures and the question after them.

    The last word is the question, unless it names a picture: it has the form of a picture's name,
    or is the name of a file or folder that is there. Such a question comes as `question`.

    Raises:
        ValueError: there is no question, or it was not put in quotes.
    """
    names = list(words)
    if question is None:
        if not names:
            raise ValueError(
                "no question: put it after the pictures, in quotes; see vl2 ask --help"
            )
        question = names.pop()
        if PICTURE_NAME.fullmatch(question) or names_something(question):
            raise ValueError(
                f"no question: {question} is the name of a picture, a file or a folder; put the "
                "question last, in quotes, or give it with --question"
            )
    if not question.strip():
        raise ValueError("the question is empty: put it after the pictures, in quotes")
    for name in names:
        if not PICTURE_NAME.fullmatch(name) and not names_something(name):
            raise ValueError(
                f"{name}: no such file: put pictures first and the whole question in quotes"
            )
    return [Path(name) for name in names], question


class AskCommand(TyperCommand):
    """Takes the last word after `--` as the question, whatever it looks like."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write `-- WORD... QUESTION` as `--question=QUESTION -- WORD...`."""
        if "--" in args[:-1]:
            *args, question = args
            args = [f"--question={question}", *args]
        return super().parse_args(ctx, args)


def _draw(pictures: Sequence[Image.Image], answer: Completion, target: Path) -> None:
    from vl2.processing.grounding import draw_boxes

    drawn = [
        draw_boxes(picture, answer.boxes, image_index=index)
        for index, picture in enumerate(pictures)
    ]
    if not answer.boxes:
        note("the answer has no boxes: the picture is written as it is")
    save_png(side_by_side(drawn), target)
