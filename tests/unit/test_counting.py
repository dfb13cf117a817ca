"""Rows counted by several processes: the same result, and one line for what goes wrong."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.test_data_index import build, talk, write

import vl2
from vl2.data import counting
from vl2.data.substitute import DataWorkError


@pytest.fixture(scope="module")
def processor() -> vl2.Processor:
    return vl2.Processor.from_pretrained("nano").with_settings(max_tiled_images=2)


@pytest.mark.slow
def test_processes_count_what_one_counts(
    tmp_path: Path,
    processor: vl2.Processor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(counting, "CHUNK", 7)
    monkeypatch.setattr(counting, "ROWS_FOR_A_PROCESS", 20)
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg")
    rows: list[Any] = [{"conversations": talk("Q?", "word " * (n % 9))} for n in range(100)]
    rows[50:60] = [{"image": "a.jpg", "conversations": talk()}] * 10
    rows[70] = "{"
    config = write(tmp_path / "t.jsonl", rows)
    alone = build([config], processor)
    told = caplog.messages
    caplog.clear()
    several = build([config], processor, processes=2)
    assert several.fingerprint == alone.fingerprint
    assert several.counts(0).tolist() == alone.counts(0).tolist()
    assert several.tiles(0).tolist() == alone.tiles(0).tolist()
    assert caplog.messages == told
    assert len(told) == 12  # the reasons, ten rows, and how many more
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_dies_is_one_line(tmp_path: Path, processor: vl2.Processor):
    config = write(tmp_path / "t.jsonl", [{"conversations": talk()}] * 9)
    chunks = [[row] for row in range(9)]
    results = counting._in_processes(chunks, config, processor, True, 1)
    assert next(results)[1].sizes.shape == (2, 1)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(DataWorkError, match=r"^a process that counts the rows died: [^\n]+$"):
        list(results)
    assert not multiprocessing.active_children()


def test_a_mistake_in_the_code_is_one_line(
    tmp_path: Path, processor: vl2.Processor, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("spam\nand more")

    monkeypatch.setattr(counting, "record_size", broken)
    config = write(tmp_path / "t.jsonl", [{"conversations": talk()}])
    with pytest.raises(DataWorkError, match=r"t.jsonl line 1 cannot be counted: KeyError: [^\n]+$"):
        build([config], processor)
