"""What a command shows: answers on stdout, boxes beside it on stderr."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from vl2.engine.config import Completion

_BOXES = re.compile(r"<\|det\|>.*?(?:<\|/det\|>|\Z)", re.DOTALL)
_MARKS = re.compile(r"<\|/?(?:ref|det|grounding)\|>")
_BEGUN = re.compile(r"<(?:\|(?:/?[a-z]*\|?)?)?\Z")
"""What may become a mark once the text goes on."""


def show(text: str) -> None:
    """Write data to stdout at once; a terminal never receives control characters of a model."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def streaming() -> PlainText | None:
    """Shows the only answer while it is made, as text for people; None where stdout is data."""
    return PlainText() if sys.stdout.isatty() else None


class PlainText:
    """An answer for people, piece by piece: labels without their marks, no coordinates."""

    def __init__(self) -> None:
        self._text = ""
        self._shown = 0

    def __call__(self, index: int, delta: str) -> None:
        """Show what is new; what may be the beginning of a mark waits."""
        self._text += delta
        self._show(plain_text(_BEGUN.sub("", self._text)))

    def end(self) -> None:
        """Show what waited, and end the line."""
        self._show(plain_text(self._text))
        show("\n")

    def _show(self, plain: str) -> None:
        show(plain[self._shown :])
        self._shown = len(plain)


def plain_text(text: str) -> str:
    """An answer for people: labels without their marks, no coordinates."""
    listed = _BOXES.sub("", text.replace("<|/det|><|ref|>", "<|/det|>, "))
    return _MARKS.sub("", listed)


def note(text: str) -> None:
    """Write one line for people to stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with its control characters replaced, which could drive a terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def show_remarks(answer: Completion, picture: str | None = None) -> None:
    """List an answer's boxes on stderr in pixels of their pictures; say if it looped or was cut.

    Args:
        answer: of one question.
        picture: name of the only picture, which is told then.
    """
    for box in answer.boxes:
        where = picture or f"picture {box.image_index + 1}"
        place = f"({box.x1}, {box.y1}) to ({box.x2}, {box.y2}) in {where}"
        score = "" if box.score is None else f", score {box.score:.2f}"
        note(f"{box.label or 'box'}: {place}{score}")
    for told in dict.fromkeys(box.note for box in answer.boxes if box.note):
        note(told)
    whose = f"{picture}: " if picture else ""
    if answer.guard_fired:
        note(
            f"{whose}the answer repeated itself and was turned away from that, tokens: "
            f"{answer.guard_fired}; --no-repetition-guard lets it go on"
        )
    if answer.finish_reason == "length":
        count = answer.usage.completion_tokens
        note(
            f"{whose}the answer was cut after {count} tokens, by --max-tokens or the end of the "
            "context"
        )


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on stderr for what takes long; shows nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
