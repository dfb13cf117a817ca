"""The embedded model's run: stages that resume and are examined, and a released branch."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.made import small_world

import vl2
from vl2.checkpoint.dcp import read_extra
from vl2.config import VL2Config
from vl2.data.make.kinds import make
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.recipes.embedded import run, tokenizer
from vl2.recipes.embedded.answers import cut_answers, encode
from vl2.recipes.embedded.exam import SKILLS
from vl2.recipes.embedded.run import READ, SEE, Stage, newest, read, release, train
from vl2.recipes.embedded.see import PlaceReader, SeeTask
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import Tensors, write_shard
from vl2.recipes.embedded.tiles import cut_tiles, draw_tiles

CUT_TILES = partial(cut_tiles, tiles=1, places=20)
CUT_ANSWERS = partial(cut_answers, tokens=512, tiles=2)


def few_tiles(_: Path, number: int) -> Tensors:
    return draw_tiles(number, 1, {"words": 1.0}, small_world(), count=2)


def few_answers(out: Path, number: int) -> Tensors:
    made = [make("shapes", 3, 2 * number + row, small_world()) for row in range(2)]
    processor = Processor.from_pretrained(out / "model")
    return encode(made, processor, np.random.default_rng(number))


@pytest.fixture(autouse=True)
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are drawn before the stage, in this process."""

    @contextmanager
    def drawing(stage: Stage, out: Path, first: int) -> Iterator[Callable[[], bool]]:
        for number in range(first, 4):
            write_shard(stage.window(out).path(number), stage.draw(out, number))
        yield lambda: False

    monkeypatch.setattr(run, "_drawing", drawing)


def untrained() -> VL2Model:
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def scores(out: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def test_a_stage_resumes_and_is_examined_every_so_often(tmp_path: Path) -> None:
    stage = replace(SEE, draw=few_tiles, cut=CUT_TILES, micro=2, steps=3, examined=2)
    reader = PlaceReader(untrained())
    examined: list[int] = []

    def examine() -> dict[str, int]:
        examined.append(1)
        return {"seen": len(examined)}

    def go_on(steps: int) -> int:
        train(replace(stage, steps=steps), SeeTask(reader), tmp_path, examine)
        found = newest(stage, tmp_path)
        assert found is not None
        return read_extra(found)["step"]

    assert go_on(3) == 3
    assert scores(tmp_path) == [("see", 2), ("see", 3)]
    assert go_on(3) == 3  # nothing is left to do
    assert go_on(4) == 4
    assert scores(tmp_path) == [("see", 2), ("see", 3), ("see", 4)]


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "world", lambda _split: small_world())
    monkeypatch.setattr(tokenizer, "MADE_ROWS", 1)
    monkeypatch.setattr(run, "EXAM_ITEMS", 1)
    monkeypatch.setattr(run, "RELEASE_STEPS", 2)
    skills = {name: replace(SKILLS[name], most_tokens=2) for name in ("word", "count")}
    monkeypatch.setattr(run, "SKILLS", skills)
    stage = replace(READ, draw=few_answers, cut=CUT_ANSWERS, micro=1, steps=2, examined=2)
    monkeypatch.setattr(run, "READ", stage)
    return tmp_path


def test_a_release_branches_off_the_newest_state(small_run: Path) -> None:
    with pytest.raises(ValueError, match="holds no state of 'read'"):
        release(small_run)
    model = untrained()
    read(model, small_run, run.READ)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    folder = release(small_run)
    assert scores(small_run) == [("read", 2), ("release-2", 4)]
    loaded = vl2.load_model(folder, torch.float32, "cpu")
    assert loaded.config.language_config == embedded().language_config
    moved = {n for n, p in loaded.named_parameters() if not torch.equal(p, trained[n].bfloat16())}
    assert "language.lm_head.weight" in moved
    again = newest(run.READ, small_run)
    assert again is not None
    assert read_extra(again)["step"] == 2  # the trunk stays as it was


def test_a_run_without_states_starts_from_shipped_weights_of_its_shape(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "embedded", VL2Config.nano)
    begun = run.begin(small_run)
    shipped = vl2.load_model("nano", torch.float32, "cpu")
    for one, two in zip(begun.parameters(), shipped.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["none", "file"])
def test_wrong_use_of_the_command_is_one_line_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path / name), "--release"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    told = {"none": "holds no state of 'read': train first", "file": "is a file: give a folder"}
    assert told[name] in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
