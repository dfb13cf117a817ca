"""`vl2 batch`: OpenAI's batch lines answered in this process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.e2e.serving import asks, image_part, serving

from vl2.serve.batch import Request, lines_of, opened
from vl2.serve.config import Limits

WHITE = Image.new("RGB", (200, 100), "white")
SAMPLE = Path(__file__).parents[2] / "examples" / "sample.png"


def line(custom_id: object, *messages: dict[str, Any], **fields: Any) -> str:
    body = {"model": "test", "messages": list(messages), "max_tokens": 8, **fields}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": body})


def answers_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def batch(vl2_command, tmp_path: Path, model_folder: Path):
    """Answer lines with the small model: exit code, stdout, stderr, and the answers in the file."""
    target = tmp_path / "answers.jsonl"

    def run(lines: list[str], *words: object) -> tuple[int, str, str, list[dict[str, Any]]]:
        source = tmp_path / "requests.jsonl"
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        told = vl2_command(
            *("batch", source, "-o", target, "-m", model_folder, "--name", "test", *words)
        )
        return *told, answers_in(target)

    return run


CASES = {
    "text": ({"messages": [asks("Say something.")]}, 200),
    "a picture": ({"messages": [asks(image_part(WHITE), "What is it?")], "tiling": "content"}, 200),
    "boxes": ({"messages": [asks(image_part(SAMPLE), "the circle")], "grounding": True}, 200),
    "drawn": ({"messages": [asks("Hi")], "n": 2, "temperature": 1.0, "seed": 3}, 200),
    "logprobs": ({"messages": [asks("Hi")], "logprobs": True, "top_logprobs": 2}, 200),
    "form": ({"messages": [asks("Hi")], "response_format": {"type": "grounding"}}, 200),
    "field": ({"messages": [asks("Hi")], "tilling": "content"}, 400),
    "model": ({"messages": [asks("Hi")], "model": "gpt"}, 404),
    "too long": ({"messages": [asks("Hi " * 40_000)]}, 400),
    "many": ({"messages": [asks("Hi")], "n": 9}, 400),
    "unreadable": ({"messages": [asks(image_part(b"GIF89a"), "Hi")]}, 400),
    "no picture": ({"messages": [asks(image_part(b"x" * 99), "Hi")]}, 415),
}


def same(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what differs from one request to the next, and by what it is batched with."""
    body = {name: value for name, value in body.items() if name not in ("id", "created")}
    body = json.loads(json.dumps(body), parse_float=lambda digits: round(float(digits), 3))
    if "usage" in body:
        body["usage"]["prompt_tokens_details"]["cached_tokens"] = 0
    return body


def test_a_request_has_the_answer_that_the_server_gives(batch, model_folder: Path):
    lines = [line(name, **fields) for name, (fields, _) in CASES.items()]
    code, out, _, answers = batch(lines, "--json")
    found = {answer["custom_id"]: answer["response"] for answer in answers}
    assert {n: found[n]["status_code"] for n in CASES} == {n: s for n, (_, s) in CASES.items()}
    failed = sum(status != 200 for _, status in CASES.values())
    figures = json.loads(out)
    assert code == 1
    assert (figures["answered"], figures["failed"]) == (len(CASES) - failed, failed)
    with serving(str(model_folder), "--name", "test") as server:
        for one in map(json.loads, lines):
            body = server.post("/v1/chat/completions", one["body"]).json()
            assert same(found[one["custom_id"]]["body"]) == same(body)


def test_a_line_that_is_no_request_is_answered_by_its_error(batch):
    lines = [
        line("a", asks("Hi")),
        "{no JSON",
        "",
        json.dumps({"custom_id": "get", "method": "GET", "url": "/v1/models", "body": {}}),
        json.dumps({"method": "POST", "url": "/v1/chat/completions", "body": {}}),
        line("a", asks("Hi again")),
        line(7, asks("Hi")),
        line("raw", asks("Hi"), stream=True),
    ]
    code, out, err, answers = batch(lines)
    assert (code, out) == (1, "")
    assert "1 of 7 requests answered" in err
    assert "6 of 7 requests failed" in err
    assert [a["custom_id"] for a in answers if a["response"] is None] == [
        *(None, "get", None, "a", None)
    ]
    assert len({answer["id"] for answer in answers}) == 7
    for answer in answers:
        assert set(answer) == {"id", "custom_id", "response", "error"}
        if answer["response"] is None:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
            assert answer["error"]["message"].startswith("line ")
    assert batch(lines)[3] == answers  # nothing is asked again, errors neither


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path):
    file = tmp_path / "requests.jsonl"
    lines = [line("a", asks("Hi")), "", line("b", asks("Hi"))]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = list(lines_of(file, Limits()))
    assert [one.custom_id for one in found] == ["a", "b"]
    assert all(isinstance(one.request, Request) for one in found)


def test_raw_prompts_are_continued(batch):
    body = {"model": "test", "prompt": "<|User|>: Hi\n\n<|Assistant|>:", "max_tokens": 6}
    raw = {"custom_id": "raw", "method": "POST", "url": "/v1/completions", "body": body}
    code, _, _, answers = batch([json.dumps(raw), line("chat", asks("Hi"), max_tokens=6)])
    texts = {a["custom_id"]: a["response"]["body"]["choices"][0] for a in answers}
    assert code == 0
    assert texts["raw"]["text"] == texts["chat"]["message"]["content"]


def test_half_a_line_is_dropped_and_answered_again(batch, tmp_path: Path):
    lines = [line(f"id {n}", asks(f"Say {n}.")) for n in range(4)]
    whole = batch(lines)[3]
    file = tmp_path / "answers.jsonl"
    data = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(data[:2]) + data[2][:50])
    code, _, err, again = batch(lines)
    assert code == 0
    assert "4 of 4 requests answered, 2 of them by earlier runs" in err
    assert again[:2] == whole[:2]
    assert sorted(a["custom_id"] for a in again) == [f"id {n}" for n in range(4)]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, model_folder: Path):
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    ids = [f"id {n}" for n in range(40)]
    asked = [line(one, asks(image_part(WHITE), f"Say {one}."), max_tokens=40) for one in ids]
    source.write_text("\n".join(asked), encoding="utf-8")
    command = [sys.executable, "-m", "vl2", "batch", source, "-o", target, "-m", model_folder]
    command += ["--name", "test", "engine.max_num_seqs=2"]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while not (target.exists() and target.read_bytes().count(b"\n") >= 3):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    first = target.read_bytes().count(b"\n")
    assert 3 <= first < len(ids)
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert f"40 of 40 requests answered, {first} of them by earlier runs" in done.stderr
    assert sorted(a["custom_id"] for a in answers_in(target)) == sorted(ids)


@pytest.mark.parametrize(
    ("requests", "answers", "told"),
    [
        ("none.jsonl", "o", "none.jsonl cannot be read (No such file or directory)"),
        (".", "o", "cannot be read (Is a directory)"),
        ("requests.jsonl", ".", ": this is a folder: give a file name"),
        ("requests.jsonl", "none/o", "/none: make it first"),
        ("requests.jsonl", "requests.jsonl/o", "requests.jsonl is a file: give a folder"),
        ("requests.jsonl", "requests.jsonl", "holds the requests"),
        ("requests.jsonl", "/dev/full", "/dev/full is a device or a pipe"),
        ("/dev/zero", "o", "/dev/zero is a device or a pipe"),
    ],
)
def test_files_that_cannot_be_used_are_told_before_the_model_is_loaded(
    vl2_command, tmp_path: Path, requests: str, answers: str, told: str
):
    (tmp_path / "requests.jsonl").write_text(line("a", asks("Hi")), encoding="utf-8")
    words = ("batch", tmp_path / requests, "-o", tmp_path / answers, "-m", "no such model")
    code, out, err = vl2_command(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert [file.name for file in tmp_path.iterdir()] == ["requests.jsonl"]


def test_a_place_that_takes_no_file_is_told():
    with pytest.raises(ValueError, match="/proc/o cannot be written"), opened(Path("/proc/o")):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux stands for a full disk")
def test_a_full_disk_stops_a_run_that_goes_on_later(tmp_path: Path, model_folder: Path):
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    source.write_text("\n".join(line(f"{n}", asks("Hi")) for n in range(4)), encoding="utf-8")
    command = [sys.executable, "-m", "vl2", "batch", str(source), "-o", str(target)]
    command += ["-m", str(model_folder), "--name", "test"]
    for most, code in ((1500, 1), (resource.RLIM_INFINITY, 0)):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most)),
        )
        assert done.returncode == code, done.stderr
        if code:
            last = done.stderr.splitlines()[-1]
            assert last.startswith("error: the answers cannot be written (File too large): make")
            assert "Traceback" not in done.stderr
            assert target.stat().st_size <= most
    assert sorted(a["custom_id"] for a in answers_in(target)) == ["0", "1", "2", "3"]


def test_wrong_files_are_told_in_one_line(vl2_command, tmp_path: Path, model_folder: Path):
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    words = ("batch", source, "-o", target, "-m", model_folder)
    code, out, err = vl2_command(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "requests.jsonl cannot be read" in err
    source.write_text(line("a", asks("Hi")), encoding="utf-8")
    target.write_text('{"some": "line"}\n', encoding="utf-8")
    code, out, err = vl2_command(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "answers.jsonl line 1 is no answer" in err
    assert target.read_text(encoding="utf-8") == '{"some": "line"}\n'
    code, _, err = vl2_command(*words[:3], source, *words[4:])
    assert code == 2
    assert "holds the requests" in err
