"""What a client hears of an answer without an end of its own: by the engine's code alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import pytest

from vl2.engine.admission import unbegun
from vl2.engine.config import ErrorCode, FinishReason
from vl2.serve.answers import Reply
from vl2.serve.engine_process import end_of
from vl2.serve.errors import ApiError

WORDS = "structured output: the context of this; engine_error"
"""Words of every kind of message; none of them decides anything."""

EXPECTED: dict[str, tuple[int, str, str | None]] = {
    "invalid_request": (400, "invalid_request", "messages"),
    "context_length_exceeded": (400, "context_length_exceeded", "messages"),
    "invalid_form": (400, "invalid_schema", "response_format"),
    "out_of_memory": (500, "engine_error", None),
    "engine_error": (500, "engine_error", None),
    "queue_timeout": (503, "queue_timeout", None),
    "timeout": (504, "timeout", None),
    "abort": (500, "engine_error", None),
}


def ended(reason: FinishReason, code: ErrorCode | None = None) -> dict[str, Any]:
    """News of an answer that ended so."""
    return {"answer": 0, "end": end_of(unbegun(0, reason, code, WORDS if code else None))}


def refusal(news: dict[str, Any], **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        Reply(model="m", images=[], **fields).take(news)
    return raised.value


def test_every_code_has_its_answer():
    codes, reasons = get_args(ErrorCode), get_args(FinishReason)
    assert set(EXPECTED) == {*codes, *reasons} - {"stop", "length", "error"}
    for name, (status, code, param) in EXPECTED.items():
        news = ended("error", name) if name in codes else ended(name)  # pyright: ignore[reportArgumentType]
        error = refusal(news)
        assert (error.status, error.code, error.param) == (status, code, param), name
        assert (WORDS in error.message) == (status == 400), name


def test_the_field_that_held_the_question_is_named():
    error = refusal(ended("error", "context_length_exceeded"), kind="text_completion")
    assert error.param == "prompt"


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_has_an_end_of_its_own_is_no_error(reason: FinishReason):
    piece = Reply(model="m", images=[]).take(ended(reason))
    assert piece.end is not None
    assert asdict(piece)["text"] == ""
