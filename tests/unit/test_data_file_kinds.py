"""Files of another kind than their source says."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.source_rows import picture, talk, tar

from vl2.data.config import SourceConfig
from vl2.data.sources import open_source


def files_of_all_kinds(folder: Path) -> dict[str, Path]:
    """One file of each kind, under a name that says nothing."""
    row = {"conversations": talk("What?")}
    pq.write_table(pa.Table.from_pylist([row]), folder / "parquet.data")
    tar(folder / "tar.data", [("a.jpg", picture()), ("a.txt", b"A dog.")])
    (folder / "lines.data").write_text(json.dumps(row))
    (folder / "list.jsonl").write_text(json.dumps([row, row], indent=1))
    (folder / "gzip.data").write_bytes(gzip.compress(json.dumps(row).encode()))
    (folder / "wide.data").write_bytes(json.dumps(row).encode("utf-16"))
    with zipfile.ZipFile(folder / "zip.data", "w") as file:
        file.writestr("a.jsonl", json.dumps(row))
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("format", ["llava", "text", "interleaved", "parquet", "webdataset"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, format: str):
    json_formats = "format=llava or text or interleaved"
    expected = {
        "parquet": ("is a Parquet file: give the source format=parquet", "parquet"),
        "tar": ("is a tar: give the source format=webdataset", "webdataset"),
        "lines": (f"is JSON: give the source {json_formats}", "llava text interleaved"),
        "list": (f"is JSON: give the source {json_formats}", "llava text interleaved"),
        "gzip": ("is compressed: unpack it with gunzip", ""),
        "zip": ("is a zip: unpack it", ""),
        "wide": ("is UTF-16: save it as UTF-8", ""),
    }
    for kind, path in files_of_all_kinds(tmp_path).items():
        told, readers = expected[kind]
        config = SourceConfig(path=str(path), format=format)
        if format in readers:
            assert len(open_source(config)) == (2 if kind == "list" else 1)
            continue
        with pytest.raises(ValueError, match=r"has the format '\w+' but is ") as caught:
            open_source(config)
        assert str(caught.value) == f"{path} has the format {format!r} but {told}"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"id,question,answer\n1,hi,yo\n", "no JSON, it begins with 'id,question,answer': write"),
        (b"\n\n- a: 1\n- b: 2\n", "no JSON, it begins with"),
        (b"<html>404</html>", "no JSON, it begins with '<html>404</html>'"),
        (b"\x80\x04\x95pickle", "no JSON, it begins with"),
        (b"null", "no JSON, it begins with 'null'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n",
            "fetch the file with git lfs",
        ),
        (b"SQLite format 3\0" + b"\0" * 90, "a database of SQLite"),
        (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream: write it as Parquet"),
    ],
)
def test_what_is_no_json_is_told_at_once(tmp_path: Path, content: bytes, told: str):
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"has the format 'llava' but is ") as caught:
        open_source(SourceConfig(path=str(tmp_path / "rows.json")))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_that_a_file_was_cut_in_costs_this_row_alone(tmp_path: Path):
    row = json.dumps({"conversations": talk("What?")})
    for cut in (b'of a row"}]}', b"x" * 5000):
        (tmp_path / "rows.jsonl").write_bytes(cut + b"\n" + row.encode())
        assert len(open_source(SourceConfig(path=str(tmp_path / "rows.jsonl")))) == 2


@pytest.mark.parametrize("content", [{"conversations": talk("What?")}, {"data": [{"id": 1}]}])
def test_one_object_over_several_lines_is_told(tmp_path: Path, content: dict[str, Any]):
    (tmp_path / "rows.json").write_text(json.dumps(content, indent=2))
    with pytest.raises(ValueError, match="is one JSON object over several lines: give a list"):
        open_source(SourceConfig(path=str(tmp_path / "rows.json")))
