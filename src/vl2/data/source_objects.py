"""Labelled pictures as conversations that locate each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vl2.data.records import PLACEHOLDER, Turn
from vl2.data.source_pictures import picture_size
from vl2.data.source_record import Origin, PictureSources
from vl2.geometry import Resolution
from vl2.processing.grounding import grounding_text
from vl2.processing.image_gate import ImageError

QUESTION = "Locate <|ref|>{label}<|/ref|> in the given image."

TEXT_OBJECTS = (
    "'objects' is a text, as older files of ms-swift have it: write it as JSON of its own, "
    "{'ref': [label], 'bbox': [[x1, y1, x2, y2]]} beside messages, else [{'label', 'box'}]"
)


def object_turns(objects: Any, pictures: PictureSources, origin: Origin) -> tuple[Turn, ...]:
    """One question and answer for each distinct label, in the order of the file.

    Args:
        objects: [{"label": str, "box": [x1, y1, x2, y2]}], in pixels of the picture as it is shown
            (turned as EXIF says).
        pictures: exactly one.
        origin: of the record.

    Raises:
        RecordError: no object, another number of pictures, a picture that cannot be opened, or a
            box that is not four numbers with x1 < x2 and y1 < y2 inside the picture, or
            thinner than a pixel.
    """
    if len(pictures) != 1:
        raise origin.error(f"'objects' with {len(pictures)} pictures: expected exactly one")
    if isinstance(objects, str):
        raise origin.error(TEXT_OBJECTS)
    if isinstance(objects, Mapping):
        raise origin.error(
            "'objects' is an object with fields: expected a list of {'label', 'box'}, or messages "
            "whose marks <ref-object> and <bbox> it fills"
        )
    if not isinstance(objects, list) or not objects:
        raise origin.error("'objects' is empty or not a list: there is nothing to learn")
    size = shown_size(pictures, 0, origin)
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


def shown_size(pictures: PictureSources, number: int, origin: Origin) -> Resolution:
    """Width and height of one of the pictures, as it is shown.

    Raises:
        RecordError: it cannot be opened.
    """
    try:
        return picture_size(pictures[number])
    except ImageError as error:
        raise origin.error(str(error), picture=f"picture {number + 1}") from None


def checked_box(
    box: Any, size: Resolution | None, origin: Origin, *, end: float = 1
) -> list[float]:
    """A box in pixels of a picture, or in shares of `end`.

    Args:
        box: x1, y1, x2, y2.
        size: of the picture; None for shares.
        origin: of the record.
        end: where shares end.

    Raises:
        RecordError: no four numbers, corners in the wrong order or outside, or a box in pixels
            that is thinner than one, as shares are, or cannot be told from shares.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        told = "a point, which is not supported" if isinstance(box, list) and len(box) == 2 else ""
        raise origin.error(
            f"a box is {told or 'not a list of four numbers'}: expected [x1, y1, x2, y2]"
            + (" in pixels" if size else "")
        )
    x1, y1, x2, y2 = box
    width, height = size or (end, end)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):  # refuses NaN, too
        inside = f"{width} x {height} pixels" if size else f"shares of 0..{end:g}"
        raise origin.error(
            "a box does not lie inside its picture: expected 0 <= x1 < x2 <= width and "
            f"0 <= y1 < y2 <= height, got {box} in {inside}"
        )
    if size and max(box) == x2 - x1 == y2 - y1 == 1:
        raise origin.error(
            f"a box is {box} in {width} x {height} pixels, one pixel in the corner or shares of "
            "the whole picture: shares (0..1) must be multiplied by width and height, and the one "
            "pixel, which looks the same, must be left out"
        )
    if size and (x2 - x1 < 1 or y2 - y1 < 1):
        raise origin.error(
            f"a box is thinner than a pixel, got {box} in {width} x {height} pixels: shares (0..1) "
            "must be multiplied by width and height"
        )
    if max(box) <= 1 < end:
        raise origin.error(f"a box has shares of 0..1, got {box}: expected shares of 0..{end:g}")
    return box


def _object(value: Any, size: Resolution, origin: Origin) -> tuple[str, list[float]]:
    label, box = (
        (value.get("label"), value.get("box")) if isinstance(value, Mapping) else (None, None)
    )
    if not isinstance(label, str) or not label.strip():
        raise origin.error("an object has no label: expected {'label', 'box'}")
    return " ".join(label.split()), checked_box(box, size, origin)
