"""From the fields of a row to a `Record`: turns, documents, placeholders, and what is refused.

Every format comes through here, so that the same fault is the same `RecordError` in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vl2.data.records import PLACEHOLDER, Record, RecordError, Role, Turn
from vl2.processing.grounding import GRID

MAX_TEXT_BYTES = 4 * 4096 * 16
"""Most bytes of all text of a record: sixteen full contexts of four bytes a token."""

MAX_ROW_BYTES = 16 * 2**20
"""Most bytes of the JSON of a record; a longer one is not read."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "<|User|>": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "<|Assistant|>": "assistant",
    "system": "system",
}

_UNLEARNT = ("loss", "loss_scale", "train", "weight")
"""Fields of an answer whose value "false" or 0 keeps it from being learnt in other trainers."""

_NUMBERS = r"\[(\d{1,3}), ?(\d{1,3}), ?(\d{1,3}), ?(\d{1,3})\]"
_BOX = re.compile(_NUMBERS)
_BOXES = re.compile(rf"<\|det\|>\[{_NUMBERS}(?:, ?{_NUMBERS})*\]<\|/det\|>")
_GROUNDING = re.compile(r"<\|/?(?:ref|det)\|>")

PictureSources = tuple[bytes | Path, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Source and id of a record, which stand at the end of every message about it."""

    source: str
    id: str

    def error(self, reason: str, *, picture: str = "") -> RecordError:
        """A `RecordError` in one line: the reason, then the record and, if known, its picture."""
        where = f"record {self.id} of {self.source}" + (f", {picture}" if picture else "")
        return RecordError(" ".join(f"{reason} ({where})".split()))


def fault_of(error: RecordError) -> str:
    """The reason alone, so that equal faults of many records can be counted."""
    return str(error).rpartition(" (record ")[0] or str(error)


def origin_of(source: str, row: int, given: Any = None) -> Origin:
    """The origin of a row. Its id is unique: the id of the file, which may repeat, and the row.

    Args:
        source: its name.
        row: number of the row, from 0.
        given: what the file calls it; anything but a string or a whole number is left out.
    """
    text = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else ""
    words = text.encode("utf-8", "replace").decode().split()
    return Origin(source=source, id=f"{' '.join(words)[:80]}#{row}")


def conversation_record(turns: Sequence[Turn], pictures: PictureSources, origin: Origin) -> Record:
    """A checked conversation. Pictures that no text mentions stand before the first user text.

    Raises:
        RecordError: no answer, an empty one, an answer before any question, another number of
            `<image>` than of pictures, a broken box, or too much text.
    """
    spoken = [turn for turn in turns if turn.role != "system"]
    if not any(turn.role == "assistant" for turn in spoken):
        raise origin.error("the conversation has no answers: give assistant turns to learn")
    if spoken[0].role != "user":
        raise origin.error("the conversation begins with an answer: expected a user turn first")
    for turn in turns:
        if turn.role == "assistant" and not turn.text.strip():
            raise origin.error("an answer is empty")
        if turn.role != "user" and PLACEHOLDER in turn.text:
            raise origin.error(f"{PLACEHOLDER} in {turn.role} text: only users send pictures")
        _check_boxes(turn.text, origin)
    placed = _with_placeholders(turns, len(pictures))
    _check_text([turn.text for turn in placed], len(pictures), origin)
    return Record(id=origin.id, source=origin.source, images=pictures, turns=placed)


def document_record(text: str, pictures: PictureSources, origin: Origin) -> Record:
    """A checked document, of which everything is learnt.

    Raises:
        RecordError: no text, another number of `<image>` than of pictures, or too much text.
    """
    if not text.replace(PLACEHOLDER, "").strip():
        raise origin.error("the document has no text")
    _check_boxes(text, origin)
    _check_text([text], len(pictures), origin)
    return Record(id=origin.id, source=origin.source, images=pictures, document=text)


def caption_record(caption: Any, pictures: PictureSources, origin: Origin) -> Record:
    """A document of the pictures, one a line, and the text about them.

    Raises:
        RecordError: no picture, or no text.
    """
    if not isinstance(caption, str) or not caption.strip():
        raise origin.error("the caption is empty or not a string")
    if not pictures:
        raise origin.error("a caption without a picture")
    return document_record(f"{PLACEHOLDER}\n" * len(pictures) + caption.strip(), pictures, origin)


def read_turns(said: Any, origin: Origin) -> tuple[Turn, ...]:
    """Turns of a list of {"from", "value"} or {"role", "content"}.

    Raises:
        RecordError: no list, an empty one, an unknown role, or a text that is no string.
    """
    if not isinstance(said, list) or not said:
        raise origin.error("the conversation is empty or not a list")
    return tuple(_turn(message, origin) for message in said)


def read_pairs(pairs: Any, origin: Origin) -> tuple[Turn, ...]:
    """Turns of a list of {"user", "assistant"}, as Docmatix and The Cauldron have it.

    Raises:
        RecordError: no list, an empty one, or a text that is no string.
    """
    if not isinstance(pairs, list) or not pairs:
        raise origin.error("the conversation is empty or not a list")
    if not all(isinstance(pair, Mapping) for pair in pairs):
        raise origin.error("a turn is not an object with 'user' and 'assistant'")
    said = [{"role": r, "content": pair.get(r)} for pair in pairs for r in ("user", "assistant")]
    return read_turns(said, origin)


def _turn(message: Any, origin: Origin) -> Turn:
    if not isinstance(message, Mapping):
        raise origin.error("a turn is not an object with a role and a text")
    name = message.get("from", message.get("role"))
    text = message.get("value", message.get("content"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise origin.error(f"unknown role {str(name)[:40]!r}: expected user, assistant or system")
    if not isinstance(text, str):
        what = f"a text is of type {type(text).__name__}"
        raise origin.error(f"{what}: expected a string, with {PLACEHOLDER} where a picture stands")
    if role == "assistant" and any(message.get(name, 1) in (False, 0) for name in _UNLEARNT):
        raise origin.error("an answer is marked not to be learnt: leave the mark or the row out")
    return Turn(role=role, text=text)


def _with_placeholders(turns: Sequence[Turn], pictures: int) -> tuple[Turn, ...]:
    """Turns with placeholders, as LLaVA reads its files: no `<image>` at all, or all of them."""
    found = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    if found or not pictures:
        return tuple(turns)
    first = next(n for n, turn in enumerate(turns) if turn.role == "user")
    text = f"{PLACEHOLDER}\n" * pictures + turns[first].text
    return (*turns[:first], replace(turns[first], text=text), *turns[first + 1 :])


def _check_text(texts: Sequence[str], pictures: int, origin: Origin) -> None:
    found = sum(text.count(PLACEHOLDER) for text in texts)
    if found != pictures:
        raise origin.error(f"{found} {PLACEHOLDER} in the text for {pictures} pictures")
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        raise origin.error("the text holds a lone surrogate, which is not a character") from None
    if size > MAX_TEXT_BYTES:
        raise origin.error(f"the text is longer than {MAX_TEXT_BYTES} bytes")


def _check_boxes(text: str, origin: Origin) -> None:
    """Labels are closed, and what stands between `<|det|>` and `<|/det|>` is boxes of the model."""
    marks = _GROUNDING.findall(text)
    if marks[1::2] != [mark.replace("<|", "<|/") for mark in marks[::2]]:
        raise origin.error(
            "the text opens or closes a label or a box twice, or not at all: expected "
            "<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>"
        )
    groups = [found[0] for found in _BOXES.finditer(text)]
    boxes = [tuple(map(int, numbers)) for group in groups for numbers in _BOX.findall(group)]
    fits = all(a <= c <= GRID and b <= d <= GRID for a, b, c, d in boxes)
    wrong = f"a box in the text is not [[x1, y1, x2, y2]] within 0..{GRID}"
    if len(groups) != marks.count("<|det|>") or not fits:
        raise origin.error(f"{wrong} and in that order")
    if (least := next((box for box in boxes if max(box) <= 1), None)) is not None:
        raise origin.error(
            f"{wrong} but {list(least)}, which are shares (0..1) or a corner of one cell: multiply "
            f"shares by {GRID}, leave out a box as small as that"
        )
