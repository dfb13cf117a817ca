"""What trains, how fast, and the two optimisers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.train.config import TRAINED, OptimConfig
from vl2.train.muon import Muon, orthogonalised
from vl2.train.optim import Optimizers, freeze, learning_rate_factor

CONFIG = OptimConfig(learning_rate=0.02, warmup=5, floor=0.1)


@pytest.fixture
def model() -> VL2Model:
    made = VL2Model(VL2Config.preset("debug_base"))
    made.init_weights(torch.Generator().manual_seed(0))
    return made


def test_align_trains_vision_and_adaptor_and_the_rest_everything(model: VL2Model):
    align = set(freeze(model, TRAINED["align"]))
    names = {n for n, _ in model.named_parameters()}
    head = {n for n in names if n.startswith("vision.attn_pool")}
    assert align == {n for n in names if not n.startswith("language.")} - head
    assert set(freeze(model, TRAINED["pretrain"])) == names - head
    assert set(freeze(model, TRAINED["sft"])) == names - head


def test_a_stage_that_trains_nothing_is_refused(model: VL2Model):
    with pytest.raises(ValueError, match="nothing would train"):
        freeze(model, ("head",))


def test_cosine_warms_up_and_decays():
    assert learning_rate_factor(CONFIG, 0, 30) == pytest.approx(0.2)
    assert learning_rate_factor(CONFIG, 5, 30) == pytest.approx(1.0)
    assert learning_rate_factor(CONFIG, 30, 30) == pytest.approx(0.1)
    assert learning_rate_factor(replace(CONFIG, horizon=55), 30, 30) == pytest.approx(0.55)


def test_step_divides_by_sqrt_ten_at_half_and_three_quarters():
    config = OptimConfig(schedule="step")
    factors = [learning_rate_factor(config, step, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert factors == pytest.approx([1, 1, 10**-0.5, 10**-0.5, 0.1, 0.1])


def test_constant_stays():
    config = OptimConfig(schedule="constant", warmup=2)
    assert [learning_rate_factor(config, step, 9) for step in (0, 1, 2, 8)] == [0.5, 1, 1, 1]


def test_a_constant_rate_falls_in_its_last_steps():
    config = replace(CONFIG, schedule="constant", warmup=2, decay=4, floor=0.2)
    factors = [learning_rate_factor(config, step, 10) for step in (1, 5, 6, 7, 8, 9, 10)]
    assert factors == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    with pytest.raises(ValueError, match=r"decay is 4 with optim\.schedule 'cosine'"):
        replace(CONFIG, decay=4)


def test_the_tower_learns_a_tenth_as_fast_and_norms_do_not_decay(model: VL2Model):
    freeze(model, TRAINED["sft"])
    optimizers = Optimizers(model, OptimConfig(learning_rate=1e-3), 10)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizers.parts[0].param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            vision = name.startswith("vision")
            assert group["lr"] == pytest.approx(1e-4 if vision else 1e-3)
            decays = parameter.ndim > 1 and "embed" not in name
            assert group["weight_decay"] == (0.1 if decays else 0.0)
            assert group["betas"] == (0.9, 0.95)


def test_state_is_named_by_parameter_and_its_template_has_the_same_form(model: VL2Model):
    for config in (
        OptimConfig(),
        OptimConfig(optimizer="muon"),
        OptimConfig(moments="bfloat16"),
    ):
        freeze(model, ("language.model.layers.0", "projector"))
        used, fresh = Optimizers(model, config, 10), Optimizers(model, config, 10)
        for parameter in used.names:
            parameter.grad = torch.ones_like(parameter)
        used.step()
        template = fresh.template()
        assert {k: (v.shape, v.dtype) for k, v in template.items()} == {
            k: (v.shape, v.dtype) for k, v in used.state().items()
        }
        assert all(k.startswith("optim.") for k in template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"warmup": -1}, "warmup is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**change)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (3, 6, 4)])
def test_orthogonalised_brings_singular_values_near_one(shape: tuple[int, ...]):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.3


def test_muon_decays_weights_without_a_gradient_direction():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((4, 4), 0.95))
