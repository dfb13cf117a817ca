"""A model's name to its folder: embedded, local, from the hub, and what is no model."""

from __future__ import annotations

import shutil
from inspect import unwrap
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from vl2 import model_folder
from vl2.checkpoint.load import choose_device, load_model
from vl2.config import VL2Config
from vl2.model_folder import resolve
from vl2.processing.processor import Processor

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


def test_embedded_model_is_found_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_folder, "_assets", lambda: tmp_path)
    with pytest.raises(ValueError, match="the embedded model is not in this installation"):
        resolve("nano")
    shutil.copytree(GOLDEN / "tiny_like", tmp_path, dirs_exist_ok=True)
    assert resolve("nano") == tmp_path


def test_hub_id_is_served_from_the_cache_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = "no model at some/model: there is no such folder, and HF_HUB_OFFLINE keeps.*check the"
    with pytest.raises(ValueError, match=found):
        load_model("some/model")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    shutil.copytree(GOLDEN / "tiny_like", snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text(commit)
    assert resolve("some/model") == snapshot
    there, here = load_model("some/model").state_dict(), load_model(snapshot).state_dict()
    assert all(torch.equal(tensor, here[key]) for key, tensor in there.items())


ANSWER = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (GatedRepoError("a\nlong text", response=ANSWER), "only to those whom its authors let in"),
        (RepositoryNotFoundError("a\nlong text", response=ANSWER), "the Hub has none of this name"),
        (LocalEntryNotFoundError("a\nlong text"), "the Hub cannot be reached"),
        (HfHubHTTPError("a\nlong text", response=ANSWER), r"\(HfHubHTTPError\)"),
        (OSError(28, "a\nlong text"), r"\(OSError\)"),
    ],
)
def test_what_the_hub_says_is_told_in_a_few_words(raised: Exception, told: str, monkeypatch):
    def download(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match=told) as refused:
        resolve("some/model")
    assert len(str(refused.value)) < 220
    assert "long text" not in str(refused.value)


def test_only_json_and_safetensors_are_fetched(monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, object]] = []

    def download(_: str, **options: object) -> str:
        asked.append(options)
        return "somewhere"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("some/model") == Path("somewhere")
    resolve("some/model", weights=False)
    assert asked[0]["allow_patterns"] == ["*.json", "*.safetensors"]
    assert asked[1]["allow_patterns"] == ["*.json"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("Tiny", "tiny"), ("tiny/", "tiny"), ("NANO", "nano"), ("smal", "small")),
        *((name, "deepseek-ai/deepseek-vl2-small") for name in (
            "deepseek-vl2-small",
            "deepseek-ai/DeepSeek-VL2-Small",
            "deepseek-ai/deepseek-vl-small",
            "https://huggingface.co/deepseek-ai/deepseek-vl2-small",
        )),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_a_model_s_is_understood(name: str, meant: str, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?"):
        resolve(name)


@pytest.mark.parametrize("path", [None, 3, b"nano", ["nano"]])
def test_what_is_no_name_is_told_in_one_line(path):
    with pytest.raises(ValueError, match=r"model is .*: expected nano, a folder or a hub id"):
        unwrap(resolve)(path)  # without the tests' own check of types
    with pytest.raises(ValueError, match="no model at a b: give"):
        load_model("a\nb")
    with pytest.raises(ValueError, match="device is None: expected auto, cpu"):
        unwrap(choose_device)(None)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", ""])
def test_no_such_model_says_what_to_give(path: str):
    with pytest.raises(ValueError, match=r"give a folder, a hub id|no config\.json"):
        load_model(path)


def write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")


@pytest.mark.parametrize(
    ("names", "asked", "words"),
    [
        ((), "", "is empty: give a model folder"),
        (("notes.txt",), "", "no config.json in .*: give a model folder$"),
        (("a.gguf",), "", "holds GGUF files, which are not supported"),
        (("adapter_config.json",), "", "holds adapters, not a model: .* their base"),
        (("v1/config.json",), "", "such as .*/v1$"),
        (
            ("config.yaml", "checkpoints/step-1/x", "model/config.json"),
            "",
            "is a training run: give its model folder, .*/model$",
        ),
        (
            ("config.yaml", "checkpoints/step-1/x", "model/config.json"),
            "checkpoints/step-1",
            "is a training run: give its model folder, .*/model$",
        ),
        (
            ("config.yaml", "checkpoints/step-1/x"),
            "",
            "has not written a model yet: resume the run, or .*vl2 convert",
        ),
    ],
)
def test_a_folder_without_a_model_says_what_it_is(
    names: tuple[str, ...], asked: str, words: str, tmp_path: Path
):
    write(*(tmp_path / name for name in names))
    for load in (load_model, Processor.from_pretrained, VL2Config.from_pretrained):
        with pytest.raises(ValueError, match=words) as caught:
            load(tmp_path / asked)
        assert "\n" not in str(caught.value)
