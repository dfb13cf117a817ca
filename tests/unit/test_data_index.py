"""The row index: counts, cache, fingerprint, and sources that teach nothing."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vl2
from vl2.data import counting, index
from vl2.data.config import DataConfig, SourceConfig
from vl2.data.encode import encode_record
from vl2.data.index import RowIndex
from vl2.data.sources import open_source
from vl2.data.substitute import DataError, bad_allowed


@pytest.fixture(scope="module")
def processor() -> vl2.Processor:
    return vl2.Processor.from_pretrained("nano").with_settings(max_tiled_images=2)


def talk(question: str = "Q?", answer: str = "A.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path: Path, rows: Sequence[Any]) -> SourceConfig:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return SourceConfig(path=str(path))


def build(
    configs: Sequence[SourceConfig],
    processor: vl2.Processor,
    cache: Path | None = None,
    *,
    processes: int = 1,
    **data: Any,
) -> RowIndex:
    config = DataConfig(sources=tuple(configs), **{"max_bad_rate": 1.0, **data})
    sources = [open_source(each) for each in configs]
    return RowIndex.build(config, sources, processor, cache, processes=processes)


@pytest.fixture
def config(tmp_path: Path) -> SourceConfig:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg")
    rows = [
        {"image": "a.jpg", "conversations": talk("What?", "A long answer.")},
        {"image": "gone.jpg", "conversations": talk()},
        {"conversations": talk()},
        "{",
        {"conversations": talk("Q", "")},
        {"conversations": talk("Q", "")},
    ]
    return write(tmp_path / "t.jsonl", rows)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the records that were counted."""
    seen: list[str] = []
    real = counting.record_size

    def spy(record, *args, **more):
        seen.append(record.id)
        return real(record, *args, **more)

    monkeypatch.setattr(counting, "record_size", spy)
    return seen


def test_counts_are_those_of_the_encoded_rows(
    config: SourceConfig, processor: vl2.Processor, caplog: pytest.LogCaptureFixture
):
    rows = build([config], processor)
    source = open_source(config)
    lengths = [len(encode_record(source[n], processor).input_ids) for n in (0, 2)]
    counts = rows.counts(0)
    assert counts.dtype == np.int32
    assert counts.tolist() == [lengths[0], -1, lengths[1], -1, -1, -1]
    assert "t: 4 of 6 rows cannot be used: 2 x an answer is empty; 1 x" in caplog.text
    tiles = rows.tiles(0)
    assert tiles.dtype == np.int32
    pictures = encode_record(source[0], processor).images
    assert tiles.tolist() == [len(pictures), -1, 0, -1, -1, -1]
    assert len(pictures) > 1
    for each in (counts, tiles):
        with pytest.raises(ValueError, match="read-only"):
            each[0] = 1


def test_tiles_are_those_of_every_picture_s_views(tmp_path: Path, processor: vl2.Processor):
    sizes = [(90, 60), (500, 100), (100, 500), (700, 700), (112, 112)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    shown = [["0.png"], ["1.png"], ["2.png"], ["3.png", "1.png"], [f"{n}.png" for n in range(5)]]
    rows = [{"images": images, "conversations": talk()} for images in shown]
    config = write(tmp_path / "t.jsonl", rows)
    source = open_source(config)
    wanted = [len(encode_record(source[n], processor).images) for n in range(len(rows))]
    assert build([config], processor).tiles(0).tolist() == wanted
    assert len(set(wanted)) > 3


def test_progress_is_logged(
    config: SourceConfig,
    processor: vl2.Processor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(counting, "_REPORT_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, logger="vl2"):
        build([config], processor)
    assert "t: tokens of 6 of 6 rows counted" in caplog.text


def test_unusable_rows_are_named_with_file_and_line(
    tmp_path: Path, processor: vl2.Processor, caplog: pytest.LogCaptureFixture
):
    rows: list[Any] = [{"conversations": talk()}, "", {"conversations": talk("Q", "")}]
    build([write(tmp_path / "t.jsonl", [*rows, "{"])], processor)
    assert f"t: {tmp_path}/t.jsonl line 3: an answer is empty (record #1 of t)" in caplog.text
    assert f"t: {tmp_path}/t.jsonl line 4: the row is not JSON" in caplog.text
    caplog.clear()
    build([with_bad_rows(tmp_path / "u.jsonl", good=5, bad=25)], processor)
    named = [record.message for record in caplog.records if "u.jsonl line" in record.message]
    assert named[0].startswith(f"u: {tmp_path}/u.jsonl line 6: an answer is empty")
    assert len(named) == 10
    assert "u: and 15 rows more" in caplog.text
    (tmp_path / "list.json").write_text('[{"conversations": []},\n\n{"caption": "x"}]')
    with pytest.raises(DataError):
        build([SourceConfig(path=str(tmp_path / "list.json"))], processor)
    assert "list.json line 3: a caption without a picture" in caplog.text


def test_the_cache_saves_the_scan(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor, scans: list[str]
):
    cache = tmp_path / "cache" / "deep"
    first = build([config], processor, cache=cache)
    assert scans == ["#0", "#1", "#2"]
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
    scans.clear()
    again = build([config], processor, cache=cache)
    assert scans == ["#1"]  # only what was bad is tried again
    assert again.counts(0).tolist() == first.counts(0).tolist()
    assert again.tiles(0).tolist() == first.tiles(0).tolist()
    assert again.fingerprint == first.fingerprint == build([config], processor).fingerprint


def test_a_picture_that_arrives_later_is_counted(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor, scans: list[str]
):
    first = build([config], processor, cache=tmp_path / "cache")
    Image.new("RGB", (60, 90)).save(tmp_path / "gone.jpg")
    second = build([config], processor, cache=tmp_path / "cache")
    assert first.counts(0)[1] == -1
    assert second.counts(0)[1] > 0
    assert first.fingerprint != second.fingerprint
    scans.clear()
    assert build([config], processor, cache=tmp_path / "cache").fingerprint == second.fingerprint
    assert scans == []


def test_a_corrupt_cache_is_built_again(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor
):
    cache = tmp_path / "cache"
    counts = build([config], processor, cache=cache).counts(0).tolist()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    key = index._sha256(["not the key"])
    assert index._read(file, key, 6) is None
    assert index._read(tmp_path / "none.npz", key, 6) is None
    flips = [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in range(len(whole))]
    for damage in (b"", b"PK", whole[:-1], whole + b"x", whole[: len(whole) // 2], *flips[::97]):
        file.write_bytes(damage)
        assert build([config], processor, cache=cache).counts(0).tolist() == counts


def test_any_flipped_byte_of_a_cache_is_noticed(tmp_path: Path):
    sizes = np.array([[5, -1, 900], [2, -1, 0]], dtype=np.int32)
    file = tmp_path / "rows.npz"
    index._write(file, "key", sizes)
    whole = file.read_bytes()
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        found = index._read(file, "key", 3)
        assert found is None or found.tolist() == sizes.tolist()


def test_a_cache_without_tiles_is_built_again(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor, scans: list[str]
):
    cache = tmp_path / "cache"
    whole = build([config], processor, cache=cache)
    (file,) = cache.iterdir()
    counts = whole.counts(0)
    with file.open("wb") as stream:
        np.savez(stream, counts=counts, digest=index._digest("key", counts))
    scans.clear()
    again = build([config], processor, cache=cache)
    assert scans == ["#0", "#1", "#2"]
    assert again.tiles(0).tolist() == whole.tiles(0).tolist()
    assert again.fingerprint == whole.fingerprint


def test_a_cache_of_other_rules_is_not_looked_at(
    tmp_path: Path,
    config: SourceConfig,
    processor: vl2.Processor,
    scans: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(index, "_RULES", "1")
        old = build([config], processor, cache=cache)
    scans.clear()
    new = build([config], processor, cache=cache)
    assert scans == ["#0", "#1", "#2"]
    assert old.fingerprint != new.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor
):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give another cache folder"):
        build([config], processor, cache=tmp_path / "file" / "cache")


def test_the_cache_knows_what_the_counts_depend_on(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor, scans: list[str]
):
    (tmp_path / "root").mkdir()
    Image.new("RGB", (400, 400)).save(tmp_path / "root" / "a.jpg")
    other = processor.with_settings(max_tiled_images=0)
    moved = replace(config, image_root=str(tmp_path / "root"))
    cache = tmp_path / "cache"
    variants = [
        build([config], processor, cache=cache),
        build([config], other, cache=cache),
        build([config], processor, cache=cache, mask_prompt=False),
        build([moved], processor, cache=cache),
    ]
    write(tmp_path / "t.jsonl", [{"conversations": talk("Another", "text.")}])
    variants.append(build([config], processor, cache=cache))
    assert len(list(cache.iterdir())) == len({v.fingerprint for v in variants}) == 5


def test_the_fingerprint_holds_all_that_decides_the_data(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor
):
    second = write(tmp_path / "u.jsonl", [{"conversations": talk()}])
    prints = [
        build(configs, processor).fingerprint
        for configs in (
            [config],
            [replace(config, weight=2.0)],
            [replace(config, augment=0.5)],
            [config, second],
            [second, config],
        )
    ]
    assert len(set(prints)) == 5
    assert all(len(each) == 64 for each in prints)
    (tmp_path / "t.jsonl").rename(tmp_path / "v.jsonl")
    moved = replace(config, path=str(tmp_path / "v.jsonl"), name="another")
    assert build([moved], processor).fingerprint == prints[0]


def test_several_sources_have_their_own_counts(
    tmp_path: Path, config: SourceConfig, processor: vl2.Processor
):
    file = io.BytesIO()
    Image.new("RGB", (300, 300)).save(file, "PNG")
    (tmp_path / "b.png").write_bytes(file.getvalue())
    document = {"images": ["b.png", None], "texts": [None, "Text."]}
    second = replace(write(tmp_path / "u.jsonl", [document]), format="interleaved")
    rows = build([config, second], processor)
    assert (len(rows.counts(0)), len(rows.counts(1))) == (6, 1)
    assert rows.counts(1)[0] > processor.layout.tokens((224, 224))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], r"source 't' has no usable row among 0: .* the source is empty"),
        ([{"conversations": talk()[:1]}] * 3, r"'t' has no usable row among 3: .* has no answers"),
        (["{", {"conversations": talk("Q", "")}], r"among 2: .* the row is not JSON"),
    ],
)
def test_a_source_that_teaches_nothing_is_refused(
    tmp_path: Path, processor: vl2.Processor, rows: list[Any], reason: str
):
    config = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=reason):
        build([config], processor, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def with_bad_rows(path: Path, *, good: int, bad: int) -> SourceConfig:
    """Rows of which some have no answer and one is no JSON; the first is very long."""
    long = {"conversations": talk("Q?", "word " * 5000)}
    rows = [long] + [{"conversations": talk()}] * (good - 1)
    rows += [{"conversations": talk("Q", "")}] * (bad - 1) + ["{"]
    return write(path, rows)


def test_a_source_with_too_many_bad_rows_is_refused(
    tmp_path: Path, processor: vl2.Processor, scans: list[str]
):
    """Of 50 rows 0.5 + 4 sqrt(0.5) + 4 = 7 may be bad."""
    config, cache = with_bad_rows(tmp_path / "t.jsonl", good=42, bad=8), tmp_path / "cache"
    with pytest.raises(DataError) as told:
        build([config], processor, cache=cache, max_bad_rate=0.01)
    assert str(told.value) == (
        "source 't': 8 of 50 rows cannot be used, 7 may be bad (data.max_bad_rate = 0.01); first "
        "reasons: 7 x an answer is empty; 1 x the row is not JSON: repair the source, or raise the "
        "limit"
    )
    scans.clear()
    found = build([config], processor, cache=cache, max_bad_rate=0.2)
    assert scans == []  # no good row is counted again
    assert (found.counts(0) == -1).sum() == 8
    assert found.fingerprint == build([config], processor).fingerprint
    repaired = with_bad_rows(tmp_path / "t.jsonl", good=43, bad=7)
    assert build([repaired], processor, max_bad_rate=0.01).counts(0)[0] > 4096


def test_each_source_is_judged_by_itself(tmp_path: Path, processor: vl2.Processor):
    sound = with_bad_rows(tmp_path / "sound.jsonl", good=300, bad=1)
    broken = with_bad_rows(tmp_path / "broken.jsonl", good=12, bad=8)
    with pytest.raises(DataError, match=r"^source 'broken': 8 of 20 rows cannot be used, 5 may"):
        build([sound, broken], processor, max_bad_rate=0.01)


def test_the_allowance_is_for_few_rows_and_ends_at_the_window():
    config = DataConfig(max_bad_rate=0.01, bad_rate_window=10_000)
    rows = (1, 100, 5_000, 9_000, 10_000, 10**6)
    assert [int(bad_allowed(number, config)) for number in rows] == [4, 9, 82, 100, 100, 10_000]
    assert bad_allowed(10**6, DataConfig(max_bad_rate=0.0)) == 0
    assert bad_allowed(50, DataConfig(max_bad_rate=1.0)) >= 50


def test_damage_does_not_go_with_tiles_by_content(config: SourceConfig, processor: vl2.Processor):
    with pytest.raises(ValueError, match=r"augment = 0\.5 but damage would change the tiles"):
        build([replace(config, augment=0.5)], processor.with_settings(tiling="content"))
