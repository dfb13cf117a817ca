"""Questions of the newcomer's set: what is asked, by which rule the answer is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ABSENT = (
    "no", "none", "not", "nothing", "nobody", "zero", "isn't", "aren't", "doesn't", "don't",
    "hasn't", "wasn't", "can't", "cannot", "n/a", "empty", "blank", "missing", "without",
)  # fmt: skip
"""Words of which an answer to a question about what is not in the picture has at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about a picture.

    `rule` is exact, number, contains_all, contains_any, cer, boxes or yes_no. `skill` groups the
    questions in a report: reading, finding, counting, comparing, locating, naming, absent.
    """

    ask: str
    rule: str
    answers: Sequence[str | float | Sequence[float]]
    skill: str
    tolerance: float = 0.0


def exact(ask: str, *answers: str, skill: str = "finding") -> Question:
    """One of the strings, in either case."""
    return Question(ask=ask, rule="exact", answers=answers, skill=skill)


def number(ask: str, value: float, tolerance: float = 0.0, *, skill: str = "finding") -> Question:
    """One number, right within the share `tolerance` of it."""
    return Question(
        ask=ask, rule="number", answers=(round(value, 2),), skill=skill, tolerance=tolerance
    )


def count(ask: str, value: int) -> Question:
    """A number of things."""
    return number(ask, value, skill="counting")


def facts(ask: str, *told: str, skill: str = "finding") -> Question:
    """Every fact must occur; spellings of one fact stand between `|`."""
    return Question(ask=ask, rule="contains_all", answers=told, skill=skill)


def absent(ask: str) -> Question:
    """What is asked for is not in the picture."""
    return Question(ask=ask, rule="contains_any", answers=ABSENT, skill="absent")


def read(ask: str, text: str) -> Question:
    """A transcription."""
    return Question(ask=ask, rule="cer", answers=(text,), skill="reading")


def where(ask: str, *boxes: Sequence[float]) -> Question:
    """Every box, in pixels of the picture, and no other."""
    return Question(ask=ask, rule="boxes", answers=boxes, skill="locating")


def yes_no(ask: str, truth: bool, *, skill: str = "finding") -> Question:
    """Yes or no."""
    return Question(ask=ask, rule="yes_no", answers=("yes" if truth else "no",), skill=skill)
