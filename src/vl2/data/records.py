"""One training sample as its source gives it: a conversation or a document, with its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["user", "assistant", "system"]

PLACEHOLDER = "<image>"
"""Marks the place of a picture in the text of a user or of a document."""


class RecordError(ValueError):
    """A sample that cannot be used; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A sample: turns, or a document of which everything is learnt."""

    id: str
    source: str
    images: tuple[bytes | Path, ...] = ()  # encoded files, in the order of their placeholders
    turns: tuple[Turn, ...] = ()
    document: str | None = None
