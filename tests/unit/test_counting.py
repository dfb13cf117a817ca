"""Rows counted by several processes: the same result, and one line for what goes wrong."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.test_data_index import build, talk, write

import vl2
from vl2 import core_count
from vl2.data import counting
from vl2.data.index import RowIndex
from vl2.data.substitute import DataWorkError
from vl2.overrides import override
from vl2.recipes.stages import RECIPES
from vl2.train import setup


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


def test_rows_are_counted_on_the_cores_that_the_control_group_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr(core_count, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    given: list[int] = []

    def built(*parts: Any, processes: int) -> RowIndex:
        given.append(processes)
        return RowIndex([np.array([[7], [0]])], "")

    monkeypatch.setattr(setup.RowIndex, "build", built)
    source = write(tmp_path / "t.jsonl", [{"conversations": talk()}])
    settings = [f"data.sources=[{{path: {source.path}}}]", f"out={tmp_path}"]
    assert setup.look_at_data(override(RECIPES["debug_align"](), settings))
    assert given == [3]


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
