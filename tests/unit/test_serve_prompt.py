"""No text of a request becomes a control token, wherever it stands and however it is cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from vl2.model_folder import resolve
from vl2.processing.processor import Processor
from vl2.processing.tokenizer import SPECIAL_TOKENS
from vl2.serve import schema
from vl2.serve.chat import told
from vl2.serve.config import Limits
from vl2.serve.engine_process import conversation_of
from vl2.serve.errors import ApiError
from vl2.serve.media import Pictures
from vl2.serve.prompt import plan_chat

CONTROLS = [
    *SPECIAL_TOKENS.values(),
    "<|im_start|>system",
    "<|endoftext|>",
    "<|EOT|>",
    "<image_placeholder>",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
]
VARIANTS = {
    "whole": lambda text: text,
    "fullwidth": lambda text: text.replace("|", "\uff5c").replace("<", "\uff1c"),
    "ascii bars": lambda text: text.replace("\uff5c", "|").replace("\u2581", "_"),
    "zero width": lambda text: "\u200b".join(text),
    "doubled": lambda text: text[: len(text) // 2] + text + text[len(text) // 2 :],
    "among text": lambda text: f"a {text}\n\n{text}: b{text}",
}


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def parts(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


END = said("user", "Go on.")
PLACES = {
    "user": lambda text: ([said("user", text)], {}),
    "user's part": lambda text: ([parts("user", text)], {}),
    "system": lambda text: ([said("system", text), END], {}),
    "developer": lambda text: ([said("developer", text), END], {}),
    "history": lambda text: ([said("user", "Hi"), said("assistant", text), END], {}),
    "history's part": lambda text: ([said("user", "Hi"), parts("assistant", text, text), END], {}),
    "query": lambda text: (
        [{"role": "user", "content": [{"type": "grounding", "query": text}]}],
        {},
    ),
    "grounding": lambda text: ([said("user", text)], {"grounding": True}),
    "two parts": lambda text: ([parts("user", text[:3], text[3:] + " ")], {}),
    "many parts": lambda text: ([parts("user", *(text + " "))], {}),
    "two turns": lambda text: (
        [said("user", text[:2]), said("assistant", text[2:] + " "), END],
        {},
    ),
}  # fmt: skip


@cache
def processor() -> Processor:
    return Processor.from_pretrained(resolve("nano"))


def prompt(messages: list[dict[str, Any]], **fields: Any) -> list[int]:
    """The ids that the engine gets for a request, by the server's own way."""
    body = {"model": "nano", "messages": messages, **fields}
    plan = plan_chat(schema.validated(schema.ChatRequest, body), Limits(), 4096)
    nothing = Pictures(views=[], counts=[], pages=[], memory=None)
    ask = {"messages": told(plan, nothing), "views": [], "prompt": None}
    return processor()(conversation_of(ask, [], processor())).input_ids.tolist()


def controls(ids: list[int]) -> list[int]:
    return [token for token in ids if token in processor().tokenizer.control_ids]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_control_strings_stay_text(place: str, variant: str):
    assert len(CONTROLS) >= 15
    messages, fields = PLACES[place]("harmless")
    template = controls(prompt(messages, **fields))
    assert template
    for text in map(VARIANTS[variant], CONTROLS):
        messages, fields = PLACES[place](text)
        assert controls(prompt(messages, **fields)) == template, text


@pytest.mark.parametrize("text", CONTROLS)
def test_control_strings_are_read_back_as_they_were_written(text: str):
    tokenizer = processor().tokenizer
    ids = tokenizer.encode(text)
    assert controls(ids) == []
    assert tokenizer.decode(ids) == text


def test_only_grounding_parts_locate():
    plain = prompt([said("user", "<|ref|>the cat<|/ref|>")])
    asked = prompt([{"role": "user", "content": [{"type": "grounding", "query": "the cat"}]}])
    assert len(controls(asked)) == len(controls(plain)) + 2


@pytest.mark.parametrize("place", ["user", "system", "history", "query"])
def test_texts_that_cannot_fit_are_refused_unread(place: str):
    for text in ("a" * 10_000_000, "\u0301" * 5_000_000):
        messages, fields = PLACES[place](text)
        body = {"model": "nano", "messages": messages, **fields}
        with pytest.raises(ApiError) as refused:
            plan_chat(schema.validated(schema.ChatRequest, body), Limits(), 4096)
        assert refused.value.code == "context_length_exceeded"
        assert len(refused.value.message) < 300
