"""Loads are counted per kind of token; biases move once per step, against the whole step's load."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import Routing
from vl2.parallel.pipeline_stage import keep_units
from vl2.recipes.stages import RECIPES
from vl2.train.balance import Balancer, evenness, imbalance, loss_scale

EXPERTS = 8


def model_of(preset: str = "debug_base") -> VL2Model:
    model = VL2Model(VL2Config.preset(preset))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def routing(*chosen: tuple[int, int]) -> Routing:
    """The two experts of each token."""
    experts = torch.tensor(chosen)
    return Routing(experts, torch.ones(experts.shape), torch.ones(len(chosen), EXPERTS))


def biases(balancer: Balancer) -> list[Tensor]:
    found = [router.e_score_correction_bias for router in balancer.routers]
    return [bias for bias in found if bias is not None]


REAL = torch.tensor([[True, True, True, False]])
PICTURE = torch.tensor([[True, True, False, False]])
FIRST = routing((0, 1), (0, 2), (3, 4), (7, 7))  # the last one is padding
SECOND = routing((5, 6), (5, 6), (5, 6), (7, 7))


def test_text_and_picture_tokens_are_counted_apart_and_padding_nowhere():
    balancer = Balancer(model_of(), 0.0)
    balancer.observe((FIRST, SECOND), REAL, PICTURE)
    assert balancer.loads.tolist() == [
        [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]],
        [[2, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2, 2, 0]],
    ]
    balancer.observe((FIRST, SECOND), REAL, None)  # text alone
    assert balancer.loads[0].tolist() == [
        [2, 1, 1, 2, 2, 0, 0, 0],
        [0, 0, 0, 0, 0, 4, 4, 0],
    ]
    balancer.reset()
    assert not balancer.loads.any()


def test_the_report_names_the_worst_layer_and_the_dead_experts():
    balancer = Balancer(model_of(), 0.0)
    balancer.observe((FIRST, SECOND), REAL, PICTURE)
    found = balancer.report()
    assert found["load_image"] == 4.0  # of 4 choices over 8 experts one took 2
    assert found["dead_image"] == 5 + 6
    assert found["dead_text"] == 6 + 6
    assert found["entropy_image"] == pytest.approx(math.log(2) / math.log(8))
    assert found["entropy_text"] == pytest.approx(math.log(2) / math.log(8))
    balancer.reset()
    even = routing((0, 1), (2, 3), (4, 5), (6, 7))
    for layers in ((even, SECOND), (SECOND, even)):
        balancer.observe(layers, torch.ones_like(REAL), None)
        found = balancer.report()
        assert found["load_text"] == 3.0  # of 8 choices over 8 experts two took 3
        assert found["entropy_text"] < 0.6
        assert found["dead_text"] == 5
        balancer.reset()
    balancer.observe((FIRST, SECOND), REAL, None)
    assert not [name for name in balancer.report() if name.endswith("image")]
    balancer.reset()
    assert balancer.report() == {}


def test_even_loads_are_one():
    even = torch.full((EXPERTS,), 3.0)
    alone = torch.tensor([5.0] + [0.0] * (EXPERTS - 1))
    assert imbalance(even) == pytest.approx(1.0)
    assert evenness(even) == pytest.approx(1.0)
    assert imbalance(alone) == EXPERTS
    assert evenness(alone) == pytest.approx(0.0, abs=1e-6)


def test_biases_move_once_per_step_against_the_load_of_all_micro_batches():
    balancer = Balancer(model_of(), 0.25)
    balancer.observe((FIRST, SECOND), REAL, None)
    assert not any(bias.any() for bias in biases(balancer))
    # The second micro batch turns the load of the first layer round: expert 7 is the busy one.
    balancer.observe((routing(*[(7, 7)] * 4), SECOND), torch.ones_like(REAL), None)
    balancer.update()
    first, second = biases(balancer)
    assert first.tolist() == [-0.25 * x for x in (1, -1, -1, -1, -1, -1, -1, 1)]
    assert second.tolist() == [-0.25 * x for x in (-1, -1, -1, -1, -1, 1, 1, 1)]


def test_pictures_count_for_the_biases_too():
    balancer = Balancer(model_of(), 0.25)
    everywhere = torch.ones_like(REAL)
    balancer.observe((routing(*[(7, 7)] * 4), SECOND), everywhere, everywhere)
    balancer.update()
    assert biases(balancer)[0].tolist() == [0.25] * 7 + [-0.25]


def test_without_a_step_no_bias_moves():
    balancer = Balancer(model_of(), 0.0)
    balancer.observe((FIRST, SECOND), REAL, None)
    balancer.update()
    assert not any(bias.any() for bias in biases(balancer))


def test_biases_stay_float32_in_a_bfloat16_model_and_train_in_no_optimiser():
    model = model_of().to(torch.bfloat16)
    balancer = Balancer(model, 0.001)
    for _ in range(300):
        balancer.update()  # no load at all: nobody is above the mean
        balancer.observe((FIRST, SECOND), REAL, None)
    [bias, _] = biases(balancer)
    assert bias.dtype == torch.float32
    assert float(bias[7]) == pytest.approx(0.299, rel=1e-4)  # bfloat16 would stick at 0.25
    assert not [name for name, _ in model.named_parameters() if "correction_bias" in name]


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_small"])
def test_a_model_without_biases_is_refused_only_if_it_should_move_them(preset: str):
    model = model_of(preset)
    with pytest.raises(ValueError, match=r"bias_step is 0\.001.*noaux_tc.*set it to 0"):
        Balancer(model, 0.001)
    balancer = Balancer(model, 0.0)
    balancer.observe((FIRST, SECOND), REAL, None)
    balancer.update()
    assert balancer.report()["dead_text"] == 3 + 6


def dense_of(preset: str) -> VL2Config:
    config = VL2Config.preset(preset)
    layers = config.language_config.num_hidden_layers
    return replace(
        config, language_config=replace(config.language_config, first_k_dense_replace=layers)
    )


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base"])
def test_a_model_without_experts_is_refused_only_if_it_should_balance_them(preset: str):
    model = VL2Model(dense_of(preset))
    with pytest.raises(ValueError, match=r"bias_step is 0\.001.* no MoE layer: set it to 0"):
        Balancer(model, 0.001)
    balancer = Balancer(model, 0.0)
    balancer.update()
    assert balancer.report() == {}
    language = model.config.language_config
    assert loss_scale(None, language) == loss_scale(0.0, language) == 1.0
    with pytest.raises(ValueError, match=r"loss_weight is 0\.01.* no MoE layer: leave the weight"):
        loss_scale(0.01, language)


def test_a_pipeline_s_stage_may_have_no_experts():
    model = model_of()
    keep_units(model, range(2))
    assert not len(model.language.model.layers)
    Balancer(model, 0.001).update()


def test_the_weight_of_the_balance_loss_is_the_one_that_is_asked_for():
    language = VL2Config.preset("debug_base").language_config
    assert language.aux_loss_alpha
    assert loss_scale(None, language) == 1.0
    assert loss_scale(0.0, language) == 0.0
    scale = loss_scale(0.03, language)
    assert scale * language.aux_loss_alpha == pytest.approx(0.03)
    without = replace(language, aux_loss_alpha=0.0)
    assert loss_scale(None, without) == loss_scale(0.0, without) == 1.0
    with pytest.raises(
        ValueError, match=r"loss_weight is 0\.01, .* aux_loss_alpha 0 in its config"
    ):
        loss_scale(0.01, without)


def test_recipes_give_the_balance_loss_the_weight_of_their_routing():
    """Paper, table 2: 0.0001 for Base, whose sigmoids the embedded and debug models share."""
    for name, make in RECIPES.items():
        sigmoid = name.startswith(("base", "nano", "debug"))
        assert make().balance.loss_weight == (0.0001 if sigmoid else 0.001), name
