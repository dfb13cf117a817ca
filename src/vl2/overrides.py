"""Frozen dataclasses of settings to and from YAML, and overrides: `optim.learning_rate=1e-4`.

Types come from the dataclasses' annotations; a key that does not exist or a value of another type
is refused with the place, the expectation and the nearest name.
"""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain mappings, lists and scalars.

    Raises:
        ValueError: an unknown key or a value of another type, named with its place.
    """
    hints = _hints(cls)
    values = {}
    for key, value in data.items():
        place = f"{where}.{key}" if where else str(key)
        _check_key(str(key), hints, place)
        values[key] = _converted(value, hints[key], place)
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from None
    except ValueError as error:  # a class names its own fields: it does not know its place
        if where and str(error).partition(" ")[0] in hints:
            raise ValueError(f"{where}.{error}") from None
        raise


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
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
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
    """The configuration with `dotted.key=value` assignments applied; values are YAML.

    All of them are applied, later ones of a key over earlier ones, before the whole is checked:
    settings that must fit each other may come in any order. A text is taken as it is, quotes around
    it apart. A tuple's item is named by its number:
    `data.sources.0.path=photos.json`.

    Raises:
        ValueError: an assignment without "=", an unknown key, or a value of another type.
    """
    kind = type(config)
    tree = to_mapping(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"{assignment!r} is not an override: write key=value")
        tree = _assigned(tree, kind, key.split("."), text, key)
    return from_mapping(kind, tree)


def _read(text: str, kind: Any) -> Any:
    """The value of an assignment: YAML, but for texts, which YAML takes for numbers and dates."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date or a number that there is not
        return text
    quoted = text.strip()[:1] in ("'", '"') and isinstance(value, str)
    none = value is None and type(None) in options
    return value if str not in options or quoted or none else text


def _assigned(tree: Any, kind: Any, path: Sequence[str], value: str, place: str) -> Any:
    """The plain form of a setting of type `kind` with the value at `path` exchanged."""
    if not path:
        return _read(value, kind)
    name, rest = path[0], path[1:]
    if isinstance(section := _section_of(kind), type) and isinstance(tree, dict | None):
        hints = _hints(section)
        _check_key(name, hints, place)
        tree = tree if tree is not None else {}
        below = tree[name] if name in tree else _default(section, name)
        return {**tree, name: _assigned(below, hints[name], rest, value, place)}
    if isinstance(tree, list) and name.isdigit():
        index = int(name)
        if index >= len(tree):
            raise ValueError(f"{place}: there are {len(tree)} items, numbered from 0")
        changed = _assigned(tree[index], get_args(kind)[0], rest, value, place)
        return [*tree[:index], changed, *tree[index + 1 :]]
    raise ValueError(f"{place}: {name!r} is below a plain value; remove it")


def _default(section: type, name: str) -> Any:
    """The plain form of what a field holds where nothing is said; None where it must be said."""
    [found] = [f for f in fields(section) if f.name == name]  # pyright: ignore[reportArgumentType]
    if found.default_factory is not MISSING:
        return to_mapping(found.default_factory())
    return None if found.default is MISSING else to_mapping(found.default)


def _section_of(kind: Any) -> Any:
    """The dataclass that a type is, or that is in `Section | None`, which an override may open."""
    return next((option for option in (kind, *get_args(kind)) if is_dataclass(option)), None)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields, also where it checks them itself (`no_type_check`)."""
    holder = types.SimpleNamespace(__annotations__=cls.__annotations__)
    return get_type_hints(holder, globalns=vars(sys.modules[cls.__module__]))


def _check_key(name: str, hints: Mapping[str, Any], place: str) -> None:
    if name in hints:
        return
    sections = {k: _section_of(kind) for k, kind in hints.items() if get_origin(kind) is not tuple}
    close = [f"{key}.{name}" for key, found in sections.items() if found and name in _hints(found)]
    close = close or difflib.get_close_matches(name, hints, n=2)
    hint = (
        f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(hints)}"
    )
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
        item, *more = get_args(kind)
        if Ellipsis not in more and len(value) != 1 + len(more):
            raise _wrong(place, value, f"a list of {1 + len(more)}")
        return tuple(_converted(part, item, f"{place}.{i}") for i, part in enumerate(value))
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a mapping of settings")
        return from_mapping(kind, value, place)  # pyright: ignore[reportArgumentType]
    return _scalar(value, kind, place)


def _scalar(value: Any, kind: type, place: str) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        value = _number(value)  # YAML 1.1 reads 1e-4, which has no dot, as text
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


def _number(value: str | int) -> Any:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _wrong(place: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{place} is {value!r:.80}: expected {expected}")
