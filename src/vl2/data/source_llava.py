"""The form of LLaVA and ShareGPT: pictures and a conversation, or pictures with labelled boxes."""

from __future__ import annotations

from pathlib import Path

from vl2.data.config import SourceConfig
from vl2.data.records import Record, Turn
from vl2.data.source_grounding import check_row_kind, grounded_turns
from vl2.data.source_json import Fields, JsonSource
from vl2.data.source_objects import object_turns
from vl2.data.source_pictures import read_pictures
from vl2.data.source_record import (
    Origin,
    PictureSources,
    caption_record,
    conversation_record,
    read_pairs,
    read_turns,
)

ANSWERS = ("conversations", "messages", "texts", "objects", "caption")
"""Fields of a row that tell what is to be learnt; the first that is there counts."""


def open_llava(config: SourceConfig) -> JsonSource:
    """A JSON list or JSON lines in the form of LLaVA.

    A row has "image" or "images" (a path, a list of them, or nothing) and one of
    "conversations" [{"from": "human", "value"}, {"from": "gpt", "value"}],
    "messages" [{"role", "content"}],
    "objects" [{"label", "box": [x1, y1, x2, y2] in pixels}].
    Marks of other trainers in a conversation are read as well, see `source_grounding`.

    Raises:
        ValueError: the file cannot be read.
    """
    return JsonSource(config, _record)


def llava_record(row: Fields, pictures: PictureSources, origin: Origin) -> Record:
    """The record of a row's fields.

    Args:
        row: "texts" is a list of {"user", "assistant"}; for the other `ANSWERS` see `open_llava`.
        pictures: of the row.
        origin: of the record.

    Raises:
        RecordError: none of `ANSWERS` is there, it cannot be used, or see `check_row_kind`.
    """
    check_row_kind(row, origin)
    _check_once(row, ("conversations", "messages"), origin)
    said = next((row[n] for n in ("conversations", "messages") if row.get(n) is not None), None)
    pairs = row.get("texts") if said is None else None
    if said is not None or pairs is not None:
        turns = read_turns(said, origin) if pairs is None else read_pairs(pairs, origin)
        system = row.get("system")
        if isinstance(system, str) and system.strip() and turns[0].role != "system":
            turns = (Turn(role="system", text=system), *turns)  # as ms-swift has it
        return conversation_record(grounded_turns(turns, row, pictures, origin), pictures, origin)
    if row.get("objects") is not None:
        turns = object_turns(row["objects"], pictures, origin)
        return conversation_record(turns, pictures, origin)
    if row.get("caption") is not None:
        caption = row["caption"]
        if isinstance(caption, str):
            spoken = Turn(role="assistant", text=caption)
            (spoken,) = grounded_turns([spoken], row, pictures, origin)
            caption = spoken.text
        return caption_record(caption, pictures, origin)
    raise origin.error(f"the row has no answers: expected one of {', '.join(ANSWERS)}")


def row_pictures(row: Fields, root: Path, origin: Origin) -> PictureSources:
    """What the field "images" or "image" names.

    Raises:
        RecordError: a value that is no picture.
    """
    _check_once(row, ("images", "image"), origin)
    value = row.get("images") if row.get("images") is not None else row.get("image")
    return read_pictures(value, root, origin)


def _check_once(row: Fields, names: tuple[str, str], origin: Origin) -> None:
    """Refuse a row that says the same thing in two fields: one of them would be passed over."""
    first, second = (row.get(name) for name in names)
    if first and second and first not in (second, [second]):
        raise origin.error(f"the row has {names[0]!r} and {names[1]!r}: give one of them")


def _record(row: Fields, origin: Origin, root: Path) -> Record:
    return llava_record(row, row_pictures(row, root, origin), origin)
