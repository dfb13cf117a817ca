"""`vl2 inspect`, `plan` and `convert`: stdout is data, a wrong input is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vl2.checkpoint import report
from vl2.checkpoint.budget import best, plan_memory, system_bytes
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.load import load_model
from vl2.checkpoint.report import find_config
from vl2.cli.convert import convert
from vl2.cli.inspect import inspect
from vl2.cli.plan import plan
from vl2.config import VL2Config
from vl2.model_folder import resolve
from vl2.presets import RELEASED
from vl2.recipes.stages import RECIPES
from vl2.train.setup import plan as planned_run

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
Read = Callable[[], str]


@pytest.fixture
def stdout(capsys: pytest.CaptureFixture[str]) -> Read:
    """Reads what was printed, all of which must be on stdout."""

    def read() -> str:
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return read


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "nano"])
def test_inspect_needs_no_files_for_a_preset(
    preset: str, stdout: Read, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report, "has_embedded", lambda: False)
    inspect(preset, as_json=True)
    data = json.loads(stdout())
    assert data["files"] is None
    assert data["parameters"]["total"] > data["parameters"]["active"]
    inspect(preset)
    text = stdout()
    assert f"{data['parameters']['total']:,} in {data['released_tensors']:,} released" in text
    assert f"1x1 {data['image_tokens']['1x1']}" in text


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_a_released_size_needs_no_network_by_either_name(
    name: str, stdout: Read, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    hub_id = RELEASED[name]
    assert find_config(hub_id) == find_config(name)
    inspect(hub_id)
    assert hub_id in stdout()
    plan(hub_id, memory="80GB")
    assert f"--model {hub_id}" in stdout()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda found, **_: found)
    assert resolve(name) == Path(hub_id)


@pytest.mark.parametrize("model", ["tiny", RELEASED["tiny"]])
def test_a_run_from_a_released_size_is_planned_offline(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    config = RECIPES["tiny_lora"]()
    config = replace(config, init=replace(config.init, model=model))
    assert planned_run(config)["parameters"]["trained"] > 0


@given(st.integers(1, 2**36))
@settings(max_examples=20, deadline=None)
def test_room_is_left_for_the_system(memory: int):
    assert system_bytes(memory) == min(memory // 8, 2 * 2**30)
    budgets = plan_memory(VL2Config.nano(), memory)
    assert all(
        budget.fits == (budget.needed + system_bytes(memory) <= memory) for budget in budgets
    )
    chosen = best(budgets)
    assert chosen is None or chosen.scheme.name != "float32"


def test_inspect_of_base_shows_the_released_figures(stdout: Read):
    inspect("base")
    text = stdout()
    assert "27,480,134,248 in 6,973 released tensors" in text
    assert "51.2 GiB bfloat16" in text
    assert "34,560 bytes/token bfloat16" in text
    assert "1x9 2,101" in text


def test_inspect_of_a_folder_shows_and_checks_its_files(stdout: Read, tmp_path: Path):
    inspect(str(GOLDEN / "base_like"), as_json=True)
    files = json.loads(stdout())["files"]
    assert files["weights"] == ["model.safetensors"]
    assert files["tensors"] == 133
    assert files["bytes"] == {"float32": 4 * 339_000}

    folder = shutil.copytree(GOLDEN / "base_like", tmp_path / "model")
    inspect(str(folder))
    assert "1 with 133 tensors: 1.3 MiB float32" in stdout()
    file = Path(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not an intact safetensors file"):
        inspect(str(folder))
    for weight in Path(folder).glob("*.safetensors"):
        weight.unlink()
    inspect(str(folder), as_json=True)
    assert json.loads(stdout())["files"] is None


def test_plan_shows_what_fits(stdout: Read):
    plan("base", memory="24GiB")
    text = stdout()
    assert "\nmost precise that fits: int4\n" in text
    assert "\nsystem: 2.0 GiB of the memory" in text
    assert text.endswith("--model base --quantization int4\n")
    assert [line.split()[0] for line in text.splitlines()[3:8]] == [
        "float32", "bfloat16", "int8", "float8", "int4",
    ]  # fmt: skip
    plan("tiny", memory="24GiB", context=9000)
    assert "9,000 tokens (trained for 4,096)" in (text := stdout())
    assert text.endswith(
        'bfloat16\nnext: vl2 ask photo.png "What is in the picture?" --model tiny\n'
    )
    with pytest.raises(typer.Exit) as ended:
        plan("base", memory="1GiB")
    assert ended.value.exit_code == 1
    assert "nothing fits: int4 needs 15." in stdout()


def test_plan_as_json_and_of_a_folder(stdout: Read):
    plan(str(GOLDEN / "tiny_like"), memory="2GB", as_json=True)
    data = json.loads(stdout())
    assert data["memory"] == 2 * 10**9
    assert data["system"] == 2 * 10**9 // 8
    assert data["best"] == "float32"
    for scheme in data["schemes"]:
        assert scheme["needed"] == scheme["weights"] + scheme["kv"] + scheme["activations"]
        assert scheme["fits"] == (scheme["max_context"] >= data["context"])
    with pytest.raises(ValueError, match="size is 'much': expected a number and a unit"):
        plan("tiny", memory="much")


def test_convert_changes_dtype_and_shards(stdout: Read, tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(GOLDEN / "base_like", source)
    (source / "tokenizer.json").write_text("{}")
    (source / "processor_config.json").write_text('{"sft_format": "deepseek"}')
    convert(str(source), target, dtype="bfloat16", max_shard_size="200KB")
    assert "133 tensors" in stdout()
    assert len(list(target.glob("model-*-of-*.safetensors"))) >= 4
    assert (target / "tokenizer.json").read_text() == "{}"
    assert (target / "processor_config.json").is_file()
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["DeepseekVLV2ForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    before, after = load_file(source / "model.safetensors"), weights(target)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        held = torch.float32 if key.endswith("correction_bias") else torch.bfloat16
        assert torch.equal(after[key], tensor.to(held)), key


def test_convert_as_json(stdout: Read, tmp_path: Path):
    source = str(GOLDEN / "tiny_like")
    convert(source, tmp_path / "target", as_json=True)
    found = json.loads(stdout())
    assert found["folder"] == str(tmp_path / "target")
    assert found["source"] == source
    assert found["tensors"] == len(weights(tmp_path / "target"))
    assert set(found["bytes"]) == {"float32"}


def test_convert_between_layouts_is_bitwise(stdout: Read, tmp_path: Path):
    source = GOLDEN / "qlora_group_yarn"
    convert(str(source), tmp_path / "stacked", layout="stacked")
    stacked = weights(tmp_path / "stacked")
    assert stacked.keys() == load_model(source).state_dict().keys()
    convert(str(tmp_path / "stacked"), tmp_path / "released", max_shard_size="1MB")
    convert(str(tmp_path / "stacked"), tmp_path / "again", layout="stacked")
    before, after = load_file(source / "model.safetensors"), weights(tmp_path / "released")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[key], stacked[key]) for key in stacked)
    assert len(stdout().splitlines()) == 3


def test_convert_replaces_a_model_only_by_force(stdout: Read, tmp_path: Path):
    source = str(GOLDEN / "tiny_like")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty: give a new folder, or --force"):
        convert(source, tmp_path)
    convert(source, tmp_path, max_shard_size="100KB", force=True)
    convert(source, tmp_path, max_shard_size="1GB", force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "model-00001-of-000001.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
    ]
    load_model(tmp_path)
    assert len(stdout().splitlines()) == 2


def test_convert_refuses_wrong_targets_and_arguments(tmp_path: Path):
    source = GOLDEN / "tiny_like"
    with pytest.raises(ValueError, match="is the source itself: give another folder"):
        convert(str(source), source, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give a folder to write into"):
        convert(str(source), tmp_path / "file")
    with pytest.raises(ValueError, match="dtype is int4: expected auto, float32, bfloat16"):
        convert(str(source), tmp_path / "new", dtype="int4")
    with pytest.raises(ValueError, match="layout is 'flat': expected one of released, stacked"):
        convert(str(source), tmp_path / "new", layout="flat")
    with pytest.raises(ValueError, match="no model at"):
        convert("./nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_wrong_input_ends_with_one_line_and_code_2(tmp_path: Path):
    source = str(GOLDEN / "tiny_like")
    commands = [
        ["inspect", "./nowhere"],
        ["plan", "tiny", "--memory", "24"],
        ["plan", "tiny"],
        ["convert", source, source],
        ["convert", str(GOLDEN), str(tmp_path / "target")],
        ["convert", source, str(tmp_path / "target"), "--dtype", "bfloat16"],
    ]
    script = "import json, sys; from vl2.cli import main; "
    script += "print([main(command) for command in json.loads(sys.argv[1])])"
    run = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 2, 2, 0]"
    assert len(done.stdout.splitlines()) == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error"] * 5
