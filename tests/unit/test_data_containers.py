"""Sources of many samples a file: tars and Parquet, whole and damaged; fingerprints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.source_rows import picture, refused, talk, tar, texts

from vl2.data.config import SourceConfig
from vl2.data.records import RecordError
from vl2.data.sources import Source, open_source


def lines(path: Path, rows: Sequence[Any]) -> Source:
    path.write_text("\n".join(map(json.dumps, rows)))
    return open_source(SourceConfig(path=str(path)))


# WebDataset


def test_tar_samples(tmp_path: Path):
    a, b = picture("red"), picture("blue", kind="PNG")
    said = json.dumps({"image": "not this one", "conversations": talk("<image> <image>")}).encode()
    tar(tmp_path / "s-001.tar", [("d/c.txt", b"A dog.\n"), ("d/c.JPG", a)])
    tar(
        tmp_path / "s-000.tar",
        [
            ("a.json", said), ("a.10.jpg", b), ("a.2.jpg", a), ("a.cls", b"3"),
            ("b.jpg", a), ("b.json", b'{"caption": "A cat."}'),
            ("c.jpg", a), ("c.json", b'{"url": "x"}'), ("c.txt", b"A bird."),
            ("._d.jpg", b"junk"), ("README", b"text"),
        ],
    )  # fmt: skip
    source = open_source(SourceConfig(path=str(tmp_path / "s-*.tar"), format="webdataset"))
    records = [source[n] for n in range(len(source))]
    assert [r.id for r in records] == ["a#0", "b#1", "c#2", "d/c#3"]
    assert records[0].images == (a, b)
    assert texts(records[0])[0][1] == "<image> <image>"
    captions = ["<image>\nA cat.", "<image>\nA bird.", "<image>\nA dog."]
    assert [r.document for r in records[1:]] == captions
    assert source.name == "s-*"


def test_tar_samples_that_are_wrong(tmp_path: Path):
    a = picture()
    members = [
        ("a.jpg", a),
        ("b.txt", b"alone"),
        ("c.jpg", a), ("c.txt", b" "),
        ("d.jpg", a), ("d.txt", b"\xff"),
        ("e.jpg", a), ("e.json", b"{"),
        ("f.jpg", a), ("f.json", json.dumps({"conversations": talk("<image><image>")}).encode()),
        ("g.jpg", a), ("g.json", b"{}"),
        ("h.jpg", bytes(20 * 2**20 + 1)), ("h.txt", b"large"),
    ]  # fmt: skip
    path = tar(tmp_path / "s.tar", members)
    source = open_source(SourceConfig(path=str(path), format="webdataset"))
    reasons = ("no text", "without a picture", "caption is empty", "not UTF-8", "not JSON",
               "2 <image> in the text for 1", "has no answers", "too large")  # fmt: skip
    assert len(source) == len(reasons)
    for row, reason in enumerate(reasons):
        assert reason in refused(source, row)


def test_a_repeated_member_begins_a_sample(tmp_path: Path):
    members = [("a.txt", b"One."), ("a.jpg", picture())] * 2
    source = open_source(
        SourceConfig(path=str(tar(tmp_path / "s.tar", members)), format="webdataset")
    )
    assert [source[n].id for n in range(len(source))] == ["a#0", "a#1"]


@pytest.mark.parametrize(
    ("cut", "whole"),
    [(6 * 1024 + 200, 3), (7 * 1024 + 200, 3), (7 * 1024 + 514, 3), (7 * 1024 + 600, 4), (0, 0)],
)
def test_a_cut_tar_keeps_the_samples_before(
    tmp_path: Path, cut: int, whole: int, caplog: pytest.LogCaptureFixture
):
    a = picture(size=(8, 8), kind="PNG")
    assert len(a) < 512  # each member takes 1024 bytes: a header and a block
    members = [m for n in range(5) for m in ((f"{n}.jpg", a), (f"{n}.txt", f"N{n}.".encode()))]
    path = tar(tmp_path / "s.tar", members)
    whole_size = open_source(SourceConfig(path=str(path), format="webdataset"))
    assert len(whole_size) == 5
    assert not caplog.records
    os.truncate(path, cut)
    source = open_source(SourceConfig(path=str(path), format="webdataset"))
    usable = []
    for row in range(len(source)):
        try:
            usable.append(source[row].document)
        except RecordError:
            assert row == whole
    assert usable == [f"<image>\nN{n}." for n in range(whole)]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "s.tar is damaged" in caplog.text


def test_a_tar_without_its_closing_blocks_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tar(tmp_path / "s.tar", [("a.txt", b"One."), ("a.jpg", picture(size=(8, 8)))])
    os.truncate(path, 2048 + (len(picture(size=(8, 8))) // 512) * 512)
    source = open_source(SourceConfig(path=str(path), format="webdataset"))
    assert source[0].document == "<image>\nOne."
    assert not caplog.records


def test_a_damaged_header_ends_a_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = [m for n in range(3) for m in ((f"{n}.txt", b"N."), (f"{n}.jpg", b"x"))]
    path = tar(tmp_path / "s.tar", members)
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 5] ^= 1
    path.write_bytes(data)
    source = open_source(SourceConfig(path=str(path), format="webdataset"))
    assert len(source) == 1
    assert "a header is damaged" in caplog.text


def test_compressed_tars_are_refused(tmp_path: Path):
    (tmp_path / "s.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ValueError, match="is compressed"):
        open_source(SourceConfig(path=str(tmp_path / "s.tar.gz"), format="webdataset"))


# Parquet


def test_parquet_of_llava_one_vision(tmp_path: Path):
    a, b = picture("red"), picture("blue")
    rows = [
        {"id": "p", "image": {"bytes": a, "path": "p.jpg"}, "conversations": talk()},
        {"id": "p", "image": {"bytes": None, "path": "q.jpg"}, "conversations": talk("Q")},
        {"id": "r", "image": None, "conversations": talk("Q")},
        {"id": "s", "image": {"bytes": b, "path": None}, "conversations": talk("<image><image>")},
        {"id": "t", "image": None, "conversations": None},
    ]
    path = tmp_path / "train-0.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    config = SourceConfig(path=str(path), format="parquet", image_root=str(tmp_path / "root"))
    source = open_source(config)
    assert len(source) == 5
    assert [source[n].id for n in (2, 0, 1)] == ["r#2", "p#0", "p#1"]
    assert source[0].images == (a,)
    assert source[1].images == (tmp_path / "root" / "q.jpg",)
    assert texts(source[1])[0] == ("user", "<image>\nQ")
    assert source[2].images == ()
    assert "2 <image> in the text for 1" in refused(source, 3)
    assert "has no answers" in refused(source, 4)


def test_parquet_of_the_cauldron_in_several_files(tmp_path: Path):
    a, b = picture("red"), picture("blue")
    pairs = [{"user": "Q?", "assistant": "A.", "source": "x"}, {"user": "R?", "assistant": "B."}]
    for number in range(2):
        row = {"images": [{"bytes": a, "path": None}, {"bytes": b, "path": None}], "texts": pairs}
        table = pa.Table.from_pylist([row, {"images": [], "texts": []}])
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    source = open_source(SourceConfig(path=str(tmp_path / "*.parquet"), format="parquet"))
    assert len(source) == 4
    assert source[2].images == (a, b)
    said = [("user", "<image>\n<image>\nQ?"), ("assistant", "A."), ("user", "R?")]
    assert texts(source[2])[:3] == said
    assert "empty or not a list" in refused(source, 3)


def test_columns_and_members_of_other_kinds_of_training_are_read_to_be_refused(tmp_path: Path):
    fields = {"label": False, "rejected_response": "A cat.", "video_url": "a.mp4"}
    said = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes"}]}
    for name, value in fields.items():
        pq.write_table(pa.Table.from_pylist([{name: value, **said}]), tmp_path / "a.parquet")
        message = refused(
            open_source(SourceConfig(path=str(tmp_path / "a.parquet"), format="parquet"))
        )
        assert f"the row has '{name}'" in message
        row = json.dumps({name: value}).encode()
        tar(tmp_path / "a.tar", [("a.jpg", picture()), ("a.json", row), ("a.txt", b"A dog.")])
        message = refused(
            open_source(SourceConfig(path=str(tmp_path / "a.tar"), format="webdataset"))
        )
        assert f"the row has '{name}'" in message


def test_parquet_reads_what_json_reads_beside_the_answers(tmp_path: Path):
    path = tmp_path / "t.parquet"
    boxes = {"ref": ["cup"], "bbox": [[0.1, 0.2, 0.5, 0.6]]}
    rows = [
        {"system": "Be short.", "bbox_type": None, "objects": None},
        {"system": None, "bbox_type": "norm1", "objects": boxes},
    ]
    pq.write_table(
        pa.Table.from_pylist([{**row, "conversations": talk("Q")} for row in rows]), path
    )
    source = open_source(SourceConfig(path=str(path), format="parquet"))
    assert texts(source[0])[0] == ("system", "Be short.")
    assert "bbox_type beside it" in refused(source, 1)


def test_parquet_holds_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "t.parquet"
    rows = [{"conversations": talk(str(n)), "noise": "x"} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    source = open_source(SourceConfig(path=str(path), format="parquet"))
    read: list[tuple[int, list[str]]] = []
    real = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, i: int, columns: list[str], **more: Any) -> pa.Table:
        read.append((i, columns))
        return real(self, i, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert [source[n].turns[0].text for n in (0, 1, 2, 8, 7, 0)] == ["0", "1", "2", "8", "7", "0"]
    assert read == [(0, ["conversations"]), (2, ["conversations"]), (0, ["conversations"])]


def test_parquet_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        open_source(SourceConfig(path=str(path), format="parquet"))
    pq.write_table(pa.table({"question": ["x"]}), path)
    with pytest.raises(ValueError, match="has the columns question: expected one of"):
        open_source(SourceConfig(path=str(path), format="parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'pip install "vl2\[train\]"'):
        open_source(SourceConfig(path=str(path), format="parquet"))


def test_a_damaged_row_group_fails_alone(tmp_path: Path):
    path = tmp_path / "t.parquet"
    rows = [{"conversations": talk(str(n) * 200)} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1, compression="zstd")
    offset = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 60] = b"\xff" * 60
    path.write_bytes(data)
    source = open_source(SourceConfig(path=str(path), format="parquet"))
    assert source[0].turns
    assert "the row group is damaged" in refused(source, 1)


# all of them


def test_fingerprints_follow_the_content_and_not_the_place(tmp_path: Path):
    rows = [{"conversations": talk("Q")}]
    prints = [lines(tmp_path / "a.jsonl", rows).fingerprint()]
    os.utime(tmp_path / "a.jsonl", (1, 1))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    prints.append(open_source(SourceConfig(path=str(tmp_path / "b.jsonl"))).fingerprint())
    assert prints[0] == prints[1]
    prints.append(lines(tmp_path / "a.jsonl", [{"conversations": talk("R")}]).fingerprint())
    text = SourceConfig(path=str(tmp_path / "b.jsonl"), format="text")
    prints.append(open_source(text).fingerprint())
    for number, question in enumerate("QR"):
        path = tar(tmp_path / f"{number}.tar", [(f"{number}.txt", b"x"), (f"{number}.jpg", b"x")])
        prints.append(open_source(SourceConfig(path=str(path), format="webdataset")).fingerprint())
        table = pa.Table.from_pylist([{"conversations": talk(question)}])
        pq.write_table(table, tmp_path / "t.parquet")
        config = SourceConfig(path=str(tmp_path / "t.parquet"), format="parquet")
        prints.append(open_source(config).fingerprint())
    assert len(set(prints[1:])) == len(prints) - 1
    assert all(len(each) == 64 for each in prints)


def test_sources_hold_no_pictures(tmp_path: Path):
    """Opening and reading a tar of eight megabytes leaves far less than that in memory."""
    noise = os.urandom(2**20)
    members = [m for n in range(8) for m in ((f"{n}.txt", b"x"), (f"{n}.jpg", noise))]
    path = tar(tmp_path / "s.tar", members)
    source = open_source(SourceConfig(path=str(path), format="webdataset"))
    assert source[7].images == (noise,)
    held = json.dumps([vars(source)], default=str)
    assert len(held) < 10_000


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_only_the_first_rows(tmp_path: Path, rows: int):
    talks = [{"conversations": talk(str(n))} for n in range(3)]
    lines(tmp_path / "t.jsonl", talks)
    (tmp_path / "t.json").write_text(json.dumps(talks))
    members = [(f"{n}.json", json.dumps(talks[n]).encode()) for n in range(3)]
    tar(tmp_path / "t.tar", members)
    pq.write_table(pa.Table.from_pylist(talks), tmp_path / "t.parquet", row_group_size=2)
    forms = {"t.jsonl": "llava", "t.json": "llava", "t.tar": "webdataset", "t.parquet": "parquet"}
    for name, form in forms.items():
        source = open_source(SourceConfig(path=str(tmp_path / name), format=form, rows=rows))
        asked = [source[n].turns[0].text for n in range(len(source))]
        assert asked == ["0", "1", "2"][:rows]
        with pytest.raises(IndexError):
            source[len(source)]


def test_the_place_of_a_row(tmp_path: Path):
    rows = [{"caption": str(n)} for n in range(5)]
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=2)
        tar(tmp_path / f"{name}.tar", [(f"{n}.txt", b"x") for n in range(5)])
    source = open_source(SourceConfig(path=str(tmp_path / "*.parquet"), format="parquet"))
    assert source.place(3) == f"{tmp_path}/a.parquet row 4"
    assert source.place(8) == f"{tmp_path}/b.parquet row 4"
    source = open_source(SourceConfig(path=str(tmp_path / "*.tar"), format="webdataset"))
    assert source.place(8) == f"{tmp_path}/b.tar sample 3"
    assert open_source(SourceConfig(path="easy", format="synthetic")).place(0) == "easy row 1"
