"""Adapters on every form that weights are held in: the same layers, the same changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.small_models import small_model
from tests.unit.test_lora import EVERYTHING, batch_of, cached_logits, copied, same, train

from vl2.checkpoint.load import load_model
from vl2.checkpoint.lora_files import adapters, load_lora, save_lora
from vl2.checkpoint.save import save_model
from vl2.model.lora import lora_layers
from vl2.model.quantized import default_plan, quantize_modules
from vl2.model.vl2 import VL2Model
from vl2.recipes.stages import RECIPES
from vl2.train.config import TrainConfig
from vl2.train.lora import LoraConfig, apply_lora, merge_lora, unmerge_lora
from vl2.train.origin import FLOAT_IN_TRAINING
from vl2.train.routing_profile import profile_routing, save_profile
from vl2.train.select import check_targets

FLOATS = ("plain", "stored")
FORMS = (*FLOATS, "int8", "float8", "int4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose file holds bfloat16, as the released ones do."""
    path = tmp_path_factory.mktemp("model")
    save_model(small_model().bfloat16(), path)
    return path


def loaded(folder: Path, form: str) -> VL2Model:
    stored = "bfloat16" if form == "stored" else None
    model = load_model(folder, "float32", "cpu", storage_dtype=stored)
    if form not in FLOATS:
        quantize_modules(model, default_plan(model, form, kept=FLOAT_IN_TRAINING))
    return model


def adapted(folder: Path, form: str, **settings: object) -> VL2Model:
    model = loaded(folder, form)
    config = LoraConfig(**{"rank": 4, "targets": EVERYTHING, **settings})
    apply_lora(model, config, torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_the_same_layers_are_adapted_whatever_holds_their_weights(form: str, folder: Path):
    plain, model = (adapted(folder, name) for name in ("plain", form))
    assert lora_layers(model).keys() == lora_layers(plain).keys()
    pairs = zip(adapters(plain), adapters(model), strict=True)
    for one, other in pairs:
        assert (one.name, one.scale) == (other.name, other.scale)
        assert torch.equal(one.a, other.a)
        assert one.b.shape == other.b.shape
    before = copied(model)
    losses = train(model)
    after = model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert losses[-1] < losses[0]
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("form", FORMS)
def test_trained_adapters_load_into_every_form(form: str, folder: Path, tmp_path: Path):
    model = adapted(folder, "plain")
    train(model)
    save_lora(model, tmp_path, base_model="nano")
    other = loaded(folder, form)
    bare = other(**batch_of(other)).logits
    load_lora(other, tmp_path)
    assert [a.name for a in adapters(other)] == [a.name for a in adapters(model)]
    found = other(**batch_of(other)).logits
    if form in FLOATS:  # float32 products with the numbers of the file
        torch.testing.assert_close(found, model(**batch_of(model)).logits, atol=2e-5, rtol=0)
    assert (found - bare).abs().max() > 0.5
    ids = torch.randint(12, 60, (1, 6))
    with torch.inference_mode():
        torch.testing.assert_close(cached_logits(other, ids), other(ids).logits, atol=0.05, rtol=0)


@pytest.mark.parametrize("form", FLOATS)
def test_floats_of_both_kinds_merge_to_the_same_model(form: str, folder: Path, tmp_path: Path):
    model = adapted(folder, form)
    train(model)
    before, unmerged = copied(model), model(**batch_of(model)).logits
    merged = merge_lora(model)
    assert model.state_dict().keys() == loaded(folder, form).state_dict().keys()
    # A matrix in bfloat16 takes its change rounded once.
    within = 1e-5 if form == "plain" else 0.05
    torch.testing.assert_close(model(**batch_of(model)).logits, unmerged, atol=within, rtol=0)
    save_model(model, tmp_path)
    assert same(load_model(tmp_path, "float32", "cpu").state_dict(), widened(model))
    unmerge_lora(model, merged)
    assert same(model.state_dict(), before)


def widened(model: VL2Model) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_profile_chooses_experts_in_every_form(form: str, folder: Path, tmp_path: Path):
    file = tmp_path / "profile.json"
    model = loaded(folder, form)
    save_profile(profile_routing(model, [batch_of(model)]), file)
    layers = lora_layers(adapted(folder, form, experts=str(file), expert_share=0.25))
    [stack] = [layer for path, layer in layers.items() if path.endswith("mlp.experts")]
    assert {len(part.experts) for part in stack.stacks().values()} == {4}


def config_of(stage: str, *targets: str) -> TrainConfig:
    config = RECIPES[f"nano_{stage}"]()
    lora = LoraConfig(targets=targets) if targets else LoraConfig()
    return TrainConfig(name="x", stage=config.stage, steps=1, lora=lora)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ((), "attention, dense, experts"),
        (("experts",), "experts"),
        (("projector", "dense"), "dense"),
    ],
)
def test_what_a_stage_freezes_gets_no_adapters(targets: tuple[str, ...], named: str):
    wanted = rf"has {named}, which stage 'align' freezes: give lora\.targets=\[projector,vision\]"
    with pytest.raises(ValueError, match=wanted):
        check_targets(config_of("align", *targets))


def test_what_a_stage_trains_gets_adapters():
    check_targets(config_of("align", "projector", "vision"))
    check_targets(config_of("align", "vision"))
    for stage in ("pretrain", "sft"):
        check_targets(config_of(stage, *EVERYTHING))
