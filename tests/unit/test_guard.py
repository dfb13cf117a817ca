"""When a step is a spike: far above the usual, and not small in itself."""

from __future__ import annotations

import pytest

from vl2.recipes.stages import RECIPES
from vl2.train.config import GuardConfig
from vl2.train.guard import StepGuard


def fitted(loss: float, norm: float) -> StepGuard:
    """A guard that has seen a smooth run."""
    guard = StepGuard(GuardConfig(), 1000)
    for step in range(64):
        assert guard.judge(loss * (1 + step % 3 / 10), norm * (1 + step % 3 / 10)) is None
    return guard


@pytest.mark.parametrize("usual", [1e-4, 0.0026, 0.05, 0.3])
@pytest.mark.parametrize("met", [0.0077, 0.49, 1.0, 1.9])
def test_what_a_fitted_model_has_yet_to_learn_is_no_spike(usual: float, met: float):
    assert fitted(usual, 0.01).judge(met, min(met, 1.0)) is None


@pytest.mark.parametrize(("usual", "spike"), [(0.0026, 2.1), (0.3, 6.0), (2.0, 8.0), (6.0, 22.0)])
def test_a_loss_far_above_the_usual_is_a_spike(usual: float, spike: float):
    reason = fitted(usual, 1.0).judge(spike, 1.0)
    assert reason is not None
    assert reason.startswith("loss ")


@pytest.mark.parametrize(("usual", "norm", "bad"), [(0.01, 9.0, False), (0.01, 11.0, True)])
@pytest.mark.parametrize("loss", [0.01, 3.0])
def test_so_is_an_exploding_gradient(usual: float, norm: float, loss: float, bad: bool):
    assert (fitted(loss, usual).judge(loss, norm) is not None) is bad
    assert (fitted(loss, 2.0).judge(loss, 3 * norm) is not None) is False


@pytest.mark.parametrize("name", RECIPES)
def test_spikes_are_judged_where_much_is_learnt(name: str):
    tuning = name.endswith(("_sft", "_lora"))
    assert RECIPES[name]().guard.spike == (0.0 if tuning else 6.0)
