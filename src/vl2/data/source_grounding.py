"""Boxes in the forms of other trainers become boxes that the model writes.

ms-swift: marks `<ref-object>` and `<bbox>` in the text, filled in their order from "objects"
{"ref", "bbox", "bbox_type", "image_id"}, as its documentation of custom datasets has it.
Qwen-VL: `<ref>dog</ref><box>(x1,y1),(x2,y2)</box>`; Qwen2-VL: `<|object_ref_start|>`,
`<|object_ref_end|>`, `<|box_start|>` and `<|box_end|>` instead; InternVL: `<box>[[x1, y1, x2,
y2]]</box>`. All three count from 0 to 1000. What has no form here is refused: also the JSON of
Qwen2.5-VL and Qwen3-VL, of which the first counts pixels of a resized picture, the second to 1000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vl2.data.records import Turn
from vl2.data.source_objects import TEXT_OBJECTS, checked_box, shown_size
from vl2.data.source_record import Origin, PictureSources
from vl2.processing.grounding import GRID, to_999
from vl2.processing.tokenizer import GROUNDING_TOKENS, SPECIAL_TOKENS

_MEDIA = re.compile(r"(?:video|audio)s?(?:_(?:urls?|paths?|files?|frames|bytes|data|base64))?")
_PREFERENCE = re.compile(r"rejected(?:_\w+)?")  # DPO and its kin
_DESIRED = ("label", "kto_tag")  # KTO; a label that is no boolean is of another kind

THOUSAND = 1000
"""Largest coordinate of Qwen and InternVL."""

_SCALES = {"real": None, "norm1": 1, "norm1000": THOUSAND}  # of "bbox_type"; "real" is pixels
_READ = ("ref", "bbox", "bbox_type", "image_id")  # of "objects"

_MARK = re.compile(r"<ref-object>|<bbox>(?:\s*<bbox>)*")
_UNIT = r"(?:<box>[\d.,()\[\]\s-]*</box>|<\|box_start\|>.*?<\|box_end\|>)"  # other <box> is markup
_UNITS = re.compile(rf"{_UNIT}(?:\s*{_UNIT})*", re.DOTALL)
_INSIDE = re.compile(r"(?:<box>|<\|box_start\|>)(.*?)(?:</box>|<\|box_end\|>)", re.DOTALL)
_REF = re.compile(r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.DOTALL)
_ANGLE_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
_VALUE = r"\s*(\d+(?:\.\d+)?)\s*"
_CORNERS = re.compile(rf"\s*\({_VALUE},{_VALUE}\)\s*,\s*\({_VALUE},{_VALUE}\)\s*")
_LISTED = re.compile(rf"\[{_VALUE},{_VALUE},{_VALUE},{_VALUE}\]")
_FOREIGN = re.compile(
    r"<\|(?:object_ref|box|quad|point|vision|im)_(?:start|end)\|>|<\|(?:image|video)_pad\|>"
    r"|<(?:quad|point|box)>[\s(\[]*(?:\d[\d.,()\s]*|<\|det\|>)|<ref>\s*<\|ref\|>"
    r"|<img>[^<>]+</img>|<(?:loc_?|patch_index_)\d+>|[\"'](?:bb?ox|point)_[23]d[\"']\s*:\s*[\[<]"
    r"|<points? x\d*=\"[^>]*>|<(?:im_start|im_end|ImageHere|image_?\d+)>"
)
_NO_PICTURE = re.compile(r"<(video|audio)>(?!.*</\1>)", re.DOTALL)  # with an end it is HTML


def grounded_turns(
    turns: Sequence[Turn], row: Mapping[str, Any], pictures: PictureSources, origin: Origin
) -> tuple[Turn, ...]:
    """The turns of a row with labels and boxes as the model writes them.

    Raises:
        RecordError: marks and "objects" that do not fit each other, a box that is none, the place
            of a video or of sound, or marks of other models that mean nothing here.
    """
    for turn in turns:
        if turn.role == "user" and (found := _NO_PICTURE.search(turn.text)):
            raise origin.error(
                f"{found[0]} in a question: only pictures are supported, leave the row out"
            )
    return _translated(_filled(turns, row, pictures, origin), origin)


def is_foreign(name: str) -> bool:
    """Whether `check_row_kind` asks for a field of this name."""
    return bool(name in _DESIRED or _MEDIA.fullmatch(name) or _PREFERENCE.fullmatch(name))


def check_row_kind(row: Mapping[str, Any], origin: Origin) -> None:
    """Refuse a row about what is no picture, or whose answers are not there to be learnt.

    Raises:
        RecordError: it has video or sound, an answer that was rejected, or a mark of a bad answer.
    """
    for name, value in row.items():
        if value and _MEDIA.fullmatch(name):
            raise origin.error(
                f"the row has {name!r}: only pictures are supported, leave the row out"
            )
        if value and _PREFERENCE.fullmatch(name):
            raise origin.error(
                f"the row has {name!r}: there is no training on preferences, leave the field out "
                "to learn the other answer, or leave the row out"
            )
        if value is False and name in _DESIRED:
            raise origin.error(
                f"the row has {name!r} false, so its answer is not to be learnt: leave the row out"
            )


def _filled(
    turns: Sequence[Turn], row: Mapping[str, Any], pictures: PictureSources, origin: Origin
) -> tuple[Turn, ...]:
    """The marks of ms-swift replaced by what "objects" has for them."""
    objects = row.get("objects")
    marks = [mark for turn in turns for mark in _MARK.findall(turn.text)]
    if not objects and not marks:
        return tuple(turns)
    if isinstance(objects, str):
        raise origin.error(TEXT_OBJECTS)
    if not isinstance(objects, Mapping):
        raise origin.error(
            "the marks <ref-object> and <bbox> need 'objects' {'ref', 'bbox'}"
            if marks
            else "'objects' beside a conversation is no {'ref', 'bbox'}, which fill its marks: "
            "give one of both"
        )
    unread = [name for name, value in objects.items() if value and name not in _READ]
    unread += ["bbox_type beside it"] if row.get("bbox_type") else []
    if unread:
        raise origin.error(f"'objects' with {unread[0]}: expected {', '.join(_READ)} in it")
    labels, boxes = objects.get("ref") or [], list(_boxes(objects, pictures, origin))
    wanted = (marks.count("<ref-object>"), sum(mark.count("<bbox>") for mark in marks))
    if not isinstance(labels, list) or wanted != (len(labels), len(boxes)):
        raise origin.error(
            f"{wanted[0]} <ref-object> and {wanted[1]} <bbox> in the text for "
            f"{len(labels)} 'ref' and {len(boxes)} 'bbox' of 'objects'"
        )
    left, right = iter(labels), iter(boxes)

    def fill(found: re.Match[str]) -> str:
        if found[0] == "<ref-object>":
            return _label(next(left), origin)
        return _written([next(right) for _ in range(found[0].count("<bbox>"))])

    return tuple(replace(turn, text=_MARK.sub(fill, turn.text)) for turn in turns)


def _boxes(
    objects: Mapping[str, Any], pictures: PictureSources, origin: Origin
) -> Iterator[list[int]]:
    """The boxes of ms-swift's "objects" in 0..999."""
    boxes, kind = objects.get("bbox") or [], objects.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in _SCALES:
        raise origin.error(f"bbox_type is {str(kind)[:40]!r}: expected {' or '.join(_SCALES)}")
    if not isinstance(boxes, list):
        raise origin.error("'bbox' is not a list of boxes [x1, y1, x2, y2]")
    numbers = objects.get("image_id") or [0] * len(boxes)
    if not isinstance(numbers, list) or len(numbers) != len(boxes):
        raise origin.error("'image_id' is not a list with the number of a picture for each 'bbox'")
    for box, number in zip(boxes, numbers, strict=True):
        if type(number) is not int or not 0 <= number < len(pictures):
            raise origin.error(
                f"a box belongs to picture {str(number)[:20]} of {len(pictures)}: expected an "
                "'image_id' from 0 on"
            )
        size = shown_size(pictures, number, origin)
        if (end := _SCALES[kind]) is None:
            yield list(to_999(checked_box(box, size, origin), size))
            continue
        checked_box(box, None, origin, end=end)
        checked_box([v / end * side for v, side in zip(box, size * 2, strict=True)], size, origin)
        yield _on_grid(box, end)


def _translated(turns: Sequence[Turn], origin: Origin) -> tuple[Turn, ...]:
    """Labels and boxes of Qwen and InternVL, if there are any."""
    has_boxes = any("<box>" in unit for turn in turns for unit in _UNITS.findall(turn.text))
    found = []
    for turn in turns:
        text = _UNITS.sub(lambda units: _read_boxes(units[0], origin), turn.text)
        text = _REF.sub(lambda ref: _label(ref[1], origin), text)
        if has_boxes:  # without, <ref> is the mark-up of a wiki
            text = _ANGLE_REF.sub(lambda ref: _label(ref[1], origin), text)
        if foreign := _FOREIGN.search(text):
            raise origin.error(
                f"{foreign[0].strip()[:40]} in the text means nothing here: write <image> for a "
                "picture, <|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|> in 0..999 for a box"
            )
        found.append(replace(turn, text=text))
    return tuple(found)


def _read_boxes(text: str, origin: Origin) -> str:
    boxes = []
    for inside in _INSIDE.findall(text):
        corners = _CORNERS.fullmatch(inside)
        listed = [corners.groups()] if corners else _LISTED.findall(inside)
        rest = "" if corners else _LISTED.sub("", inside).strip("[], \n\t")
        if rest or not listed:
            raise origin.error(
                f"{text[:60]!r} is not a box: expected (x1,y1),(x2,y2) within 0..{THOUSAND}"
            )
        given = [[float(value) for value in numbers] for numbers in listed]
        boxes += [_on_grid(checked_box(b, None, origin, end=THOUSAND), THOUSAND) for b in given]
    return _written(boxes)


def _on_grid(box: Sequence[float], end: int) -> list[int]:
    return [round(value / end * GRID) for value in box]


def _written(boxes: Sequence[Sequence[int]]) -> str:
    return f"<|det|>[{', '.join(str(list(box)) for box in boxes)}]<|/det|>"


def _label(label: Any, origin: Origin) -> str:
    words = " ".join(label.split()) if isinstance(label, str) else ""
    if not words or any(SPECIAL_TOKENS[name] in words for name in GROUNDING_TOKENS):
        raise origin.error(f"a label is {str(label)[:40]!r}: expected the plain name of an object")
    return f"<|ref|>{words}<|/ref|>"
