"""Routing profiles: what they count, whom they choose, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.unit.small_models import small_model

from vl2.model.lora import lora_layers
from vl2.train.lora import LoraConfig, apply_lora
from vl2.train.routing_profile import chosen_experts, load_profile, profile_routing, save_profile


def test_a_profile_counts_real_tokens_of_each_layer():
    model = small_model(layers=3).train()
    ids = torch.randint(12, 60, (2, 10))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    whole = profile_routing(model, [{"input_ids": ids, "attention_mask": mask, "labels": ids}])
    assert model.training
    assert whole["tokens"] == 16
    assert {layer: sum(counts) for layer, counts in whole["layers"].items()} == {"1": 32, "2": 32}
    alone = profile_routing(model, [{"input_ids": ids[:1, 4:]}, {"input_ids": ids[1:]}])
    assert alone == whole
    with pytest.raises(ValueError, match="no real token"):
        profile_routing(model, [])
    with pytest.raises(ValueError, match="no MoE layer"):
        profile_routing(small_model(layers=1), [{"input_ids": ids}])


def test_a_profile_comes_back_from_its_file(tmp_path: Path):
    model = small_model()
    profile = profile_routing(model, [{"input_ids": torch.randint(12, 60, (1, 7))}])
    save_profile(profile, tmp_path / "new" / "profile.json")
    assert load_profile(tmp_path / "new" / "profile.json", model) == profile


def test_the_most_used_experts_are_chosen_at_least_one():
    profile = {"layers": {"1": [5, 9, 5, 1, 0, 9, 0, 0], "2": [0, 0, 0, 0, 0, 0, 0, 3]}}
    assert chosen_experts(profile, 0.375) == {1: [0, 1, 5], 2: [0, 1, 7]}
    assert chosen_experts(profile, 0.01) == {1: [1], 2: [7]}
    assert chosen_experts(profile, 1.0)[1] == list(range(8))


def damaged_profiles() -> dict[str, tuple[object, str]]:
    identity = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
    }
    good = {"model": identity, "layers": {"1": [4] + [0] * 15}, "tokens": 2}
    return {
        "list": ([], "not a routing profile"),
        "keys": ({"layers": {}}, "not a routing profile"),
        "model": ({**good, "model": {**identity, "hidden_size": 64}}, "of another model"),
        "layer": ({**good, "layers": {"0": [4] + [0] * 15}}, "expected counts for the layers 1"),
        "experts": ({**good, "layers": {"1": [4]}}, "layer 1 must count 16 experts"),
        "sum": ({**good, "tokens": 3}, "layer 1 must count 16 experts, 6 choices"),
        "negative": ({**good, "layers": {"1": [5, -1] + [0] * 14}}, "layer 1 must count"),
        "text": ({**good, "layers": {"1": ["4"] + [0] * 15}}, "layer 1 must count"),
        "truth": ({**good, "tokens": True}, "damaged"),
    }


@pytest.mark.parametrize("case", damaged_profiles())
def test_a_profile_that_does_not_fit_is_refused_in_one_line(case: str, tmp_path: Path):
    content, message = damaged_profiles()[case]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    model = small_model()
    with pytest.raises(ValueError, match=message) as caught:
        apply_lora(model, LoraConfig(experts=str(path)))
    assert "\n" not in str(caught.value)
    assert lora_layers(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_profile_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_profile(tmp_path / "none.json", small_model())
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_profile(tmp_path / "bad.json", small_model())
