"""Labelled pictures as conversations that locate each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vl2.data.records import PLACEHOLDER, Turn
from vl2.data.source_pictures import picture_size
from vl2.data.source_record import Origin, Pictures
from vl2.geometry import Resolution
from vl2.processing.grounding import grounding_text
from vl2.processing.image_gate import ImageError

QUESTION = "Locate <|ref|>{label}<|/ref|> in the given image."


def object_turns(objects: Any, pictures: Pictures, origin: Origin) -> tuple[Turn, ...]:
    """One question and answer for each distinct label, in the order of the file.

    Args:
        objects: [{"label": str, "box": [x1, y1, x2, y2]}], in pixels of the picture as it is shown
            (turned as EXIF says).
        pictures: exactly one.
        origin: of the record.

    Raises:
        RecordError: no object, another number of pictures, a picture that cannot be opened, or a
            box that is not four numbers with x1 < x2 and y1 < y2 inside the picture.
    """
    if len(pictures) != 1:
        raise origin.error(f"'objects' with {len(pictures)} pictures: expected exactly one")
    if not isinstance(objects, list) or not objects:
        raise origin.error("'objects' is empty or no list: there is nothing to learn")
    try:
        size = picture_size(pictures[0])
    except ImageError as error:
        raise origin.error(str(error), picture="picture 1") from None
    found: dict[str, list[list[float]]] = {}
    for each in objects:
        label, box = _object(each, size, origin)
        found.setdefault(label, []).append(box)
    turns: list[Turn] = []
    for label, boxes in found.items():
        before = "" if turns else f"{PLACEHOLDER}\n"
        try:
            answer = grounding_text(label, boxes, size)
        except ValueError as error:  # a label that holds a grounding token
            raise origin.error(str(error)) from None
        turns.append(Turn(role="user", text=before + QUESTION.format(label=label)))
        turns.append(Turn(role="assistant", text=answer))
    return tuple(turns)


def _object(value: Any, size: Resolution, origin: Origin) -> tuple[str, list[float]]:
    label, box = (
        (value.get("label"), value.get("box")) if isinstance(value, Mapping) else (None, None)
    )
    if not isinstance(label, str) or not label.strip():
        raise origin.error("an object has no label: expected {'label', 'box'}")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise origin.error("a box is no list of four numbers: expected [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):  # refuses NaN, too
        raise origin.error(
            "a box does not lie inside its picture: expected 0 <= x1 < x2 <= width and "
            f"0 <= y1 < y2 <= height, got {box} in {size[0]} x {size[1]} pixels"
        )
    return " ".join(label.split()), box
