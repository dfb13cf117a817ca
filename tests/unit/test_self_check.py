"""The check of an engine against itself: agreement is shown, and a defect is found where it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.small_engines import MIXED, engine_of, random_model

from vl2.engine.self_check import ENDED, SelfCheck, check_golden, first_difference, golden_folders

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


@pytest.fixture
def check() -> SelfCheck:
    engine = engine_of(random_model())
    prompts = [engine.processor(talk) for talk in MIXED]
    return SelfCheck(model=engine.model, processor=engine.processor, prompts=prompts, max_tokens=6)


def test_every_way_of_running_agrees(check):
    found = list(check.run(compiling=False))
    assert [c.name for c in found] == [
        "batch = single",
        "cached = full",
        "chunked = one-shot",
        "reused = computed",
        "guessed = stepped",
        "C = PyTorch",
    ]
    assert all(c.passed and c.prompts == len(MIXED) and c.tokens > 0 for c in found)


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_compiled_model_agrees_and_is_eager_again_afterwards(check):
    *_, compiled = check.run()
    assert compiled.name == "compiled = eager"
    assert compiled.passed
    assert all(part._compiled_call_impl is None for part in check.model.modules())


def test_a_defect_of_batches_is_found_with_its_place_and_margin(check, monkeypatch):
    """Logits of a step of several rows are turned round from the third token on."""
    logits, steps = check.model.language.logits, []

    def broken(hidden):
        scores = logits(hidden)
        steps.append(hidden.shape[1])
        several = [rows for rows in steps if rows == len(MIXED)]
        return -scores if hidden.shape[1] == len(MIXED) and len(several) > 2 else scores

    monkeypatch.setattr(check.model.language, "logits", broken)
    batch, *_ = check.run(compiling=False)
    assert not batch.passed
    assert batch.differing == len(MIXED)
    assert batch.divergence.prompt == 0
    assert batch.divergence.place == 2
    assert batch.divergence.expected != batch.divergence.found
    assert batch.divergence.margin > 0


def test_the_end_of_an_answer_is_a_difference_too():
    assert first_difference([1, 2], [1, 2]) is None
    longer = first_difference([1, 2], [1, 2, 3])
    assert (longer.place, longer.expected, longer.found) == (2, ENDED, 3)


def test_golden_models_pass_and_a_changed_one_does_not(tmp_path):
    folders = golden_folders(GOLDEN)
    assert len(folders) == 4
    passed = check_golden(folders[0], device="cpu")
    assert passed.passed
    assert passed.worst_logit < 2e-4
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folders[0].iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    tensors = load_file(damaged / "model.safetensors")
    tensors["language.model.norm.weight"] = torch.flip(
        tensors["language.model.norm.weight"] + 1, dims=[0]
    )
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    assert not check_golden(damaged, device="cpu").passed


def test_a_folder_without_golden_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no expected\.safetensors"):
        golden_folders(tmp_path)
