from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.source_rows import picture, refused, talk, texts

from vl2.data.config import SourceConfig
from vl2.data.records import Turn
from vl2.data.source_grounding import grounded_turns
from vl2.data.source_record import Origin
from vl2.data.sources import Source, open_source
from vl2.processing.grounding import to_999

ORIGIN = Origin(source="d", id="#0")


def source_of(tmp_path: Path, row: dict[str, Any], **settings: Any) -> Source:
    (tmp_path / "a.png").write_bytes(picture(size=(80, 60), kind="PNG"))
    (tmp_path / "b.png").write_bytes(picture(size=(400, 200), kind="PNG"))
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    return open_source(SourceConfig(path=str(tmp_path / "d.jsonl"), **settings))


def said(*pairs: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(pairs)]


def read(tmp_path: Path, *pairs: str, **row: Any) -> list[str]:
    """The texts of a row about one picture of 80 x 60."""
    row = {"images": ["a.png"], "messages": said(*pairs), **row}
    return [text for _, text in texts(source_of(tmp_path, row)[0])]


# ms-swift


def test_marks_are_filled_from_objects_in_their_order(tmp_path: Path):
    objects = {"ref": ["a dog", "a woman", "sheep"], "bbox": [[1, 2, 30, 40], [8, 6, 80, 60]]}
    objects["bbox"] += [[0, 0, 40, 30], [40, 30, 80, 60]]
    question, answer, then, boxes = read(
        tmp_path,
        "<image>Describe it.",
        "<ref-object><bbox> and <ref-object> <bbox> play",
        "Find the <ref-object>.",
        "<bbox><bbox>",
        objects=objects,
    )
    first, second = (list(to_999(box, (80, 60))) for box in objects["bbox"][:2])
    assert question == "<image>Describe it."
    assert answer == (
        f"<|ref|>a dog<|/ref|><|det|>[{first}]<|/det|> and "
        f"<|ref|>a woman<|/ref|> <|det|>[{second}]<|/det|> play"
    )
    assert then == "Find the <|ref|>sheep<|/ref|>."
    assert boxes == "<|det|>[[0, 0, 500, 500], [500, 500, 999, 999]]<|/det|>"


def test_boxes_of_a_later_picture_and_shares(tmp_path: Path):
    row = {"images": ["a.png", "b.png"], "messages": said("<image><image>Where?", "<bbox> <bbox>")}
    row["objects"] = {"ref": [], "bbox": [[40, 30, 80, 60], [40, 30, 80, 60]], "image_id": [0, 1]}
    found = texts(source_of(tmp_path, row)[0])[1][1]
    there = list(to_999([40, 30, 80, 60], (400, 200)))
    assert found == f"<|det|>[[500, 500, 999, 999], {there}]<|/det|>"
    shares = {"ref": [], "bbox": [[0.1, 0.25, 0.5, 1]]}
    answer = read(tmp_path, "Where?", "<bbox>", objects={**shares, "bbox_type": "norm1"})[1]
    assert answer == "<|det|>[[100, 250, 500, 999]]<|/det|>"
    thousand = {"bbox": [[100, 250, 500, 1000]], "bbox_type": "norm1000"}
    assert read(tmp_path, "Where?", "<bbox>", objects=thousand)[1] == answer


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (None, "need 'objects'"),
        ([{"label": "dog", "box": [1, 2, 3, 4]}], "need 'objects'"),
        ({"ref": ["dog"]}, "1 <ref-object> and 1 <bbox> in the text for 1 'ref' and 0 'bbox'"),
        ({"ref": [], "bbox": [[1, 2, 30, 40]]}, "for 0 'ref' and 1 'bbox'"),
        ({"ref": ["a", "b"], "bbox": [[1, 2, 30, 40]]}, "for 2 'ref' and 1 'bbox'"),
        ({"ref": ["dog"], "bbox": [[61.5, 22.6]]}, "a point, which is not supported"),
        ({"ref": ["dog"], "bbox": [[1, 2, 30]]}, "not a list of four numbers"),
        ({"ref": ["dog"], "bbox": [[0.1, 0.2, 0.5, 0.9]]}, "shares (0..1) must be multiplied"),
        ({"ref": ["dog"], "bbox": [[30, 40, 1, 2]]}, "does not lie inside its picture"),
        ({"ref": ["dog"], "bbox": [[1, 2, 90, 40]]}, "in 80 x 60 pixels"),
        ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}, "in shares of 0..1"),
        ({"ref": ["dog"], "bbox": [[1, 2, 3, 4]], "bbox_type": "xywh"}, "bbox_type is 'xywh'"),
        ({"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "image_id": [1]}, "picture 1 of 1"),
        ({"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "image_id": 0.5}, "'image_id' is not a list"),
        (
            {"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "bbox_type": ["real"]},
            "expected real or norm1",
        ),
        ({"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "bbox_typ": "norm1000"}, "with bbox_typ: expe"),
        (
            {"ref": ["dog"], "bbox": [[1, 2, 30, 40]], "width": [8]},
            "'objects' with width: expected",
        ),
        (
            {"ref": ["dog"], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1000"},
            "a box has shares of 0..1, got [0.1, 0.2, 0.3, 0.4]: expected shares of 0..1000",
        ),
        (
            {"ref": ["dog"], "bbox": [[100, 200, 101, 400]], "bbox_type": "norm1000"},
            "thinner than a pixel, got [8.0, 12.0, 8.08, 24.0] in 80 x 60 pixels",
        ),
        (
            {"ref": ["dog"], "bbox": [[0.1, 0.2, 0.5, 0.21]], "bbox_type": "norm1"},
            "a box is thinner than a pixel",
        ),
        (
            {"ref": ["d"], "bbox": [[1, 2, 30, 40]], "bbox_type": "norm1000", "image_id": [3]},
            "picture 3 of 1",
        ),
        ({"ref": [""], "bbox": [[1, 2, 30, 40]]}, "a label is ''"),
        ({"ref": ["<|det|>"], "bbox": [[1, 2, 30, 40]]}, "a label is '<|det|>'"),
    ],
)
def test_objects_that_do_not_fit_the_marks(tmp_path: Path, objects: Any, reason: str):
    row = {"image": "a.png", "messages": said("Find <ref-object>.", "<bbox>"), "objects": objects}
    assert reason in refused(source_of(tmp_path, row))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Find <ref-object>.", '[{"bbox_2d": <bbox>, "label": "dog"}]'),
        ("Find <ref-object>.", "<box><bbox></box>"),
        ("Find <ref><ref-object></ref>.", "<bbox>"),
    ],
)
def test_marks_inside_the_form_of_another_model_are_refused(
    tmp_path: Path, question: str, answer: str
):
    row = {"image": "a.png", "messages": said(question, answer)}
    row["objects"] = {"ref": ["dog"], "bbox": [[1, 2, 30, 40]]}
    assert "means nothing here" in refused(source_of(tmp_path, row))


def test_the_kind_of_boxes_stands_in_objects(tmp_path: Path):
    row = {"image": "a.png", "messages": said("Find it.", "<bbox>"), "bbox_type": "norm1000"}
    row["objects"] = {"bbox": [[1, 2, 30, 40]]}
    assert "'objects' with bbox_type beside it" in refused(source_of(tmp_path, row))


def test_objects_beside_a_conversation_without_marks(tmp_path: Path):
    row = {"image": "a.png", "messages": said("What?", "A dog.")}
    ours = [{"label": "dog", "box": [1, 2, 30, 40]}]
    assert "give one of both" in refused(source_of(tmp_path, {**row, "objects": ours}))
    theirs = {"ref": [], "bbox": [[1, 2, 30, 40]]}
    assert "0 <bbox> in the text" in refused(source_of(tmp_path, {**row, "objects": theirs}))
    assert source_of(tmp_path, {**row, "objects": {"ref": [], "bbox": []}})[0].turns
    alone = {"image": "a.png", "objects": theirs}
    assert "expected a list of {'label', 'box'}" in refused(source_of(tmp_path, alone))


# Qwen and InternVL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<ref>a dog</ref><box>(221,423),(569,886)</box> runs",
            "<|ref|>a dog<|/ref|><|det|>[[221, 423, 568, 885]]<|/det|> runs",
        ),
        (
            "<ref>sheep</ref><box>(0,0),(500,1000)</box><box>(500, 0), (1000, 1000)</box>",
            "<|ref|>sheep<|/ref|><|det|>[[0, 0, 500, 999], [500, 0, 999, 999]]<|/det|>",
        ),
        (
            "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(221,423),(569,886)"
            "<|box_end|>",
            "<|ref|>a dog<|/ref|><|det|>[[221, 423, 568, 885]]<|/det|>",
        ),
        (
            "<ref>cats</ref><box>[[1, 2, 30, 40], [500, 500, 600, 700]]</box>",
            "<|ref|>cats<|/ref|><|det|>[[1, 2, 30, 40], [500, 500, 599, 699]]<|/det|>",
        ),
    ],
)
def test_boxes_of_other_models_become_ours(tmp_path: Path, text: str, expected: str):
    assert read(tmp_path, "<image>Where?", text)[1] == expected
    caption = {"image": "a.png", "caption": text}
    assert source_of(tmp_path, caption)[0].document == f"<image>\n{expected}"


def test_a_label_in_the_question_is_read_where_boxes_are(tmp_path: Path):
    question, _ = read(tmp_path, "Find <ref>the dog</ref>.", "<box>(1,2),(30,40)</box>")
    assert question == "<image>\nFind <|ref|>the dog<|/ref|>."
    token = "<|object_ref_start|>dog<|object_ref_end|>"
    assert read(tmp_path, f"Find {token}.", "There.")[0] == "<image>\nFind <|ref|>dog<|/ref|>."


@pytest.mark.parametrize(
    "text",
    [
        *("A wiki<ref>Smith, 2001</ref> says so.", "<box>a</box>", "The key bbox_2d holds a box."),
        *("<video src='a'></video> <video> x", '{"total": [10, 20], "bbox": "none"}'),
    ],
)
def test_markup_stays_text(tmp_path: Path, text: str):
    assert read(tmp_path, "Write markup.", text)[1] == text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<box>(1,2)</box>", "is not a box"),
        ("<|box_start|>(246,113)<|box_end|>", "is not a box"),
        ("<box>(1,2),(3,4),(5,6)</box>", "is not a box"),
        ("<box>[[1, 2, 3, 4], 5]</box>", "is not a box"),
        ("<box>(30,40),(1,2)</box>", "does not lie inside its picture"),
        ("<box>(1,2),(1300,4)</box>", "in shares of 0..1000"),
        ("<|box_start|>dog<|box_end|>", "is not a box"),
        ("<|box_start|>(1,2),(3,4)", "<|box_start|> in the text means nothing here"),
        ("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", "means nothing here"),
        ("<|quad_start|>(1,2)<|quad_end|>", "means nothing here"),
        ("<box>(1,2),(3,4)", "<box>(1,2),(3,4) in the text means nothing here"),
        ("<point>(1, 2)</point>", "means nothing here"),
        ('<point x="1.5" y="2" alt="d">d</point>', "means nothing here"),
        ("<p>dog</p><box><loc_1><loc_2></box>", "means nothing here"),
        ("<loc0100><loc0200><loc0300><loc0400> dog", "means nothing here"),
        ("<|im_start|>Here.<|im_end|>", "means nothing here"),
        ("<|point_start|>(3,4)<|point_end|>", "means nothing here"),
        ("<|vision_start|>Here.<|vision_end|>", "means nothing here"),
        ("<object><patch_index_0044><patch_index_0863></object>", "means nothing here"),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```', "means nothing here"),
        ("{'bbox_2d':[10,20,30,40]}", "means nothing here"),
        ('{"point_2d": [10, 20], "label": "nose"}', "means nothing here"),
        ('[{"box_2d": [10, 20, 30, 40]}]', "means nothing here"),
        ('{"bbox_3d": [1, 2, 3, 4, 5, 6, 7, 8, 9]}', "means nothing here"),
        ("<ref>dog</ref><box>(0.1,0.2),(0.3,0.4)</box>", "a box has shares of 0..1"),
        ("<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>", "a box has shares of 0..1"),
        ("<box>[[0, 0, 1, 1]]</box>", "a box has shares of 0..1"),
        ("<|det|>[[0, 0, 0, 0]]<|/det|>", "is not [[x1, y1, x2, y2]]"),
        ("<ref></ref><box>(1,2),(30,40)</box>", "a label is ''"),
    ],
)
def test_what_is_no_box_is_refused(tmp_path: Path, answer: str, reason: str):
    row = {"image": "a.png", "messages": said("Where?", answer)}
    assert reason in refused(source_of(tmp_path, row))


@given(
    corners=st.tuples(*[st.integers(0, 1000)] * 4),
    form=st.sampled_from(["<box>({},{}),({},{})</box>", "<|box_start|>({},{}),({},{})<|box_end|>"]),
)
@settings(max_examples=60, deadline=None)
def test_a_box_is_read_or_refused(corners: tuple[int, int, int, int], form: str):
    x1, y1, x2, y2 = corners
    turns = [Turn(role="user", text="Where?"), Turn(role="assistant", text=form.format(*corners))]
    if x1 < x2 and y1 < y2 and max(corners) > 1:
        text = grounded_turns(turns, {}, (b"",), ORIGIN)[1].text
        numbers = json.loads(text.removeprefix("<|det|>").removesuffix("<|/det|>"))[0]
        assert all(abs(n / 999 - c / 1000) <= 0.0006 for n, c in zip(numbers, corners, strict=True))
    else:
        with pytest.raises(ValueError, match=r"does not lie inside|shares of 0\.\.1"):
            grounded_turns(turns, {}, (b"",), ORIGIN)


# What is no picture


@pytest.mark.parametrize(
    "field",
    [
        *("video", "videos", "audio", "audios", "video_url", "video_frames", "audio_path"),
        *("audios_files", "video_bytes"),
    ],
)
@pytest.mark.parametrize("format", ["llava", "text"])
def test_video_and_sound_are_refused(tmp_path: Path, field: str, format: str):
    row = {field: ["a.mp4"], "conversations": talk("What happens?")}
    message = refused(source_of(tmp_path, row, format=format))
    assert f"the row has '{field}': only pictures are supported" in message
    assert source_of(tmp_path, {**row, field: []}, format=format)[0].turns


@pytest.mark.parametrize("format", ["llava", "text"])
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("rejected_response", "A cat.", "no training on preferences, leave the field out to"),
        ("rejected", {"from": "gpt", "value": "A cat."}, "no training on preferences"),
        ("rejected_messages", [{"role": "assistant", "content": "A cat."}], "on preferences"),
        ("label", False, "so its answer is not to be learnt: leave the row out"),
        ("kto_tag", False, "so its answer is not to be learnt"),
    ],
)
def test_rows_of_other_kinds_of_training_are_refused(
    tmp_path: Path, format: str, field: str, value: Any, told: str
):
    row = {field: value, "conversations": talk("What is it?")}
    message = refused(source_of(tmp_path, row, format=format))
    assert f"the row has '{field}'" in message
    assert told in message
    for harmless in (None, True) if isinstance(value, bool) else (None, "", []):
        assert source_of(tmp_path, {**row, field: harmless}, format=format)[0].turns


@pytest.mark.parametrize("field", ["video_id", "audio_language", "label", "labels", "unrejected"])
def test_fields_that_say_nothing_about_the_answer_are_passed_over(tmp_path: Path, field: str):
    row = {field: "x", "conversations": talk("What is it?"), "image": "a.png"}
    assert source_of(tmp_path, row)[0].turns
    assert source_of(tmp_path, {**row, field: 0})[0].turns


@pytest.mark.parametrize(
    "objects",
    ['[{"caption": "dog", "bbox": [1, 2, 30, 40], "bbox_type": "real", "image": 0}]',
     '{"ref": ["dog"], "bbox": [[1, 2, 30, 40]]}', "no JSON"],
)  # fmt: skip
@pytest.mark.parametrize("answer", [{}, {"messages": said("Where?", "<ref-object><bbox>")}])
def test_objects_as_a_text_are_refused_with_their_form(
    tmp_path: Path, objects: str, answer: dict[str, Any]
):
    message = refused(source_of(tmp_path, {"image": "a.png", "objects": objects, **answer}))
    assert "'objects' is a text, as older files of ms-swift have it: write it as JSON" in message


def test_what_would_be_passed_over_is_refused_or_read(tmp_path: Path):
    row = {"image": "a.png", "messages": said("What?", "A dog.")}
    twice = {**row, "images": ["b.png"]}
    assert "the row has 'images' and 'image': give one" in refused(source_of(tmp_path, twice))
    assert source_of(tmp_path, {**row, "images": ["a.png"]})[0].turns
    twice = {**row, "conversations": said("What?", "A cat.")}
    assert "'conversations' and 'messages'" in refused(source_of(tmp_path, twice))
    for mark in ({"loss": False}, {"weight": 0}, {"loss_scale": 0.0}, {"train": False}):
        turns = [row["messages"][0], {**row["messages"][1], **mark}]
        assert "not to be learnt" in refused(source_of(tmp_path, {**row, "messages": turns}))
    turns = [row["messages"][0], {**row["messages"][1], "loss": True, "weight": None}]
    assert source_of(tmp_path, {**row, "messages": turns})[0].turns
    first = source_of(tmp_path, {**row, "system": "Be short."})[0].turns[0]
    assert first == Turn(role="system", text="Be short.")
    for address in ("https://e.com/a.png", "data:image/png;base64,iVBORw0KGgo="):
        away = {**row, "image": address}
        assert "an address or base64: save it" in refused(source_of(tmp_path, away))


@pytest.mark.parametrize("question", ["<video>What happens?", "<image><audio>\nWho speaks?"])
def test_places_of_video_and_sound_are_refused(tmp_path: Path, question: str):
    row = {"image": "a.png", "conversations": talk(question)}
    assert "only pictures are supported" in refused(source_of(tmp_path, row))


@pytest.mark.parametrize(
    "question",
    [
        *("<img>a.png</img>What?", "<|image_pad|>What?", "<image_1>What?", "<image1>What?"),
        *("<ImageHere>What?", "<im_start><image><im_end>What?"),
    ],
)
def test_pictures_in_the_forms_of_other_models_are_refused(tmp_path: Path, question: str):
    row = {"image": "a.png", "conversations": talk(question)}
    assert "write <image> for a picture" in refused(source_of(tmp_path, row))


# Boxes in pixels


def test_one_pixel_in_the_corner_is_told_apart_from_a_thin_box(tmp_path: Path):
    told = [{"label": "dog", "box": [0, 0, 1, 1]}]
    message = refused(source_of(tmp_path, {"image": "a.png", "objects": told}))
    assert "a box is [0, 0, 1, 1] in 80 x 60 pixels, one pixel in the corner or shares" in message
    assert "thinner" not in message
    answer = "<|det|>[[0, 0, 1, 1]]<|/det|>"
    row = {"image": "a.png", "messages": said("Where?", answer)}
    assert "but [0, 0, 1, 1], which are shares (0..1) or" in refused(source_of(tmp_path, row))
    row["messages"] = said("Where?", "<bbox>")
    row["objects"] = {"ref": [], "bbox": [[0, 0, 2, 1]]}
    assert source_of(tmp_path, row)[0].turns


@pytest.mark.parametrize(
    "box",
    [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0], [5, 5, 5.5, 40], [5, 5, 40, 5.99]],
)
def test_boxes_thinner_than_a_pixel_are_refused(tmp_path: Path, box: list[float]):
    row = {"image": "a.png", "objects": [{"label": "dog", "box": box}]}
    message = refused(source_of(tmp_path, row))
    assert "shares (0..1) must be multiplied by width and height" in message
