"""`vl2 ask`: one question about pictures, one answer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vl2.cli import options
from vl2.cli.answering import answer_one
from vl2.cli.loading import load_engine
from vl2.cli.pictures import check_target, open_picture, save_png, side_by_side
from vl2.cli.terminal import note, show, show_delta, show_remarks
from vl2.folders import expand, names_something

if TYPE_CHECKING:
    from PIL import Image

    from vl2.engine.config import Completion, StructuredOutputsParams

PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)
"""A word of this form is meant as a picture, whether there is such a file or not."""
_MARK = re.compile(r"<\|(?:ref|grounding)\|>")
_LOCATE = re.compile(r"^\s*(?:locate|find|detect|show me)\s+", re.IGNORECASE)


def ask(  # noqa: PLR0913 - each parameter is an option of the command
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE... QUESTION", help="Picture files, then the question."),
    ] = None,
    question: options.Question = None,
    model: options.Model = "nano",
    ground: Annotated[
        bool, typer.Option("--ground", help="Locate what the question names; boxes in pixels.")
    ] = False,
    as_json: options.Json = False,
    save: options.Save = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    schema: options.Schema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    strict: options.Strict = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Ask about one or more pictures and print the answer.

    With --ground the question names what to locate, "the red circle" or "Locate the red circle.":
    it is sent in the official form. A question with marks of its own (<|ref|>, <|grounding|>) is
    then sent as it is. Boxes are listed on stderr in pixels of the picture; --save draws them.
    """
    from vl2.engine.config import SamplingParams

    paths, question = split_words(words or (), question)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        structured_outputs=form_of(schema, regex, choice, strict=strict),
    )
    check_target(save)
    if save and not paths:
        raise ValueError("--save needs a picture to draw on: name one before the question")
    pictures = [open_picture(path) for path in paths]
    engine = load_engine(model, dtype=dtype, device=device)
    inputs = engine.processor(
        [{"role": "user", "content": content_of(pictures, question, ground=ground)}],
        add_generation_prompt=True,
        allow_grounding_tokens=ground,
    )
    stream = sys.stdout.isatty() and not as_json
    answer = answer_one(engine, inputs, params, show_delta if stream else None)
    if as_json:
        show(json.dumps(_as_json(answer, model), ensure_ascii=False) + "\n")
    else:
        show("\n" if stream else answer.text + "\n")
        show_remarks(answer)
    if save:
        _draw(pictures, answer, save)


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
        file = expand(schema)
        if not names_something(file) or not file.is_file():
            raise ValueError(f"--schema {schema}: no such file, and no JSON object either")
        schema = file.read_text(encoding="utf-8")
    return StructuredOutputsParams(
        json=schema, regex=regex, choice=choice or None, grounding=strict
    )


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


def content_of(
    pictures: Sequence[Image.Image], question: str, *, ground: bool = False
) -> list[dict[str, Any]]:
    """Content parts of one user message; `ground` asks in the official form to locate it."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if not ground or _MARK.search(question):
        return [*parts, {"type": "text", "text": question}]
    parts.append({"type": "text", "text": "Locate "})
    parts.append({"type": "grounding", "query": query_of(question)})
    return [*parts, {"type": "text", "text": " in the given image."}]


def query_of(question: str) -> str:
    """What a question asks to locate: "Locate the red circle." means "the red circle"."""
    return _LOCATE.sub("", question).strip().rstrip(".?!")


def _as_json(answer: Completion, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "text": answer.text,
        "boxes": [asdict(box) for box in answer.boxes],
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
    }


def _draw(pictures: Sequence[Image.Image], answer: Completion, target: Path) -> None:
    from vl2.processing.grounding import draw_boxes

    drawn = [
        draw_boxes(picture, answer.boxes, image_index=index)
        for index, picture in enumerate(pictures)
    ]
    if not answer.boxes:
        note("the answer has no boxes: the picture is written as it is")
    save_png(side_by_side(drawn), target)
