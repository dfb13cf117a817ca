"""The whole life on the command line: three stages, each from the one before, then an answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from vl2.cli import main
from vl2.config import VL2Config
from vl2.data.collate import TrainBatch
from vl2.failure import WorkError
from vl2.model.vl2 import VL2Model
from vl2.parallel.mesh import ALONE
from vl2.recipes.stages import RECIPES
from vl2.train.export import export
from vl2.train.origin import find_origin
from vl2.train.task import LanguageTask, StepReport
from vl2.train.trainer import Trainer

ROOT = Path(__file__).parents[2]
QUICK = ("data.sources.0.rows=24", "steps=6", "checkpoint.every=3", "log_every=2")


def train(folder: Path, *words: str) -> int:
    """Run the command in `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return main(["train", *words])
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the three debug stages have run."""
    folder = tmp_path_factory.mktemp("life")
    for stage in ("align", "pretrain", "sft"):
        assert train(folder, f"debug_{stage}", *QUICK) == 0
    return folder


@pytest.mark.slow
def test_three_stages_end_in_a_model_that_answers(life: Path, capfd: pytest.CaptureFixture[str]):
    model = life / "runs" / "debug_sft" / "model"
    picture = ROOT / "examples" / "sample.png"
    words = ["ask", str(picture), "Read the text.", "--model", str(model), "--json"]
    assert main([*words, "--max-tokens", "8"]) == 0
    assert "text" in json.loads(capfd.readouterr().out)
    history = json.loads((model / "training.json").read_text())
    assert history == {"stages": ["align", "pretrain", "sft"]}


@pytest.mark.slow
@pytest.mark.timeout(180)  # the promise: three whole stages and an answer in three minutes
def test_the_whole_debug_recipes_and_an_answer(tmp_path: Path, full: bool):
    steps = 40 if full else 12
    picture = str(ROOT / "examples" / "sample.png")
    few = [] if full else [f"steps={steps}"]
    stages = [["train", f"debug_{stage}", *few] for stage in ("align", "pretrain", "sft")]
    ask = ["ask", picture, "Read the text.", "--model", "runs/debug_sft/model", "--json"]
    for words in (*stages, [*ask, "--max-tokens", "8"]):
        done = subprocess.run(
            [sys.executable, "-m", "vl2", *words], cwd=tmp_path, capture_output=True, check=True
        )
    assert "text" in json.loads(done.stdout)
    runs = [tmp_path / "runs" / f"debug_{stage}" for stage in ("align", "pretrain", "sft")]
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    assert [line["step"] for line in losses] == [steps] * 3
    assert losses[2]["loss"] < losses[0]["loss"]


@pytest.mark.slow
def test_each_run_says_what_trained_and_what_was_handed_over(life: Path):
    tensors = {
        stage: json.loads((life / "runs" / f"debug_{stage}" / "tensors.json").read_text())
        for stage in ("align", "pretrain", "sft")
    }
    assert not any(name.startswith("language.") for name in tensors["align"]["trained"])
    frozen = {n for n in tensors["align"]["frozen"] if not n.startswith("language.")}
    assert all(name.startswith("vision.attn_pool") for name in frozen)
    for stage in ("pretrain", "sft"):
        assert all(n.startswith("vision.attn_pool") for n in tensors[stage]["frozen"])
        assert tensors[stage]["handed_over_from"].endswith("model")
    lines = (life / "runs" / "debug_sft" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 6
    assert {"loss", "loss/synthetic easy", "load_text", "load_image", "dead_text"} <= last.keys()


@pytest.mark.slow
def test_a_runs_kept_state_is_converted_to_released_files(
    life: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    from safetensors.torch import load_file

    run = life / "runs" / "debug_sft"
    assert main(["convert", str(run), str(tmp_path / "last")]) == 0
    assert main(["convert", str(run / "checkpoints" / "step-00000003"), str(tmp_path / "3")]) == 0
    assert "step 6 of" in capfd.readouterr().out
    [final] = sorted((run / "model").glob("*.safetensors"))
    [last], [third] = (sorted((tmp_path / n).glob("*.safetensors")) for n in ("last", "3"))
    assert last.read_bytes() == final.read_bytes()
    assert load_file(third).keys() == load_file(final).keys()
    assert third.read_bytes() != final.read_bytes()
    assert main(["convert", str(run), str(tmp_path / "last")]) == 2
    assert "is not empty" in capfd.readouterr().err


@pytest.mark.slow
def test_a_finished_run_changes_nothing_when_started_again(life: Path):
    model = life / "runs" / "debug_align" / "model"
    before = {f.name: f.read_bytes() for f in model.glob("*.safetensors")}
    assert train(life, "debug_align", *QUICK) == 0
    assert before
    assert {f.name: f.read_bytes() for f in model.glob("*.safetensors")} == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.seed=5", "data.seed was 0, is 5;"),
        ("seed=5", "seed was 0, is 5;"),
        ("optim.weight_decay=0.2", "optim.weight_decay was 0.1, is 0.2;"),
        ("optim.betas=[0.8, 0.9]", "optim.betas was [0.9, 0.95], is [0.8, 0.9];"),
        ("balance.bias_step=0.01", "balance.bias_step was 0.0, is 0.01;"),
        ("lora={rank: 8, targets: [projector]}", "lora.rank was None, is 8;"),
        ("init.preset=debug_tiny", "init.preset was 'debug_base', is 'debug_tiny', with another"),
    ],
)
def test_a_run_with_other_settings_in_the_same_folder_is_refused_and_stays(
    word: str, message: str, life: Path, capfd: pytest.CaptureFixture[str]
):
    run = life / "runs" / "debug_align"
    before = contents(run)
    assert train(life, "debug_align", *QUICK, word) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert contents(run) == before


@pytest.mark.slow
def test_a_run_whose_states_are_all_damaged_is_refused_and_stays(
    life: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = tmp_path / "runs" / "debug_align"
    shutil.copytree(life / "runs" / "debug_align", run)
    for file in run.glob("checkpoints/*/extra.json"):
        file.write_text("{}")
    before = contents(run)
    assert train(tmp_path, "debug_align", *QUICK) == 2
    assert "is damaged (steps 3, 6;" in capfd.readouterr().err
    assert contents(run) == before


@pytest.mark.slow
def test_a_run_that_learnt_nothing_fails_and_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    accumulate = LanguageTask.accumulate

    def spoilt(task: LanguageTask, batches: Sequence[TrainBatch]) -> StepReport:
        return replace(accumulate(task, batches), loss=float("nan"))

    monkeypatch.setattr(LanguageTask, "accumulate", spoilt)
    assert train(tmp_path, "debug_align", *QUICK, "steps=2", "checkpoint.every=1") == 1
    assert "3 bad steps in a row" in capfd.readouterr().err
    run = tmp_path / "runs" / "debug_align"
    assert not (run / "model").exists()
    assert not list((run / "checkpoints").glob("step-*"))


def test_numbers_that_are_not_finite_are_not_exported(tmp_path: Path):
    model = VL2Model(VL2Config.preset("debug_tiny"))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.language.lm_head.weight[3, 5] = float("nan")
    config = replace(RECIPES["debug_align"](), out=str(tmp_path / "run"))
    trainer = mock.Mock(spec=Trainer, ranks=ALONE, step=7, task=LanguageTask(model, config.balance))
    with pytest.raises(WorkError, match=r"language\.lm_head\.weight has numbers .* step 7"):
        export(trainer, config, find_origin(config))
    assert list(tmp_path.iterdir()) == []


def llava(folder: Path, rows: list[dict]) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("debug_alin",), "no recipe and no file 'debug_alin'"),
        (("debug_align", "stepz=3"), "no setting 'stepz'; did you mean 'steps'"),
        (("debug_align", "steps=many"), "steps is 'many': expected a whole number"),
        (("debug_align", "optim.learning_rate=0"), "learning_rate is 0.0"),
        (("debug_align", "init.preset=huge"), "no preset 'huge'"),
        (("debug_align", "init.tokenizer=null"), "needs init.tokenizer"),
        (("debug_align", "init.model=nano"), "give exactly one"),
        (("debug_pretrain",), "no run at runs/debug_align"),
        (("tiny_sft", "init.model=nano"), "no data: give data.sources.0.path"),
        (("debug_align", "data.sources=[]"), "data.sources is empty"),
        (("nano_sft", "data.sources.0.path=none.json", "data.sources.0.format=llava"), "none.json"),
        (("debug_align", "data.sources.0.path=hard"), "expected a kind, one of easy, drills"),
        (("debug_align", "data.micro_batch=3"), "multiple of micro_batch"),
        (("nano_lora", "data.sources.0.path=x.json", "balance.bias_step=0.1"), "with lora"),
    ],
)
def test_what_is_wrong_is_one_line_before_a_folder_is_made(
    words: tuple[str, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert train(tmp_path, *words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.glob("runs/*/checkpoints")) == []


def test_data_without_answers_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = llava(tmp_path, [{"id": 1, "conversations": [{"from": "human", "value": "Hello?"}]}])
    words = (f"data.sources.0.path={file}", "data.sources.0.format=llava")
    assert train(tmp_path, "nano_sft", *words) == 2
    assert "has no answers" in capfd.readouterr().err


def test_stages_out_of_order_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from vl2.checkpoint.load import load_model
    from vl2.checkpoint.save import save_model
    from vl2.processing.processor import Processor

    tuned = tmp_path / "tuned"
    save_model(load_model("nano", device="cpu"), tuned)
    Processor.from_pretrained("nano").save_pretrained(tuned)
    (tuned / "training.json").write_text('{"stages": ["align", "pretrain", "sft"]}')
    assert train(tmp_path, "nano_pretrain", f"init.model={tuned}") == 2
    assert "the order is align, pretrain, sft" in capfd.readouterr().err


def test_a_quantised_start_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["convert", "nano", str(tmp_path / "small"), "--quantization", "int8"]) == 0
    assert train(tmp_path, "nano_pretrain", f"init.model={tmp_path / 'small'}") == 2
    assert "is quantised to int8" in capfd.readouterr().err


@pytest.mark.parametrize("recipe", ["base_pretrain", "tiny_lora", "debug_align"])
def test_a_dry_run_prints_settings_and_estimates(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    start = () if recipe == "debug_align" else ("init.model=null", "init.tokenizer=nano")
    size = () if recipe == "debug_align" else (f"init.preset={recipe.split('_')[0]}",)
    assert train(tmp_path, recipe, *start, *size, "--dry-run", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["config"]["name"] == recipe
    counts = found["parameters"]
    if recipe == "base_pretrain":
        assert counts["trained"] + counts["frozen"] == 27_480_134_248 - 29 * 72  # biases: buffers
        assert found["config"]["steps"] == 57_874
    if recipe == "tiny_lora":
        assert 0 < counts["trained"] < 0.03 * counts["frozen"]
    assert found["memory_bytes"]["total"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_the_rows_that_cannot_be_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    turns = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    file = llava(tmp_path, [{"conversations": turns}] * 3 + [{"conversations": turns[:1]}])
    words = (f"data.sources=[{{path: {file}}}]", "--dry-run", "--json")
    assert train(tmp_path, "nano_lora", *words) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["data"] == {file.stem: {"rows": 4, "unusable": 1, "too_long": 0}}
    assert f"{file} line" in err
    assert "the conversation has no answers" in err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_adapters_on_the_busiest_experts(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    few = ("data.sources=[{path: easy, format: synthetic, rows: 16}]", "steps=2")
    profile = tmp_path / "profile.json"
    assert train(tmp_path, "nano_lora", *few, "--profile", str(profile)) == 0
    assert not (tmp_path / "runs" / "nano_lora" / "model").exists()
    words = (f"lora.experts={profile}", "lora.expert_share=0.25", "lora.targets=[experts]")
    assert train(tmp_path, "nano_lora", *few, *words) == 0
    names = json.loads((tmp_path / "runs" / "nano_lora" / "tensors.json").read_text())["trained"]
    assert names
    assert all(".experts." in name for name in names)
    adapter = (tmp_path / "runs" / "nano_lora" / "adapter" / "adapter_model.safetensors").stat()
    assert adapter.st_size > 0
    capfd.readouterr()
    profile.write_text("{}")
    assert train(tmp_path, "nano_lora", *few, *words, "out=other") == 2
    assert "profile" in capfd.readouterr().err


@pytest.mark.slow
def test_stopped_runs_go_on_bit_for_bit():
    script = ROOT / "scripts" / "resume_check.py"
    words = [sys.executable, str(script), "--steps", "6", "--stops", "2,5", "--workers", "0,2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=110)
    result = json.loads(done.stdout)
    assert result["bitwise_equal"] is True, result["first_difference"]
    assert result["runs_compared"] == 4
    assert done.returncode == 0
