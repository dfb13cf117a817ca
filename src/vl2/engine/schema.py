"""JSON schemas as people send them: taken out of OpenAI's wrapper, every keyword known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, cast

MAX_BYTES = 65536
"""Of a schema, a regular expression or all choices; objects take time as the square of it."""

MAX_MULTIPLE = 10_000
"""Least common multiple of a schema's `multipleOf`: an automaton has so many states."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_PARTS = (
    *("items", "additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if"),
    *("then", "else", "unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
_RULES = {
    *(*_MAPS, *_LISTS, *_PARTS, "$ref", "$dynamicRef", "$recursiveRef", "dependencies", "type"),
    *("const", "enum", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
    *("maxLength", "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "maxContains"),
    *("minContains", "maxProperties", "minProperties", "required", "dependentRequired", "format"),
    *("contentEncoding", "contentMediaType"),
}
"""Keywords of JSON schema, all drafts, that say something about a value."""

_REMARKS = {
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"),
    *("$comment", "title", "description", "default", "deprecated", "readOnly", "writeOnly"),
    *("examples", "example", "discriminator"),
}
"""Keywords that only describe; `example` and `discriminator` are OpenAPI's."""

_WRAPPER = {"type", "name", "description", "strict", "schema", "json_schema"}
"""Keys of OpenAI's `response_format` and of the `json_schema` in it."""


def checked_schema(schema: dict[str, Any] | str) -> Any:
    """The schema as parsed JSON; `{}` and `true` allow any JSON on purpose.

    Raises:
        ValueError: no JSON, an unknown keyword, nothing said about the answer, or too much of it.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
        parsed = json.loads(text, parse_constant=_no_number) if len(text) <= MAX_BYTES else True
        parsed = _unwrapped(parsed)
        if not isinstance(parsed, dict | bool):
            raise ValueError(f"{parsed!r:.80} is no object or boolean")
        _check_keywords(parsed)
        multiple = _common_multiple(list(_multiples(parsed)))
    except RecursionError:
        raise ValueError("json is nested too deeply: expected at most 64 levels") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"json is not a JSON schema: {error}") from None
    checked_size("json", text)
    if multiple > MAX_MULTIPLE:
        raise ValueError(
            f"json has multipleOf with a common multiple of more than {MAX_MULTIPLE} units of "
            "their last decimal place: expected rounder numbers"
        )
    return {} if parsed is True else parsed


def _unwrapped(schema: Any) -> Any:
    """The schema inside OpenAI's `response_format`, or inside the `json_schema` of one."""
    while isinstance(schema, dict) and schema.keys() <= _WRAPPER:
        inner = schema.get("json_schema", schema.get("schema"))
        if inner is None or schema.get("type", "json_schema") != "json_schema":
            break
        schema = inner
    return schema


def _check_keywords(schema: Any) -> None:
    """Refuse unknown keywords, which would allow anything, and a schema of remarks alone."""
    if isinstance(schema, dict) and schema and schema.keys() <= _REMARKS | {"$defs", "definitions"}:
        raise ValueError(
            f"{', '.join(schema)} say nothing about the answer; give true or {{}} for any JSON"
        )
    for part in _schemas(schema):
        known = _RULES | _REMARKS
        unknown = [key for key in part if key not in known and not key.startswith("x-")]
        if unknown:
            inside = [key for key in unknown if isinstance(part[key], dict)]
            alike = get_close_matches(unknown[0], sorted(_RULES), n=1, cutoff=0.7)
            remedy = f"give the schema inside {inside[0]!r}" if inside else "leave it out"
            remedy = f"did you mean {alike[0]!r}?" if alike else remedy
            raise ValueError(f"{unknown[0]!r} is not a keyword of JSON schema; {remedy}")


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all in it; values of `enum` and the like are none."""
    if isinstance(schema, list):  # `items` of older drafts
        for part in schema:
            yield from _schemas(part)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            maps = key in _MAPS or key == "dependencies"
            if maps and isinstance(value, dict):
                yield from _schemas([part for part in value.values() if isinstance(part, dict)])
            elif key in _LISTS or key in _PARTS:
                yield from _schemas(value)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _multiples(schema: object) -> Iterator[Decimal]:
    """Every `multipleOf` in it."""
    if isinstance(schema, dict):
        value = schema.get("multipleOf")
        if type(value) in (int, float) and value and math.isfinite(value):
            yield abs(Decimal(str(value)))
    if isinstance(schema, dict | list):
        for part in schema.values() if isinstance(schema, dict) else schema:
            yield from _multiples(part)


def _common_multiple(values: list[Decimal]) -> int:
    """Least common multiple, in units of the finest decimal place among the values."""
    finest = min((cast(int, value.as_tuple().exponent) for value in values), default=0)
    return math.lcm(*(int(value.scaleb(-min(finest, 0))) for value in values))


def checked_size(name: str, text: str) -> str:
    """The text, if it is one of at most `MAX_BYTES`.

    Raises:
        ValueError: it is none, or larger.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds a lone surrogate: expected text") from None
    if size > MAX_BYTES:
        raise ValueError(f"{name} has {size} bytes: expected at most {MAX_BYTES}")
    return text
