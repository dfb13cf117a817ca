"""Every field with values that it does not take: one line, in OpenAI's shape, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vl2.serve import schema
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError, shown
from vl2.serve.prompt import plan_chat
from vl2.serve.strict_json import loads

MESSAGES = [{"role": "user", "content": "Hi"}]
VECTORS: list[Any] = [
    10**9, 10**19, -1, 0, 1, 1.5, -0.0, 1e308, "5", "", None, True, False, [], {}, [1], {"a": 1},
    "\u0000", "x" * 100_000, [[[[]]]], math.nan, math.inf,
]  # fmt: skip
TAKEN: dict[str, list[Any]] = {
    "n": [1, None],
    "seed": [10**9, 0, 1, None],
    "temperature": [0, 1, 1.5, -0.0, None],
    "top_p": [1, None],
    "top_k": [10**9, 0, 1],
    "min_p": [0, 1, -0.0],
    "presence_penalty": [-1, 0, 1, 1.5, -0.0, None],
    "frequency_penalty": [-1, 0, 1, 1.5, -0.0, None],
    "repetition_penalty": [1, 1.5],
    "max_tokens": [10**9, 1, None],
    "max_completion_tokens": [10**9, 1, None],
    "min_tokens": [0, 1],
    "timeout": [10**9, 10**19, 1, 1.5, 1e308, None],
    "top_logprobs": [None],
    "max_tiles": [1, None],
    "stop": [None, [], "5", "\u0000"],
    "stream": [True, False, None],
    "logprobs": [True, False, None],
    "grounding": [True, False],
    "repetition_guard": [True, False],
    "tools": [None, []],
    "modalities": [None],
}


def plan(**fields: Any) -> Any:
    """What the server makes of a chat request before it reads pictures."""
    body = {"model": "m", "messages": MESSAGES, **fields}
    return plan_chat(schema.validated(schema.ChatRequest, body), Limits(), 4096)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        plan(**fields)
    error = refused.value
    assert error.status == 400
    assert "\n" not in error.message
    assert len(error.message) < 500
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    assert error.body["error"]["type"] == "invalid_request_error"
    json.dumps(error.body, allow_nan=False).encode()
    return error


def check_refused(work: Callable[[], object]) -> None:
    """Do it; an error, if there is one, is one of ours."""
    error = None
    try:
        work()
    except ApiError as refused:
        error = refused
    if error is not None:
        assert error.status in (400, 413)
        assert "\n" not in error.message
        json.dumps(error.body, allow_nan=False).encode()


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or a is b)


@pytest.mark.parametrize("name", TAKEN)
def test_numbers_are_taken_or_refused(name: str):
    for value in VECTORS:
        if any(same(value, taken) for taken in TAKEN[name]):
            plan(**{name: value})
        else:
            error = refusal(**{name: value})
            told = f"{error.param} {error.message}".replace("completion_", "")
            assert name.replace("completion_", "") in told, value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "a" * 129}, "stop"),
        ({"stop": ["a", "b" * 129]}, "stop[1]"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"best_of": 3}, "best_of"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": MESSAGES * 257}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": "Hi"}, "messages"),
        ({"model": None}, "model"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "choice", "choice": ["a"] * 1001}}, "response_format.choice"),
        ({"response_format": {"type": "regex", "regex": "a" * 70_000}}, "response_format"),
    ],
)
def test_limits_name_their_field(fields: dict[str, Any], param: str):
    assert refusal(**fields).param == param


def test_what_is_within_the_limits_is_taken():
    assert plan(n=8).params.n == 8
    assert plan(stop=["a" * 128] * 4).params.stop == ("a" * 128,) * 4
    assert plan(top_logprobs=20, logprobs=True).params.logprobs == 20


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [1] * 20_000}]},
        {"messages": [{"role": "user", "content": [{}] * 20_000}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}] * 20_000}]},
        {"messages": [1] * 20_000},
        {"stop": [1] * 20_000},
        {"response_format": {"type": "choice", "choice": [1] * 20_000}},
    ],
)
def test_of_many_mistakes_the_first_is_enough(fields: dict[str, Any]):
    """Each one costs more than the value that made it, and one client could hold up all others."""
    with pytest.raises(ValidationError) as refused:
        schema.ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **fields})
    assert refused.value.error_count() < 20


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text", "text": "a", "font": 1}, "font"),
        ({"type": "text", "text": 1}, "text"),
        ({"type": "text"}, "text"),
        ({"type": "image_url", "image_url": {"url": "a"}, "detail": "low"}, "detail"),
        ({"type": "image_url", "image_url": {"url": "a", "size": 3}}, "image_url.size"),
        ({"type": "file", "file": {"file_data": "a", "dpi": 0}}, "file.dpi"),
        ({"type": "grounding", "query": ""}, "query"),
    ],
)
def test_a_wrong_field_of_a_part_is_named_by_its_path(part: dict[str, Any], param: str):
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert error.param == f"messages[0].content[0].{param}"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": 1.5}, "max_tokens is 1.5: expected a whole number"),
        ({"max_tokens": 0}, "max_tokens is 0: expected at least 1"),
        ({"temperature": 3}, "temperature is 3: expected at most 2"),
        ({"stream": "yes"}, "stream is 'yes': expected true or false"),
        ({"messages": "hi"}, "messages is 'hi': expected a list"),
        ({"response_format": "json"}, "response_format is 'json': expected an object"),
        ({"stream_options": 3}, "stream_options is 3: expected an object"),
        ({"max_token": 1}, "max_token is no field of this request: leave it out; did you mean"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_what_is_expected_is_told_in_plain_words(fields: dict[str, Any], told: str):
    assert refusal(**fields).message.startswith(told)


def test_a_part_of_an_unknown_type_is_told_with_its_type():
    part = {"type": "input_image", "image_url": "x"}
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert "type is 'input_image': expected one of 'text', 'image_url'" in error.message


def test_only_a_near_name_is_proposed():
    assert refusal(reasoning_effort="low").message.endswith("leave it out")


@pytest.mark.parametrize("name", ["x" * 100_000, "\n", "__class__", "a\u202eb", "", "0"])
def test_unknown_fields_are_told_in_one_line(name: str):
    assert refusal(**{name: 1}).code == "unknown_parameter"


@settings(max_examples=60)
@given(st.dictionaries(
    st.sampled_from(sorted(schema.ChatRequest.model_fields)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "url", "image_url", "schema"]),
            inner, max_size=3),
        max_leaves=12,
    ),
    max_size=4,
))  # fmt: skip
def test_any_fields_are_taken_or_refused(fields: dict[str, Any]):
    check_refused(lambda: plan(**fields))


@pytest.mark.parametrize(
    "kind",
    [
        schema.CompletionRequest,
        schema.TokenizeRequest,
        schema.LayoutRequest,
        schema.PagesRequest,
    ],
)
@settings(max_examples=20)
@given(data=st.data())
def test_other_requests_are_taken_or_refused(kind: type[schema.Strict], data: st.DataObject):
    values = st.sampled_from(VECTORS)
    fields = data.draw(st.dictionaries(st.sampled_from(sorted(kind.model_fields)), values))
    check_refused(lambda: schema.validated(kind, fields))


def test_values_are_shown_short():
    for value in VECTORS:
        assert len(shown(value)) <= 80
    assert loads(b'{"a":"\\u2028"}')["a"] == "\u2028"
    assert "\n" not in shown("a\nb")


def test_of_a_large_value_no_more_is_written_than_is_shown():
    written = []

    class Loud:
        def __repr__(self) -> str:
            written.append(1)
            return "x"

    for value in ([Loud()] * 1000, {n: Loud() for n in range(1000)}, [[[Loud()] * 1000] * 1000]):
        assert len(shown(value)) <= 80
    assert len(written) < 1000
    for small in ([1, "a", None], {"b": 1, "a": [2.5]}, "text", 10**19, -0.0, [{}]):
        assert shown(small) == repr(small) or isinstance(small, dict)
