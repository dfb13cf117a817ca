"""Traces over HTTP: the schema of docs/serving.md, with the numbers of the engine's own."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, image_part, serving

import vl2

WIDE = Image.linear_gradient("L").resize((300, 90)).convert("RGB")
TALK = asks(image_part(WIDE), image_part(WIDE.rotate(90, expand=True)), "What is it?")
FIELDS = {"max_tokens": 7, "min_tokens": 7, "tiling": "released"}


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Server]:
    with serving(str(model_folder), "--name", "test") as running:
        yield running


def array(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype=np.uint8).reshape(shape)


def stream(server: Server, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "test", "messages": [TALK], "stream": True, **FIELDS, **fields}
    with (
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    return [json.loads(line) for line in lines[:-1]]


def test_a_trace_has_the_documented_schema_and_the_engine_s_numbers(server: Server, model_folder):
    plain = server.chat(TALK, **FIELDS).json()
    traced = server.chat(TALK, trace=True, **FIELDS).json()
    message = traced["choices"][0]["message"]
    trace = message.pop("trace")
    assert message == plain["choices"][0]["message"]
    assert "trace" not in plain["choices"][0]["message"]
    assert traced["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    processor = vl2.Processor.from_pretrained(model_folder)
    engine = vl2.Engine(vl2.load_model(model_folder), processor)
    content = [
        {"type": "image", "image": WIDE},
        {"type": "image", "image": WIDE.rotate(90, expand=True)},
        {"type": "text", "text": "What is it?"},
    ]
    params = vl2.SamplingParams(max_tokens=7, min_tokens=7, trace=True)
    [answer] = engine.generate([[{"role": "user", "content": content}]], params)
    assert answer.trace is not None
    tokens, layers, per_token = 7, len(trace["layers"]), trace["experts_per_token"]
    language = engine.model.config.language_config
    assert trace["layers"] == [1]
    assert (trace["experts"], per_token) == (
        language.n_routed_experts,
        language.num_experts_per_tok,
    )
    found = array(trace["token_experts"], tokens, layers, per_token)
    assert np.array_equal(found, answer.trace.token_experts)
    assert len(trace["tokens"]) == len(trace["scale"]) == tokens
    assert "".join(message["content"][a:b] for a, b in trace["tokens"]) == message["content"]
    scale = np.array(trace["scale"])[:, None, None]
    for told, mine, image in zip(
        trace["pictures"], answer.trace.pictures, traced["usage"]["images"], strict=True
    ):
        wide, high, side = told["tiles_wide"], told["tiles_high"], told["side"]
        assert (wide, high) == (image["tiles_wide"], image["tiles_high"])
        assert told["edges"] == [0, 0.25, 0.5, 0.75, 1]
        counts = array(told["tile_experts"], 1 + wide * high, layers, trace["experts"])
        assert np.array_equal(counts, mine.tile_experts)
        assert (counts.sum(axis=2) == side**2 * per_token).all()
        overview = array(told["overview"]["attention"], tokens, side, side) / 255 * scale
        mosaic = array(told["mosaic"]["attention"], tokens, side * high, side * wide) / 255 * scale
        assert (np.abs(overview - mine.overview) <= scale / 400).all()
        assert (np.abs(mosaic - mine.mosaic) <= scale / 400).all()
    assert trace["pictures"][0]["overview"]["area"] == [
        0,
        pytest.approx(0.35, abs=0.01),
        1,
        0.65179,
    ]


def test_a_stream_sends_the_trace_with_the_end(server: Server):
    whole = server.chat(TALK, trace=True, n=2, temperature=1.0, seed=2, **FIELDS).json()
    chunks = stream(
        server, trace=True, n=2, temperature=1.0, seed=2, stream_options={"include_usage": True}
    )
    assert chunks[-1]["choices"] == []
    ends = {c["choices"][0]["index"]: c["choices"][0] for c in chunks[:-1] if has_trace(c)}
    for choice in whole["choices"]:
        end = ends[choice["index"]]
        assert end["finish_reason"] == choice["finish_reason"]
        assert end["delta"]["trace"] == choice["message"]["trace"]
    assert not any(has_trace(c) for c in stream(server))


def has_trace(chunk: dict[str, Any]) -> bool:
    return any("trace" in choice["delta"] for choice in chunk["choices"])


def test_an_answer_with_its_trace_can_be_sent_back(server: Server):
    message = server.chat(TALK, trace=True, **FIELDS).json()["choices"][0]["message"]
    assert server.chat(TALK, message, asks("And now?")).status_code == 200
