"""Settings: YAML and back, dotted overrides, and what is refused with which words."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.data.config import SourceConfig
from vl2.data.sources import open_source
from vl2.overrides import from_mapping, override, read_yaml, to_mapping, write_yaml
from vl2.ranges import Range, check_ranges, ranges_of
from vl2.recipes.stages import RECIPES
from vl2.train.config import GuardConfig, OptimConfig, TrainConfig
from vl2.train.lora import LoraConfig


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


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *(
            (text, text)
            for text in ("2024_05", "0010", "1:30", "1.10", "yes", "2026-01-01", "a: b")
        ),
        *((text, text) for text in ("a #1", "*", "[x]", "1" * 5000, "2026-99-99", "~/runs")),
        *(("'0010'", "0010"), ('"null"', "null"), ("null", None), ("~", None), ("", None)),
    ],
)
def test_a_text_is_taken_as_it_is(text: str, wanted: str | None):
    assert override(Settings(), [f"name={text}"]).name == wanted
    assert override(Settings(), [f"items.0.path={text or 'x'}"]).items[0].path == (
        wanted if wanted is not None else text or "x"
    )


@pytest.mark.parametrize("word", ["steps=" + "1" * 5000, "rate=" + "x" * 5000, "one=" + "[" * 99])
def test_a_refusal_is_no_longer_than_a_line(word: str):
    with pytest.raises(ValueError, match=word.partition("=")[0]) as caught:
        override(Settings(), [word])
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_list_of_sections_replaces_the_items():
    changed = override(Settings(), ["items=[{path: a}, {path: b, weight: 2}]"])
    assert changed.items == (Item(path="a"), Item(path="b", weight=2.0))


@pytest.mark.parametrize(
    "words",
    [("data.batch_size=1", "data.micro_batch=1"), ("data.micro_batch=1", "data.batch_size=1")],
)
def test_settings_that_fit_each_other_come_in_any_order(words: tuple[str, ...]):
    data = override(RECIPES["nano_lora"](), words).data
    assert (data.batch_size, data.micro_batch) == (1, 1)


FITTING = (
    *("data.batch_size=6", "data.micro_batch=3", "optim.moments=bfloat16", "optim.betas.1=0.9"),
    *("optim.optimizer=adamw", "lora.experts=x.json", "lora.targets=[experts]", "steps=7"),
)


@settings(max_examples=10)
@given(st.permutations(FITTING))
def test_any_order_gives_the_same_settings(words: list[str]):
    start = override(RECIPES["nano_pretrain"](), ["optim.optimizer=muon", "optim.betas.1=0.999"])
    found = override(start, words)
    assert found == override(start, FITTING)
    assert (found.data.batch_size, found.data.micro_batch) == (6, 3)
    assert found.optim.betas == (0.9, 0.9)
    assert found.lora is not None
    assert found.lora.targets == ("experts",)
    for left_out in ("data.micro_batch=3", "optim.betas.1=0.9", "lora.targets=[experts]"):
        rest = [word for word in words if word != left_out]
        if left_out == "lora.targets=[experts]":
            override(start, rest)  # the targets of a section that is opened hold experts already
            continue
        with pytest.raises(ValueError, match=left_out.partition(".")[0]):
            override(start, rest)


def test_the_later_of_two_values_counts_and_the_earlier_may_be_wrong():
    assert override(RECIPES["nano_sft"](), ["steps=-3", "steps=3"]).steps == 3
    assert override(RECIPES["nano_lora"](), ["lora.rank=3", "lora=null"]).lora is None
    found = override(RECIPES["nano_lora"](), ["lora=null", "lora.rank=3"]).lora
    assert found == LoraConfig(rank=3)
    words = ["data.sources=[{path: a}, {path: b}]", "data.sources.1.weight=2"]
    assert override(RECIPES["nano_lora"](), words).data.sources[1] == SourceConfig(
        path="b", weight=2.0
    )


ZERO = {
    *("seed", "optim.warmup", "optim.floor", "optim.betas", "optim.weight_decay", "data.seed"),
    *("balance.loss_weight", "balance.bias_step", "guard.spike", "guard.rollbacks"),
    "optim.decay",
    *("data.workers", "data.max_bad_rate", "data.max_bad_in_a_row", "data.sources.0.augment"),
}
"""Numbers of a run that may be zero."""
MINUS_ONE = {"parallel.shard"}
SHARES = {
    *("optim.learning_rate", "optim.floor", "optim.betas", "optim.eps", "balance.bias_step"),
    *("data.max_bad_rate", "data.sources.0.augment", "lora.expert_share"),
}
"""Shares and rates: nothing above 1 makes sense."""


def numbers_of(kind: type, place: str = "") -> Iterator[tuple[str, type]]:
    """Every setting below a dataclass that is a number, or holds numbers, and which kind."""
    for name, hint in get_type_hints(kind).items():
        here = f"{place}.{name}".strip(".")
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and is_dataclass(option):
                yield from numbers_of(option, f"{here}.0" if get_origin(hint) is tuple else here)
            if option in (int, float):
                yield here, option
                break


NUMBERS = dict(numbers_of(TrainConfig))


def refused(config: TrainConfig, name: str, value: object) -> bool:
    """Whether a number is refused in one line that names it and the value."""
    text = f"[0.9, {value}]" if name == "optim.betas" else str(value)
    told = ""
    try:
        override(config, [f"{name}={text}"])
    except ValueError as error:
        told = str(error)
    assert not told or re.fullmatch(rf"{re.escape(name)}(\.\d)? is .*: expected .*", told), told
    return bool(told)


def test_every_number_of_a_run_is_found():
    assert len(NUMBERS) > 40
    assert NUMBERS.keys() >= ZERO | MINUS_ONE | SHARES
    assert {"data.sources.0.weight", "lora.alpha", "guard.window", "optim.betas"} <= NUMBERS.keys()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_make_no_sense_are_refused(name: str):
    config = RECIPES["debug_sft"]()
    kind = NUMBERS[name]
    for value in (".nan", "-.inf", "inf", "1e300", 10**30, -(10**30)):
        assert refused(config, name, value), value
    assert refused(config, name, "-1.0" if kind is float else -2)
    assert refused(config, name, -1) is (name not in MINUS_ONE)
    assert refused(config, name, 0) is (name not in ZERO)
    assert refused(config, name, 1.5) is (name in SHARES or kind is int)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_takes_what_is_no_number(recipe: str):
    config = RECIPES[recipe]()
    for name in NUMBERS:
        assert refused(config, name, ".nan"), name


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in (OptimConfig, GuardConfig, LoraConfig) for n in ranges_of(k)],
)
def test_numbers_are_refused_without_a_command_line_too(kind: type, name: str):
    whole = get_type_hints(kind)[name] in (int, int | None)
    value = -7 if whole else (0.9, math.nan) if name == "betas" else math.nan
    with pytest.raises(ValueError, match=f"^{name} is .*(nan|-7)"):
        kind(**{name: value})


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    whole: Annotated[int, Range(least=1)] = 1
    real: Annotated[float, Range(least=0, most=1)] = 0.5
    perhaps: Annotated[int | None, Range(least=1)] = None
    pair: Annotated[tuple[float, float], Range(least=0, below=1)] = (0.9, 0.95)

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("whole", np.int64(5), 5),
        ("whole", np.uint8(5), 5),
        ("real", np.float32(0.5), 0.5),
        ("real", np.int64(1), 1),
        ("perhaps", np.intp(5), 5),
        ("perhaps", None, None),
        ("pair", [np.float64(0.5), 0], (0.5, 0)),
    ],
)
def test_numbers_of_numpy_become_pythons(name: str, given: object, found: object):
    assert repr(getattr(Numbers(**{name: given}), name)) == repr(found)  # pyright: ignore


@pytest.mark.parametrize("name", ["whole", "real", "perhaps"])
@pytest.mark.parametrize(
    "value", [True, np.bool_(True), np.array(1), torch.tensor(1), "1", [1], (1,), {}], ids=repr
)
def test_what_is_no_number_is_refused(name: str, value: object):
    with pytest.raises(ValueError, match=f"^{name} is .*: expected "):
        Numbers(**{name: value})  # pyright: ignore[reportArgumentType]


def test_one_number_is_no_pair_and_nothing_no_number():
    for name, value in (("pair", 0.5), ("whole", None), ("whole", 1.0), ("whole", np.float32(1))):
        with pytest.raises(ValueError, match=f"^{name} is "):
            Numbers(**{name: value})  # pyright: ignore[reportArgumentType]


def test_numbers_are_text_where_text_is_asked_for():
    assert override(Settings(), ["name=12"]).name == "12"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps", "not an override: write key=value"),
        ("=3", "not an override"),
        ("step=3", "no setting 'step'; did you mean 'steps'"),
        ("zzz=3", "known: steps, rate"),
        ("path=x", "no setting 'path'; did you mean 'one.path'"),
        ("steps=many", "steps is 'many': expected a whole number"),
        ("steps=1.5", "expected a whole number"),
        ("steps=true", "expected a whole number"),
        ("rate=fast", "rate is 'fast': expected a number"),
        ("fused=1", "expected true or false"),
        ("kind=c", "expected 'a' or 'b'"),
        ("items=3", "expected a list"),
        ("items=[3]", "items.0 is 3: expected a mapping"),
        ("items.4.path=x", "there are 1 items"),
        ("steps.more=1", "is below a plain value"),
        ("items.0.paht=x", "did you mean 'path'"),
        ("items.0.path.x=x", "is below a plain value"),
        ("one.paht=x", "did you mean 'path'"),
        ("betas=[0.9]", "betas is .*: expected a list of 2"),
        ("betas=[0.9, 0.9, 0.9]", "expected a list of 2"),
        ("betas.2=0.9", "there are 2 items"),
        ("rate=1" + 400 * "0", "expected a number"),
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
    [("- 1", "expected a mapping"), ("a: [", "is not YAML"), ("nme: x", "no setting 'nme'")],
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
    with pytest.raises(ValueError, match="is not YAML"):
        read_yaml(file, TrainConfig)
