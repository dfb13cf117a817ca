"""Descriptions of models that were damaged or edited: read, or refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vl2.config import VL2Config
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig

TOKENIZER = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer" / "tokenizer.json"
ODD: list[Any] = [
    *(None, True, 0, 1, -1, 2**31, 2**64, 10**30, 10**400, 0.5, float("nan"), float("inf")),
    *("", "x", "\ud800", "<image>", "a\nb", "a" * 5000, [], [1], ["a"], {}, {"a": 1}, [[1]]),
]
"""What stands in the place of a value."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    config = VL2Config.nano()
    config.save(tmp_path)
    ProcessorConfig.for_model(config).save(tmp_path)
    shutil.copy(TOKENIZER, tmp_path)
    return tmp_path


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a JSON object stands; of a long list or object, some."""
    if here:
        yield here
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 50 else [*keys[:5], *keys[-5:]]:
            yield from places(value[key], (*here, key))


def mutated(text: str, dice: random.Random) -> bytes:
    """The file with up to three of its values replaced, doubled or left out, or some bytes lost."""
    if dice.random() < 0.2:
        data = bytearray(text.encode())
        at = dice.randrange(len(data))
        data[at : at + dice.choice([0, 1, 20, len(data)])] = dice.randbytes(dice.randrange(3))
        return bytes(data)
    data = json.loads(text)
    for _ in range(dice.randrange(1, 4)):
        *way, last = dice.choice(list(places(data)))
        there = data
        for key in way:
            there = there[key]
        match dice.randrange(4):
            case 0:
                del there[last]
            case 1 if isinstance(there, list):
                there.append(there[last])
            case _:
                there[last] = dice.choice(ODD)
        if not data:
            break
    return json.dumps(data).encode()


def refusal(folder: Path) -> ValueError | None:
    """Why a folder has no processor; None if it has one that works."""
    try:
        tokenizer = Processor.from_pretrained(folder).tokenizer
        tokenizer.decode(tokenizer.encode("Two words, <image> and 天空"))
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_a_damaged_description_is_read_or_refused_in_one_line(folder: Path, name: str):
    """200 mutations: an error of ours that is short enough to read, or a processor that works."""
    file, dice, refused = folder / name, random.Random(0), 0
    text = file.read_text(encoding="utf-8")
    for number in range(200):
        file.write_bytes(mutated(text, dice))
        error = refusal(folder)
        if error is not None:
            refused += 1
            assert type(error) is ValueError, (number, error)
            assert "\n" not in str(error), (number, error)
            assert len(str(error)) < 600, (number, error)
    assert 100 < refused < 200


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": 5}, "is model 5 with decoder 'ByteLevel'"),
        ({"decoder": "ByteLevel", "model": None}, "is model None with decoder 'ByteLevel'"),
        ({"added_tokens": {"a": 1}}, "added_tokens is {'a': 1}: expected a list"),
        ({"added_tokens": ["<image>"]}, r"added_tokens\[0\] is '<image>': expected an object"),
        ({"added_tokens": [{"id": 7}]}, r"added_tokens\[0\] is {'id': 7}: expected an object"),
        (
            {"added_tokens": [{"content": "<a>", "id": "7"}]},
            "the id of '<a>' is '7': expected 0 or more",
        ),
        (
            {"added_tokens": [{"content": "<a>", "id": 500}] * 2},
            r"added_tokens\[1\] is .*: expected an object with a \"content\" of its own",
        ),
        ({"vocab": ["a"]}, "model.vocab is .*: expected an object of ids by token"),
        ({"vocab": {"a": -1}}, "the id of 'a' is -1: expected 0 or more"),
        ({"vocab": {"a": True}}, "the id of 'a' is True: expected 0 or more"),
        ({"vocab": {"a": 1, "b": 1}}, "has an id twice"),
    ],
)
def test_a_wrong_part_of_a_tokenizer_is_named(folder: Path, change: dict[str, Any], told: str):
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    if vocab := change.pop("vocab", None):
        data["model"]["vocab"] = vocab
    file.write_text(json.dumps({**data, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"tokenizer.json:? .*{told}"):
        Processor.from_pretrained(folder)


def test_files_that_an_editor_marked_as_utf_8_are_read(folder: Path):
    for file in list(folder.iterdir()):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Processor.from_pretrained(folder).tokenizer.decode([66]) != ""


def test_a_file_that_nests_too_deep_is_no_traceback(folder: Path):
    for file in list(folder.iterdir()):
        kept = file.read_bytes()
        file.write_text('{"a": ' + "[" * 100_000, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{file.name} cannot be read as JSON"):
            Processor.from_pretrained(folder)
        file.write_bytes(kept)
