"""`vl2 serve --adapter`: the base and its adapters under their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, image_part, serving
from tests.e2e.small_model import save_adapter

import vl2

RAMP = Image.linear_gradient("L").resize((200, 100)).convert("RGB")
TALK = asks(image_part(RAMP), "What is it?")
NAMES = ("test", "test:one", "test:two")


@pytest.fixture(scope="module")
def adapters(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, name in enumerate(("one", "two")):
        targets = ("attention", "experts") if seed else ("attention", "projector", "vision")
        found[name] = tmp_path_factory.mktemp("adapter") / name
        save_adapter(model_folder, found[name], seed=seed, targets=targets)
    return found


@pytest.fixture(scope="module")
def options(adapters: dict[str, Path]) -> list[str]:
    return [word for name, path in adapters.items() for word in ("--adapter", f"{name}={path}")]


@pytest.fixture(scope="module")
def server(model_folder: Path, options: list[str]) -> Iterator[Server]:
    with serving(str(model_folder), "--name", "test", *options) as running:
        yield running


def content(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def test_requests_are_answered_by_the_adapter_that_they_name(
    server: Server, adapters: dict[str, Path], model_folder: Path
):
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: server.chat(TALK, model=name).json(), NAMES * 3))
    assert [answer["model"] for answer in found] == list(NAMES * 3)
    texts = [content(answer) for answer in found]
    assert texts == texts[:3] * 3
    assert len(set(texts)) == 3
    engine = vl2.Engine(
        vl2.load_model(model_folder),
        vl2.Processor.from_pretrained(model_folder),
        adapters=adapters,
    )
    parts = [{"type": "image", "image": RAMP}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": parts}]
    params = vl2.SamplingParams(max_tokens=8, repetition_guard=vl2.RepetitionGuard())
    answers = engine.generate([messages] * 3, params, adapter=[None, "one", "two"])
    assert [answer.text for answer in answers] == texts[:3]


def test_models_are_listed_and_others_refused(server: Server):
    with server.client() as client:
        listed = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/test:two").json() == listed[2]
    assert [(model["id"], model["parent"]) for model in listed] == [
        ("test", None),
        ("test:one", "test"),
        ("test:two", "test"),
    ]
    for name in ("one", "test:", "test:three", "other:one"):
        answer = server.chat(TALK, model=name)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert "this server has test, test:one, test:two" in error["message"]


def test_a_batch_has_the_same_adapters(
    server: Server, vl2_command, tmp_path: Path, model_folder: Path, options: list[str]
):
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    lines = [
        json.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": name, "messages": [TALK], "max_tokens": 8},
            }
        )
        for name in NAMES
    ]
    source.write_text("\n".join(lines), encoding="utf-8")
    words = ("batch", source, "-o", target, "-m", model_folder, "--name", "test", *options)
    assert vl2_command(*words)[0] == 0
    for answer in map(json.loads, target.read_text(encoding="utf-8").splitlines()):
        wanted = server.chat(TALK, model=answer["custom_id"]).json()
        assert content(answer["response"]["body"]) == content(wanted)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--adapter", "one"), "--adapter is 'one': expected NAME=FOLDER"),
        (("--adapter", "a=x", "--adapter", "a=y"), "--adapter has 'a' twice"),
        (("--adapter", "a=missing"), "adapter a: missing/adapter_config.json cannot be read"),
        (("--adapter", "a:b=missing"), "the adapter's name is 'a:b'"),
    ],
)
def test_a_start_that_cannot_be_is_told_in_one_line(vl2_command, model_folder, words, told):
    code, out, err = vl2_command("serve", model_folder, "--port", "0", *words)
    assert (code, out) == (2, "")
    assert told in err.splitlines()[-1]
