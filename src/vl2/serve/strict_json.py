"""JSON as it comes from outside: bounded, without duplicate keys, only numbers that are finite."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from vl2.serve.errors import ApiError

MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_MARKS = 5
"""Strings, brackets and commas of one value and its key, at most; more of them are no JSON."""
MAX_KEYS = 10_000
"""Of one object: each that is unknown costs more than a value does."""
MAX_DIGITS = 20
MAX_ESCAPES = 1_000_000
"""A picture of 20 MiB has less than half as many where every slash of its base64 is escaped."""

_TOKENS = re.compile(rb'"[^"\\]{0,99}+"|["\[{\]},]|[^"\[{\]},]{999}')
"""Short strings whole, of others the first quote, brackets and commas. What is long between them
comes in parts, since no other thread runs while a pattern is matched."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: it is no JSON object, nested too deep, of too many values, or holds a key twice,
            a number that is not finite or has too many digits, or half a character.
    """
    _check_shape(body)
    try:
        found = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
        if _SURROGATE.search(body):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _bad("a text of the body holds half a character: send whole characters") from None
    except UnicodeDecodeError:
        raise _bad("the body is not UTF-8: send JSON as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        if error.lineno == 1:
            where = f"character {error.colno}"
        raise _bad(f"the body is not valid JSON at {where}: send one JSON object") from None
    if not isinstance(found, dict):
        raise _bad("the body is not a JSON object: send an object such as {...}")
    return found


def _check_shape(body: bytes) -> None:
    """Count escapes, depth and values before anything is built."""
    if body.count(b"\\") > MAX_ESCAPES:
        raise _bad(f"the body holds more than {MAX_ESCAPES:,} backslashes: send text as UTF-8")
    depth = values = 0
    for number, mark in enumerate(_marks(body)):
        depth += (mark in b"[{") - (mark in b"]}")
        values += mark in b","
        if depth > MAX_DEPTH:
            raise _bad(f"the body nests deeper than {MAX_DEPTH} levels: send a flatter object")
        if values > MAX_VALUES or number > MAX_MARKS * MAX_VALUES:
            raise _bad(f"the body holds more than {MAX_VALUES:,} values: send fewer")


def _marks(body: bytes) -> Iterator[int]:
    """The brackets and commas, and the first quote of each string."""
    place: int | None = 0
    while place is not None:
        tokens, place = _TOKENS.finditer(body, place), None
        for found in tokens:
            yield body[found.start()]
            if found.group() == b'"':
                place = _string_end(body, found.start())
                break


def _string_end(body: bytes, start: int) -> int:
    """The place after a string. `find` is ten times as fast as a pattern: most are pictures."""
    begun = start + 1
    while (quote := body.find(b'"', begun)) >= 0:
        escapes = 0
        if body[quote - 1] == ord("\\"):
            text = body[begun:quote]
            escapes = len(text) - len(text.rstrip(b"\\"))
        if escapes % 2 == 0:
            return quote + 1
        begun = quote + 1
    return len(body)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _bad(f"an object of the body holds more than {MAX_KEYS:,} keys: send fewer")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad("an object of the body has the same key twice: send each key once")
    return found


def _no_constant(name: str) -> Any:
    raise _bad(f"a number of the body is {name}: send finite numbers")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _bad(f"a number of the body has more than {MAX_DIGITS} digits: send a smaller one")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _bad("a number of the body is too large: send numbers below 1e308")
    return number


def _bad(message: str) -> ApiError:
    return ApiError(400, "invalid_json", message)
