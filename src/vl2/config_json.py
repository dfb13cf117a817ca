"""Frozen dataclasses to and from the released JSON: checked types, nothing lost.

A field that the dataclass does not know goes into its `extra` and is written back from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

Sections = Mapping[str, type]
"""Field name -> dataclass, for fields that are objects of their own in the JSON."""

_LEFT_OUT = ("sam", "architectures", "quantization_config")
"""Fields that the released files lack; they are written only where they say something."""


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
        if name in sections and value is not None:
            if not isinstance(value, Mapping):
                raise ValueError(f"{place} is {value!r}: expected an object")
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


def unknown_fields(config: Any, sections: Sections, prefix: str = "") -> list[str]:
    """Dotted names of everything that was kept without being known."""
    names = [prefix + name for name in config.extra]
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in sections and value is not None:
            names += unknown_fields(value, sections, f"{prefix}{f.name}.")
    return names


def _checked(where: str, value: Any, f: Field[Any]) -> Any:
    """Convert lists to tuples and refuse a JSON type that the field cannot hold."""
    annotation = str(f.type)
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if value is None and "None" in annotation:
        return None
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str, "tuple": tuple}
    kind = annotation.split(" | ")[0].split("[")[0]
    if (
        value is None
        or not isinstance(value, kinds[kind])
        or (kind != "bool" and isinstance(value, bool))
    ):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        raise ValueError(f"{where} is {value!r}: expected {kind} (for instance {default!r})")
    return float(value) if kind == "float" else value
