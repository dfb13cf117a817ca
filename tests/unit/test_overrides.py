"""Settings: YAML and back, dotted overrides, and what is refused with which words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from vl2.data.config import SourceConfig
from vl2.data.sources import open_source
from vl2.overrides import from_mapping, override, read_yaml, to_mapping, write_yaml
from vl2.recipes.stages import RECIPES
from vl2.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    path: str = ""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    steps: int = 1
    rate: float = 0.1
    fused: bool = False
    kind: Literal["a", "b"] = "a"
    name: str | None = None
    items: tuple[Item, ...] = (Item(path="x"),)
    one: Item | None = None
    betas: tuple[float, float] = (0.9, 0.95)


def test_overrides_convert_to_the_fields_types():
    words = [
        *("steps=7", "rate=1e-4", "fused=true", "kind=b", "name=run", "items.0.weight=3"),
        *("betas=[0.8, 0.9]", "one.path=y", "name=null"),
    ]
    changed = override(Settings(), words)
    assert changed == Settings(
        steps=7,
        rate=1e-4,
        fused=True,
        kind="b",
        items=(Item(path="x", weight=3.0),),
        one=Item(path="y"),
        betas=(0.8, 0.9),
    )
    assert isinstance(changed.items[0].weight, float)


def test_a_list_of_sections_replaces_the_items():
    changed = override(Settings(), ["items=[{path: a}, {path: b, weight: 2}]"])
    assert changed.items == (Item(path="a"), Item(path="b", weight=2.0))


def test_numbers_are_text_where_text_is_asked_for():
    assert override(Settings(), ["name=12"]).name == "12"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps", "no override: write key=value"),
        ("=3", "no override"),
        ("step=3", "no setting 'step'; did you mean 'steps'"),
        ("zzz=3", "known: steps, rate"),
        ("steps=many", "steps is 'many': expected a whole number"),
        ("steps=1.5", "expected a whole number"),
        ("steps=true", "expected a whole number"),
        ("rate=fast", "rate is 'fast': expected a number"),
        ("fused=1", "expected true or false"),
        ("kind=c", "expected 'a' or 'b'"),
        ("items=3", "expected a list"),
        ("items=[3]", "items.0 is 3: expected a mapping"),
        ("items.4.path=x", "there are 1 items"),
        ("steps.more=1", "leads into a plain value"),
        ("items.0.paht=x", "did you mean 'path'"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(word: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        override(Settings(), [word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_from_its_yaml(name: str, tmp_path):
    config = RECIPES[name]()
    write_yaml(config, tmp_path / "config.yaml")
    assert read_yaml(tmp_path / "config.yaml", TrainConfig) == config
    assert from_mapping(TrainConfig, to_mapping(config)) == config


DRAWN = [name for name in RECIPES if name.startswith(("nano_", "debug_")) and "lora" not in name]


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_source_that_is_replaced_leaves_nothing_behind(name: str, tmp_path: Path):
    said = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    file = tmp_path / "mine.jsonl"
    file.write_text(f"{json.dumps({'conversations': said})}\n" * 2500, encoding="utf-8")
    [drawn] = RECIPES[name]().data.sources
    assert drawn.format == "synthetic"
    words = [f"data.sources.0.path={file}", "data.sources.0.format=llava"]
    for order in (words, words[::-1]):
        [source] = override(RECIPES[name](), order).data.sources
        assert source == SourceConfig(path=str(file))
        assert len(open_source(source)) == 2500
    first = override(RECIPES[name](), ["data.sources.0.rows=30", *words]).data.sources[0]
    assert len(open_source(first)) == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1", "expected a mapping"), ("a: [", "is no YAML"), ("nme: x", "no setting 'nme'")],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(file, TrainConfig)
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml", TrainConfig)


def test_tags_that_would_build_objects_are_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is no YAML"):
        read_yaml(file, TrainConfig)
