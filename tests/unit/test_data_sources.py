"""Sources: every format from real small files, and every fault as the error it is said to be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.source_rows import picture, refused, talk, texts

from vl2.data.config import SourceConfig
from vl2.data.source_record import MAX_TEXT_BYTES
from vl2.data.sources import Source, open_source


def jsonl(path: Path, rows: Sequence[Any], **config: Any) -> Source:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return open_source(SourceConfig(path=str(path), **config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture())
    return tmp_path


def test_a_source_imports_its_own_format_only(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    script = f"""
import sys
import vl2.cli.train, vl2.train.setup
from vl2.data.config import SourceConfig
from vl2.data.sources import open_source
opened = [SourceConfig(path={str(tmp_path / "rows.jsonl")!r}, format="text")]
opened += [SourceConfig(path="easy", format="synthetic")]
kinds = ("vl2.data.", "pyarrow", "grain")
found = lambda: {{name for name in sys.modules if name.startswith(kinds)}}
before = found()
for config in opened:
    open_source(config)
    print(*sorted(found() - before))
    before = found()
print(*sorted(before))
"""
    run = [sys.executable, "-c", script]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    text, drawn, loaded = (set(line.split()) for line in out.splitlines())
    assert "vl2.data.source_text" in text
    assert "vl2.data.source_synthetic" in drawn
    assert "vl2.data.source_json" not in drawn
    containers = {"vl2.data.source_webdataset", "vl2.data.source_parquet", "pyarrow", "grain"}
    assert not containers & loaded
    assert not any(name.startswith(("vl2.data.synthetic", "vl2.data.make")) for name in text)


# LLaVA


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_llava_list_and_lines_give_the_same_records(folder: Path, name: str):
    rows = [
        {"id": 7, "image": "a.jpg", "conversations": talk("<image>\nWhich colour?")},
        {"id": "x", "images": ["a.jpg", "b.jpg"], "conversations": talk("<image> é <image>?")},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    if name.endswith("jsonl"):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / name).write_text("\ufeff" + text, encoding="utf-8")
    source = open_source(SourceConfig(path=str(folder / name)))
    assert (source.name, len(source)) == ("train", 3)
    assert [source[n].id for n in range(3)] == ["7#0", "x#1", "#2"]
    assert source[0].images == (folder / "a.jpg",)
    assert texts(source[1]) == [("user", "<image> é <image>?"), ("assistant", "Red.")]
    assert source[1].images == (folder / "a.jpg", folder / "b.jpg")
    assert (source[2].images, source[2].source) == ((), "train")
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(IndexError):
        source[-1]


def test_llava_system_and_several_turns_and_roles(folder: Path):
    said = [{"from": "system", "value": "Be short."}, *talk("Look: <image>"), *talk("More?")]
    said[3]["from"], said[4]["from"] = "user", "assistant"
    source = jsonl(folder / "t.jsonl", [{"image": ["a.jpg"], "conversations": said}])
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [role for role, _ in texts(source[0])] == roles


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("What?", ["a.jpg"], "<image>\nWhat?"),
        ("What?", ["a.jpg", "b.jpg"], "<image>\n<image>\nWhat?"),
        ("What is in\n<image>", ["a.jpg"], "What is in\n<image>"),
        ("From <image> to <image>?", ["a.jpg", "b.jpg"], "From <image> to <image>?"),
        ("What?", None, "What?"),
        ("What?", [], "What?"),
    ],
)
def test_placeholders_stand_where_they_are_or_in_front(
    folder: Path, question: str, images: list[str] | None, expected: str
):
    row = {"image": images, "conversations": talk(question)}
    assert texts(jsonl(folder / "t.jsonl", [row])[0])[0] == ("user", expected)


def test_absent_placeholders_go_to_the_first_user_text(folder: Path):
    said = [{"from": "system", "value": "S"}, *talk("One?"), *talk("Two?")]
    record = jsonl(folder / "t.jsonl", [{"image": "a.jpg", "conversations": said}])[0]
    assert [text for _, text in texts(record)] == ["S", "<image>\nOne?", "Red.", "Two?", "Red."]


def test_pictures_start_at_image_root_and_names_are_given(folder: Path):
    (folder / "deep").mkdir()
    rows = [{"image": "a.jpg", "conversations": talk()}]
    root = str(folder / "elsewhere")
    source = jsonl(folder / "deep" / "t.jsonl", rows, image_root=root, name="mine")
    assert source[0].images == (folder / "elsewhere" / "a.jpg",)
    assert source[0].source == source.name == "mine"


def test_ids_are_unique_whatever_the_file_says(folder: Path):
    given = ["a", "a", None, 3, 3, True, ["x"], "a#0", "two\nlines", "\ud800", "y" * 500]
    source = jsonl(folder / "t.jsonl", [{"id": i, "conversations": talk("Q")} for i in given])
    ids = [source[n].id for n in range(len(given))]
    assert ids[:9] == ["a#0", "a#1", "#2", "3#3", "3#4", "#5", "#6", "a#0#7", "two lines#8"]
    assert len(set(ids)) == len(ids)
    assert all(len(i) < 100 and i.isprintable() and i.encode() for i in ids)


def test_grounded_text_within_the_grid_is_taken(folder: Path):
    answer = "<|ref|>cat<|/ref|><|det|>[[0, 1, 999, 999], [5,5,5,5]]<|/det|>."
    source = jsonl(folder / "t.jsonl", [{"image": "a.jpg", "conversations": talk(answer=answer)}])
    assert texts(source[0])[1][1] == answer


@pytest.mark.parametrize(
    "boxes",
    ["[[0, 0, 1000, 9]]", "[[9, 0, 3, 9]]", "[[0, 9, 9, 3]]", "[[1, 2, 3]]", "[[-1, 0, 3, 4]]",
     "[]", "[[0.5, 0.5, 1, 1]]", "[[0, 0, 0, 1]]", "[[0, 0, 1, 1]]", "[[1, 1, 1, 1]]"],
)  # fmt: skip
def test_boxes_in_text_that_are_none_are_refused(folder: Path, boxes: str):
    answer = f"<|ref|>cat<|/ref|><|det|>{boxes}<|/det|>"
    source = jsonl(folder / "t.jsonl", [{"image": "a.jpg", "conversations": talk(answer=answer)}])
    assert "a box in the text is not [[x1, y1, x2, y2]]" in refused(source)
    caption = jsonl(folder / "c.jsonl", [{"image": "a.jpg", "caption": answer}])
    assert "a box in the text is not [[x1, y1, x2, y2]]" in refused(caption)


@pytest.mark.parametrize(
    "answer",
    ["<|ref|>cat<|det|>[[1, 2, 3, 4]]<|/det|>", "<|ref|><|ref|>cat<|/ref|><|/ref|>", "cat<|/ref|>",
     "<|det|>[[1, 2, 3, 4]]", "<|det|>[[1, 2, 3, 4]]<|det|><|/det|>", "<|ref|>cat<|/det|>"],
)  # fmt: skip
def test_labels_and_boxes_that_are_not_closed_are_refused(folder: Path, answer: str):
    source = jsonl(folder / "t.jsonl", [{"image": "a.jpg", "conversations": talk(answer=answer)}])
    assert "opens or closes a label or a box twice" in refused(source)
    documents = jsonl(folder / "d.jsonl", [{"text": answer}], format="text")
    assert "opens or closes a label or a box twice" in refused(documents)


# labelled pictures


def test_objects_become_one_question_for_each_label(folder: Path):
    objects = [
        {"label": "red  cup", "box": [0, 0, 20, 15]},
        {"label": "dog", "box": [4.5, 3, 40, 30]},
        {"label": "red cup", "box": [10, 6, 30, 12]},
    ]
    record = jsonl(folder / "t.jsonl", [{"image": "a.jpg", "objects": objects}])[0]
    asked = "Locate <|ref|>{}<|/ref|> in the given image."
    boxes = "[[0, 0, 500, 500], [250, 200, 750, 400]]"
    assert texts(record) == [
        ("user", "<image>\n" + asked.format("red cup")),
        ("assistant", f"<|ref|>red cup<|/ref|><|det|>{boxes}<|/det|>"),
        ("user", asked.format("dog")),
        ("assistant", "<|ref|>dog<|/ref|><|det|>[[112, 100, 999, 999]]<|/det|>"),
    ]


def test_objects_are_measured_on_the_upright_picture(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "turned.jpg", exif=exif)
    objects = [{"label": "dog", "box": [0, 0, 30, 40]}]
    record = jsonl(folder / "t.jsonl", [{"image": "turned.jpg", "objects": objects}])[0]
    assert "[[0, 0, 999, 999]]" in record.turns[1].text


@pytest.mark.parametrize(
    ("objects", "image", "reason"),
    [
        ([{"label": "d", "box": [0, 0, 41, 10]}], "a.jpg", "does not lie inside its picture"),
        ([{"label": "d", "box": [-1, 0, 9, 10]}], "a.jpg", "does not lie inside its picture"),
        ([{"label": "d", "box": [9, 0, 3, 10]}], "a.jpg", "x1 < x2"),
        ([{"label": "d", "box": [3, 0, 3, 10]}], "a.jpg", "x1 < x2"),
        ([{"label": "d", "box": [0, 9, 3, 9]}], "a.jpg", "y1 < y2"),
        ([{"label": "d", "box": [float("nan"), 0, 3, 9]}], "a.jpg", "x1 < x2"),
        ([{"label": "d", "box": [0, 0, 3]}], "a.jpg", "not a list of four numbers"),
        ([{"label": "d", "box": [0, 0, "3", 9]}], "a.jpg", "not a list of four numbers"),
        ([{"label": "d", "box": [0, 0, True, 9]}], "a.jpg", "not a list of four numbers"),
        ([{"label": " ", "box": [0, 0, 3, 9]}], "a.jpg", "no label"),
        (["dog"], "a.jpg", "no label"),
        ([{"label": "<|det|>", "box": [0, 0, 3, 9]}], "a.jpg", "holds <|det|>"),
        ([{"label": "<image>", "box": [0, 0, 3, 9]}], "a.jpg", "<image> in assistant text"),
        ([], "a.jpg", "nothing to learn"),
        ([{"label": "d", "box": [0, 0, 3, 9]}], None, "expected exactly one"),
        ([{"label": "d", "box": [0, 0, 3, 9]}], ["a.jpg", "b.jpg"], "expected exactly one"),
        ([{"label": "d", "box": [0, 0, 3, 9]}], "gone.jpg", "does not exist"),
    ],
)
def test_objects_that_are_wrong_are_refused(folder: Path, objects: Any, image: Any, reason: str):
    source = jsonl(folder / "t.jsonl", [{"image": image, "objects": objects}])
    assert reason in refused(source)


# what is refused


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg", "conversations": talk("<image> and <image>")}, "2 <image> in the text"),
        ({"conversations": talk("<image>")}, "1 <image> in the text for 0 pictures"),
        ({"images": ["a.jpg", "b.jpg"], "conversations": talk("<image>")}, "for 2 pictures"),
        ({"image": "a.jpg", "conversations": talk("Q", "<image>")}, "only users send pictures"),
        ({"conversations": talk("Q", "")}, "an answer is empty"),
        ({"conversations": talk("Q", " \n")}, "an answer is empty"),
        ({"conversations": talk("Q", None)}, "of type NoneType"),
        ({"conversations": talk("Q", 5)}, "of type int"),
        ({"conversations": talk("Q")[:1]}, "has no answers"),
        ({"conversations": talk("Q")[1:]}, "begins with an answer"),
        ({"conversations": [{"from": "tool", "value": "Q"}]}, "unknown role 'tool'"),
        ({"conversations": [{"from": ["x"], "value": "Q"}]}, "unknown role"),
        ({"conversations": []}, "empty or not a list"),
        ({"conversations": "Q"}, "empty or not a list"),
        ({"conversations": ["Q"]}, "not an object with a role"),
        ({"image": "a.jpg"}, "the row has no answers"),
        ({"image": 5, "conversations": talk()}, "a picture is of type int"),
        ({"image": ["a.jpg", None], "conversations": talk()}, "a picture is of type NoneType"),
        ({"conversations": talk("Q" * 2**20)}, f"longer than {MAX_TEXT_BYTES} bytes"),
        ({"conversations": talk("é" * (MAX_TEXT_BYTES // 2))}, "longer than"),
        ({"conversations": talk("half \ud83d")}, "a lone surrogate"),
        ([1, 2], "not a JSON object"),
        (b'{"conversations": [', "not JSON"),
        (b"{", "not JSON"),
        (b"\0\0\0\0", "not JSON"),
        (b'{"id": "\0"}', "not JSON"),
        (b'{"id": "\xff\xfe"}', "not UTF-8"),
        ("{'id': 1}".encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (16 * 2**20 + 1), "the row is longer"),
    ],
)
def test_a_bad_row_fails_alone(folder: Path, row: Any, reason: str):
    good = {"image": "a.jpg", "conversations": talk()}
    source = jsonl(folder / "t.jsonl", [good, row, good])
    assert len(source) == 3
    assert reason in refused(source, 1)
    assert source[0].images == source[2].images == (folder / "a.jpg",)


def test_text_of_the_greatest_length_is_taken(folder: Path):
    source = jsonl(folder / "t.jsonl", [{"conversations": talk("Q" * (MAX_TEXT_BYTES - 4))}])
    assert len(source[0].turns) == 2


def test_the_shape_of_lines_does_not_matter(folder: Path):
    row = json.dumps({"conversations": talk("Q")}).encode()
    path = folder / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n\n" + row + b"\n\xef\xbb\xbf" + row)
    source = open_source(SourceConfig(path=str(path)))
    assert [source[n].id for n in range(len(source))] == ["#0", "#1", "#2"]


def test_half_a_last_line_is_one_bad_row(folder: Path):
    row = json.dumps({"conversations": talk("Q")}).encode()
    path = folder / "t.jsonl"
    path.write_bytes(row + b"\n" + row[: len(row) // 2])
    source = open_source(SourceConfig(path=str(path)))
    assert len(source) == 2
    assert "not JSON" in refused(source, 1)


@pytest.mark.parametrize(
    "text", ["[", '[{"a": 1}', '[{"a": 1} {"b": 2}]', "[1, ]", "[1]\n[2]", "[" * 100_000, '["x']
)
def test_a_broken_list_is_refused_as_a_whole(folder: Path, text: str):
    (folder / "t.json").write_text(text)
    with pytest.raises(ValueError, match="is a broken JSON list at byte"):
        open_source(SourceConfig(path=str(folder / "t.json")))


def test_a_list_with_bytes_that_are_not_utf8_loses_one_row(folder: Path):
    row = json.dumps({"conversations": talk("Q")}).encode()
    (folder / "t.json").write_bytes(b"[" + row + b', {"id": "\xff"}, ' + row + b"]\n")
    source = open_source(SourceConfig(path=str(folder / "t.json")))
    assert "not UTF-8" in refused(source, 1)
    assert source[2].turns


@pytest.mark.parametrize("form", ["llava", "text", "interleaved", "webdataset", "parquet"])
def test_a_missing_file_is_named(tmp_path: Path, form: str):
    with pytest.raises(ValueError, match="gone"):
        open_source(SourceConfig(path=str(tmp_path / "gone"), format=form))


def test_an_empty_file_has_no_rows(tmp_path: Path):
    for name, content in (("a.jsonl", ""), ("b.json", " [ ] ")):
        (tmp_path / name).write_text(content)
        assert len(open_source(SourceConfig(path=str(tmp_path / name)))) == 0


# text and interleaved documents


def test_text_rows(folder: Path):
    rows = [
        {"text": "All of it."},
        {"conversations": talk("Q")},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"text": " "},
        {"text": 5},
        {"text": "<image>"},
        {"text": "with <image>"},
        {"text": "x", "images": ["a.jpg"]},
        {"text": "x" * 2**20},
        {},
    ]
    source = jsonl(folder / "t.jsonl", rows, format="text")
    assert source[0].document == "All of it."
    assert texts(source[1])[1] == ("assistant", "Red.")
    assert texts(source[2]) == [("user", "Q"), ("assistant", "A")]
    reasons = ("has no text", "of type int", "has no text", "1 <image> in the text",
               "format 'llava'", "longer than", "has no answers")  # fmt: skip
    for row, reason in enumerate(reasons, start=3):
        assert reason in refused(source, row)


def test_interleaved_documents(folder: Path):
    obelics = {"images": [None, "a.jpg", None, "b.jpg"], "texts": ["One.", None, "Two.", None]}
    mmc4 = {
        "text_list": ["S0.", "S1.", "S2.", "S3."],
        "image_info": [
            {"image_name": "b.jpg", "matched_text_index": 2},
            {"image_name": "a.jpg", "matched_text_index": 0},
        ],
    }
    source = jsonl(folder / "t.jsonl", [obelics, mmc4], format="interleaved")
    assert source[0].document == "One.\n<image>\nTwo.\n<image>"
    assert source[0].images == (folder / "a.jpg", folder / "b.jpg")
    assert source[1].document == "<image>\nS0. S1.\n<image>\nS2. S3."
    assert source[1].images == (folder / "a.jpg", folder / "b.jpg")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": ["a.jpg"], "texts": []}, "not two lists of one length"),
        ({"texts": ["x"]}, "not two lists of one length"),
        ({"images": ["a.jpg"], "texts": ["x"]}, "not exactly one"),
        ({"images": [None], "texts": [None]}, "not exactly one"),
        ({"images": ["a.jpg"], "texts": [None]}, "has no text"),
        ({"images": [5, None], "texts": [None, "x"]}, "of type int"),
        ({"images": [None], "texts": ["my <image>"]}, "1 <image> in the text for 0"),
        ({"text_list": ["x"]}, "are not two lists"),
        ({"text_list": ["x"], "image_info": ["a.jpg"]}, "names no sentence"),
        ({"text_list": ["x"], "image_info": [{"matched_text_index": 1}]}, "names no sentence"),
        ({"text_list": ["x"], "image_info": [{"matched_text_index": 0}]}, "of type NoneType"),
    ],
)
def test_broken_documents_are_refused(folder: Path, row: Any, reason: str):
    assert reason in refused(jsonl(folder / "t.jsonl", [row], format="interleaved"))
