"""The official algorithm, written anew: the same numbers as ours, whatever it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vl2.benchmarks.official import OfficialLanguage
from vl2.benchmarks.random_weights import random_model
from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache

PRESETS = ("debug_tiny", "debug_small", "debug_base")
WITHIN = 1e-5
"""Measured: 1.1e-6 at most, of logits up to 1.6."""


def float_model(preset: str, **language: object) -> VL2Model:
    config = VL2Config.preset(preset)
    changed = replace(config.language_config, **language)
    return random_model(replace(config, language_config=changed), "none")


def token_ids(count: int) -> Tensor:
    return torch.randint(2048, (2, count), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def worst_distance(model: VL2Model) -> float:
    """Largest difference of logits, over a prompt and four decoded tokens of two conversations."""
    ids, language = token_ids(24), model.language
    official = OfficialLanguage(model)
    cache = KVCache.empty(language.config, batch=2, capacity=24)
    theirs, grown = None, None
    distances = []
    for part in ids.split([20, 1, 1, 1, 1], dim=1):
        embeds = language.embed(part)
        ours = language.logits(language(embeds, cache=cache).hidden)
        theirs, grown = official.run(embeds, grown)
        distances.append(float((ours - theirs).abs().max()))
        assert theirs.abs().max() > 0.1
    return max(distances)


@pytest.mark.parametrize("preset", PRESETS)
def test_its_logits_are_ours(preset: str):
    assert worst_distance(float_model(preset)) <= WITHIN


def test_its_logits_are_ours_with_compressed_queries():
    assert worst_distance(float_model("debug_small", q_lora_rank=48)) <= WITHIN


def test_its_logits_are_ours_with_shared_key_heads():
    assert worst_distance(float_model("debug_tiny", num_key_value_heads=2)) <= WITHIN


def test_it_sees_another_weight():
    model = float_model("debug_tiny")
    before = OfficialLanguage(model).run(model.language.embed(token_ids(4)))[0]
    with torch.no_grad():
        model.language.lm_head.weight.mul_(2)
    after = OfficialLanguage(model).run(model.language.embed(token_ids(4)))[0]
    torch.testing.assert_close(after, 2 * before)


def test_it_refuses_a_quantised_model():
    model = random_model(VL2Config.preset("debug_tiny"), "int8")
    with pytest.raises(ValueError, match="give the float model"):
        OfficialLanguage(model)
