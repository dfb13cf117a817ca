"""JSON from outside: bombs are refused in linear time, good JSON is read as it is."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.serve.errors import ApiError
from vl2.serve.strict_json import MAX_DEPTH, MAX_VALUES, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"


BAD = {
    "deep": nested(MAX_DEPTH + 1),
    "deep objects": nested(MAX_DEPTH + 1, b'{"a":', b"}"),
    "very deep": nested(100_000),
    "open": b'{"a":' + b"[" * 100_000,
    "open objects": b'{"a":' * 100_000,
    "many keys": json.dumps({str(n): n for n in range(1_000_000)}).encode(),
    "many values": b'{"a":[' + b"0," * (MAX_VALUES + 1) + b"0]}",
    "keys of one object": json.dumps({str(n): n for n in range(10_001)}).encode(),
    "twice": b'{"a":1,"a":2}',
    "twice below": b'{"b":[{"a":1,"\\u0061":2}]}',
    "large": b'{"a":' + b"9" * 21 + b"}",
    "very large": b'{"a":-' + b"9" * 1_000_000 + b"}",
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":[-Infinity]}',
    "1e999": b'{"a":1e999}',
    "-1e999": b'{"a":-1.5e999}',
    "half key": b'{"\\ud800":1}',
    "half value": b'{"a":"\\udc00x"}',
    "half list": b'{"a":["\\uD83D"]}',
    "wrong order": b'{"a":"\\ude00\\ud83d"}',
    "latin-1": '{"a":"é"}'.encode("latin-1"),
    "utf-16": '{"a":1}'.encode("utf-16"),
    "mark": b'\xef\xbb\xbf{"a":1}',
    "surrogate bytes": b'{"a":"\xed\xa0\x80"}',
    "overlong": b'{"a":"\xc0\xaf"}',
    "escapes": b'{"a":"' + b"\\" * 3_000_001,
    "quotes": b'{"a":"' + b'\\"' * 3_000_000,
    "quotes alone": b'"' * 32_000_000,
    "brackets alone": b"[]" * 16_000_000,
    "brackets and strings": b'{"":[' + b'""[]' * 8_000_000,
    "escape at end": b'{"a":"\\',
    "unknown escape": b'{"a":"\\x41"}',
    "control": b'{"a":"\x00"}',
    "comment": b'{"a":1}//',
    "trailing": b'{"a":1}{"a":1}',
    "comma": b'{"a":1,}',
    "list": b"[]",
    "text": b'"a"',
    "null": b"null",
    "nothing": b"",
    "spaces": b" " * 1_000_000,
    "word": b"{a:1}",
    "single": b"{'a':1}",
    "plus": b'{"a":+1}',
    "zeros": b'{"a":01}',
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json_is_refused_at_once(name: str):
    begun = time.monotonic()
    with pytest.raises(ApiError) as refused:
        loads(BAD[name])
    assert time.monotonic() - begun < 2
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")
    assert len(refused.value.message) < 200


@settings(max_examples=50)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans())
def test_json_is_read_as_it_is(value: dict, ascii_only: bool):
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u01ed8 ', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        found = loads(data)
    except ApiError as error:
        found = None
        told = error.code
    if found is None:
        assert told == "invalid_json"
    else:
        assert found == json.loads(data)


def test_what_is_allowed():
    assert loads(nested(MAX_DEPTH))
    assert len(loads(json.dumps({str(n): n for n in range(10_000)}).encode())) == 10_000
    assert loads(b'{"a":"[[[[' + b"[" * 100_000 + b'"}')["a"].startswith("[[")
    assert loads(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    assert loads(b'{"a":"\\\\ud800"}') == {"a": "\\ud800"}
    assert loads(b'{"a":1e308,"b":-0.0,"c":12345678901234567890}')["c"] == 12345678901234567890
    large = b'{"a":"' + b"QUJD" * 5_000_000 + b'"}'
    begun = time.monotonic()
    assert len(loads(large)["a"]) == 20_000_000
    assert time.monotonic() - begun < 2
    digits = b'{"a":0.' + b"1" * 3_000_000 + b"}"
    begun = time.monotonic()
    assert abs(loads(digits)["a"] - 1 / 9) < 1e-9
    assert time.monotonic() - begun < 2
