"""What a command shows: answers on stdout, boxes beside it on stderr."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vl2.engine.config import Completion


def show(text: str) -> None:
    """Write data to stdout at once; a terminal never receives control characters of a model."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def show_delta(index: int, text: str) -> None:
    """Write a piece of the only answer while it is made."""
    show(text)


def note(text: str) -> None:
    """Write one line for people to stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with its control characters replaced, which could drive a terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def show_remarks(answer: Completion) -> None:
    """List an answer's boxes on stderr in pixels of their pictures, and say if it was cut short."""
    for box in answer.boxes:
        place = f"({box.x1}, {box.y1}) to ({box.x2}, {box.y2}) in picture {box.image_index + 1}"
        score = "" if box.score is None else f", score {box.score:.2f}"
        note(f"{box.label or 'box'}: {place}{score}")
    for told in dict.fromkeys(box.note for box in answer.boxes if box.note):
        note(told)
    if answer.finish_reason == "length":
        count = answer.usage.completion_tokens
        note(f"the answer was cut after {count} tokens, by --max-tokens or the end of the context")
