"""Frozen dataclasses of settings to and from YAML, and overrides: `optim.learning_rate=1e-4`.

Types come from the dataclasses' annotations; a key that does not exist or a value of another type
is refused with the place, the expectation and the nearest name.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain mappings, lists and scalars.

    Raises:
        ValueError: an unknown key or a value of another type, named with its place.
    """
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        place = f"{where}.{key}" if where else str(key)
        _check_key(str(key), hints, place)
        values[key] = _converted(value, hints[key], place)
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from None


def to_mapping(config: Any) -> Any:
    """The plain form that `from_mapping` reads; every field is written out."""
    if is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, tuple | list):
        return [to_mapping(value) for value in config]
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    return config


def read_yaml(path: Path, cls: type[T]) -> T:
    """Read a file that `write_yaml` wrote.

    Raises:
        ValueError: the file cannot be read, is no YAML mapping, or does not fit `cls`.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__}: expected a mapping of settings")
    return from_mapping(cls, data, path.name)


def write_yaml(config: Any, path: Path) -> None:
    """Write every setting."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Any) -> str:
    """Every setting as YAML, in the order of the dataclass."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def override(config: T, assignments: Sequence[str]) -> T:
    """The configuration with `dotted.key=value` assignments applied in order; values are YAML.

    A tuple's item is named by its number: `data.sources.0.path=photos.json`.

    Raises:
        ValueError: an assignment without "=", an unknown key, or a value of another type.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"{assignment!r} is no override: write key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        config = _assigned(config, type(config), key.split("."), value, key)
    return config


def _assigned(config: Any, kind: Any, path: Sequence[str], value: Any, place: str) -> Any:
    if not path:
        return _converted(value, kind, place)
    name, rest = path[0], path[1:]
    if is_dataclass(config) and not isinstance(config, type):
        hints = get_type_hints(type(config))
        _check_key(name, hints, place)
        inner = _assigned(getattr(config, name), hints[name], rest, value, place)
        return replace(config, **{name: inner})
    if config is None and (section := _section_of(kind)):
        return _assigned(section(), section, path, value, place)
    if isinstance(config, tuple) and name.isdigit():
        index = int(name)
        item = get_args(kind)[0]
        if index >= len(config):
            raise ValueError(f"{place}: there are {len(config)} items, numbered from 0")
        changed = _assigned(config[index], item, rest, value, place)
        return (*config[:index], changed, *config[index + 1 :])
    raise ValueError(f"{place}: {name!r} leads into a plain value; remove it")


def _section_of(kind: Any) -> Any:
    """The dataclass in `Section | None`, which an override may open."""
    return next((option for option in get_args(kind) if is_dataclass(option)), None)


def _check_key(name: str, hints: Mapping[str, Any], place: str) -> None:
    if name in hints:
        return
    close = difflib.get_close_matches(name, hints, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(hints)}"
    raise ValueError(f"{place}: there is no setting {name!r}; {hint}")


def _converted(value: Any, kind: Any, place: str) -> Any:
    """The value as the annotation `kind` wants it."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        return _converted(value, next(o for o in options if o is not type(None)), place)
    if origin is Literal:
        if value not in get_args(kind):
            raise _wrong(place, value, " or ".join(map(repr, get_args(kind))))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(place, value, "a list")
        item = get_args(kind)[0]
        return tuple(_converted(part, item, f"{place}.{i}") for i, part in enumerate(value))
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a mapping of settings")
        return from_mapping(kind, value, place)  # pyright: ignore[reportArgumentType]
    return _scalar(value, kind, place)


def _scalar(value: Any, kind: type, place: str) -> Any:
    if kind is float and isinstance(value, str):
        value = _number(value)  # YAML 1.1 reads 1e-4, which has no dot, as text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise _wrong(
            place,
            value,
            {"int": "a whole number", "float": "a number"}.get(
                kind.__name__, "true or false" if kind is bool else "text"
            ),
        )
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _wrong(place: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{place} is {value!r}: expected {expected}")
