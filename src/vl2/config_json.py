"""Frozen dataclasses to and from the released JSON: checked types, nothing lost.

A field that the dataclass does not know goes into its `extra` and is written back from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from sys import float_info
from typing import Any

Sections = Mapping[str, type]
"""Field name -> dataclass, for fields that are objects of their own in the JSON."""

_LEFT_OUT = ("sam", "architectures", "quantization_config")
"""Fields that the released files lack; they are written only where they say something."""

LONGEST_EXAMPLE = 40
"""Letters of a default that a message shows as an example."""
_WORDS = {
    "float": "a finite number",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[Resolution, ...]": "a list of [width, height]",
}
"""Kinds of fields as messages call them."""


def read_section(cls: type, data: Mapping[str, Any], where: str, sections: Sections) -> Any:
    """Build `cls` from a JSON object.

    Args:
        cls: a dataclass with a field `extra` for what it does not know.
        data: the JSON object.
        where: place in the file, for messages.
        sections: fields that are dataclasses themselves.

    Raises:
        ValueError: a value of the wrong type, named with its field.
    """
    known = {f.name: f for f in fields(cls) if f.name != "extra"}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            continue
        place = f"{where}: {name}"
        if name in sections and (value is not None or "None" not in str(known[name].type)):
            if not isinstance(value, Mapping):
                raise ValueError(f"{place} is {value!r:.80}: expected an object")
            values[name] = read_section(sections[name], value, place, sections)
        else:
            values[name] = _checked(place, value, known[name])
    return cls(**values, extra={k: v for k, v in data.items() if k not in known})


def write_section(config: Any, sections: Sections) -> dict[str, Any]:
    """The JSON object of a dataclass, with every field but absent optional sections written out."""
    data: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name == "extra" or (value is None and f.name in _LEFT_OUT):
            continue
        section = f.name in sections and value is not None
        data[f.name] = write_section(value, sections) if section else value
    return {**data, **config.extra}


def sections_of(config: Any, sections: Sections, name: str = "") -> Iterator[tuple[str, Any]]:
    """A dataclass and the sections in it, each with its dotted name."""
    yield name, config
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in sections and value is not None:
            yield from sections_of(value, sections, f"{name}.{f.name}" if name else f.name)


def _checked(where: str, value: Any, f: Field[Any]) -> Any:
    """Convert lists to tuples and refuse a JSON type that the field cannot hold."""
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    kinds = str(f.type).split(" | ")
    if any(_is_a(kind, value) for kind in kinds):
        return float(value) if kinds[0] == "float" and value is not None else value
    default = f.default if f.default_factory is MISSING else f.default_factory()
    wanted = _WORDS.get(kinds[0], kinds[0])
    example = "" if default is None or default is MISSING else json.dumps(default)
    wanted += f" (for instance {example})" if 0 < len(example) <= LONGEST_EXAMPLE else ""
    raise ValueError(f"{where} is {value!r:.80}: expected {wanted}")


def _is_a(kind: str, value: Any) -> bool:
    """Whether a JSON value fits a kind of field; no number is infinite, none of float too large."""
    if kind == "None" or value is None:
        return kind == "None" and value is None
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "float":
        return isinstance(value, int | float) and abs(value) <= float_info.max
    if kind.startswith("tuple"):
        each = kind.removeprefix("tuple[").partition(",")[0]
        named = each in ("int", "str")
        return isinstance(value, tuple) and (not named or all(_is_a(each, v) for v in value))
    return isinstance(value, {"int": int, "bool": bool, "str": str}[kind])
