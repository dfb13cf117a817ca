"""What a command shows: answers on stdout, boxes beside it on stderr."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING

from vl2.processing.plain_text import PlainText

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from vl2.engine.config import Completion


def show(text: str) -> None:
    """Write data to stdout at once; a terminal never receives control characters of a model."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def streaming() -> Shown | None:
    """Shows the only answer while it is made, as text for people; None where stdout is data."""
    return Shown() if sys.stdout.isatty() else None


class Shown:
    """An answer on the terminal, piece by piece, as text for people."""

    def __init__(self) -> None:
        self._plain = PlainText()

    def __call__(self, index: int, delta: str) -> None:
        """Show what is new; what may be the beginning of a mark waits."""
        show(self._plain.push(delta))

    def end(self) -> None:
        """Show what waited, and end the line."""
        show(self._plain.finish() + "\n")


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
