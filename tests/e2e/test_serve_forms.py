"""Forms that would take all time or memory are refused or answered while others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.serving import Server, asks, serving

SECONDS = 2.5


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("nano", "--name", "test") as running:
        assert running.chat(asks("Hi"), response_format=regex("a|b")).status_code == 200
        yield running
        running.check_log()


def regex(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "regex": pattern}


def schema(of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": of}}


def nested(depth: int) -> Any:
    found: Any = {"type": "object"}
    for _ in range(depth):
        found = {"anyOf": [found, {"type": "array", "items": found}]}
    return found


FORMS = {
    "nested repeats": regex("(a+)+$"),
    "repeats with an end": regex("(a+)+b"),
    "bounds of bounds": regex("a{1,65535}{1,65535}"),
    "three bounds": regex("((a{1,100}){1,100}){1,100}"),
    "long look back": regex(".*a.{1000}"),
    "many automata": regex("|".join(f"({n}.*x{n})" for n in range(4000))),
    "words": regex(r"(\w{1,200}\s){1,200}"),
    "reference to itself": schema({"$ref": "#"}),
    "references in a ring": schema(
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "endless object": schema({"type": "object", "properties": {"a": {"$ref": "#"}}}),
    "numbers": schema({"enum": list(range(10_000))}),
    "choices": {"type": "choice", "choice": [f"{n}x" * 9 for n in range(1000)]},
    "properties": schema(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}}
    ),
    "long": schema({"type": "array", "minItems": 10_000, "items": {"minLength": 60_000}}),
    "all of": schema({"allOf": [{"pattern": f"^(.*{c}.*)$"} for c in "abcdefghijklmnop"]}),
    "twice as many each time": schema(nested(9)),
    "large regex": regex("a" * 1_000_000),
    "large choice": {"type": "choice", "choice": ["\u00e9" * 30_000] * 100},
    "large schema": schema({"description": "\u00e9" * 4_000_000, "type": "object"}),
    "deep": schema({"items": {"items": {"items": {"$ref": "#/nowhere"}}}}),
}


def memory(server: Server) -> int:
    return 4096 * int(Path(f"/proc/{server.engine}/statm").read_text().split()[1])


def test_hostile_forms_hold_up_nobody(server: Server):
    before, others = memory(server), []
    over = threading.Event()

    def others_ask() -> None:
        while not over.is_set():
            begun = time.monotonic()
            assert server.chat(asks("Hi"), max_tokens=2).status_code == 200
            others.append(time.monotonic() - begun)

    client = threading.Thread(target=others_ask)
    client.start()
    took = {}
    try:
        for name, form in FORMS.items():
            begun = time.monotonic()
            answer = server.chat(asks("Hi"), max_tokens=6, response_format=form)
            took[name] = time.monotonic() - begun
            assert answer.status_code in (200, 400), (name, answer.text)
            if answer.status_code == 400:
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("invalid_schema", "response_format"), (
                    name
                )
                assert len(error["message"]) < 500
    finally:
        over.set()
        client.join()
    assert max(took.values()) < 2 * SECONDS, took  # twice, for a busy machine
    assert max(others) < 2 * SECONDS
    assert len(others) > len(FORMS) / 2
    assert memory(server) - before < 200 * 2**20


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_long_raw_prompts_are_refused_unread(server: Server, path: str):
    """In JSON between our processes each of these characters takes six bytes."""
    body = {"model": "test", "prompt": "\u00e9" * 14_000_000}
    begun = time.monotonic()
    answer = server.post(path, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert time.monotonic() - begun < 5
    assert server.metrics()["vl2_engine_restarts"] == 0
