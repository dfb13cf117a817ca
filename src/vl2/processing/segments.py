"""The pieces of a prompt. Only our own code makes a `Control`; text never becomes one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Control:
    """One control token."""

    id: int


@dataclass(frozen=True, slots=True)
class Text:
    """Text; control strings in it are mere characters."""

    text: str


@dataclass(frozen=True, slots=True)
class PicturePlace:
    """The place of the `index`-th picture."""

    index: int


Segment = Control | Text | PicturePlace


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Segments that are learnt, or not, as a whole."""

    segments: tuple[Segment, ...]
    supervised: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A whole conversation or document, and its pictures as they came."""

    turns: tuple[Passage, ...]
    sources: tuple[Any, ...] = ()


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Segments with neighbouring texts joined, because tokens reach across; empty texts vanish."""
    result: list[Segment] = []
    for segment in segments:
        match segment, result[-1] if result else None:
            case Text(text=""), _:
                continue
            case Text(text=text), Text(text=before):
                result[-1] = Text(before + text)
            case _:
                result.append(segment)
    return result
