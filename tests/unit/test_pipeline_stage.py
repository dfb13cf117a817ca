"""Where a model is cut for a pipeline, and what a stage keeps of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vl2.config import SamConfig, VL2Config
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.parallel.pipeline_batch import pad_micro_batches
from vl2.parallel.pipeline_stage import add_gradient, keep_units, split_points, unit_costs

CONFIG = VL2Config.preset("debug_base")
UNITS = 8  # embedding, 2 vision blocks, adaptor, 3 layers, head


def whole_model() -> VL2Model:
    model = VL2Model(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def state_of(model: VL2Model) -> dict[str, Tensor]:
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


@pytest.mark.parametrize("stages", [1, 2, 3, UNITS])
def test_stages_share_the_names_of_the_whole_model(stages: int):
    whole = {n: t.shape for n, t in state_of(whole_model()).items()}
    parts = []
    for units in split_points(CONFIG, stages):
        model = whole_model()
        keep_units(model, units)
        parts.append({n: t.shape for n, t in state_of(model).items()})
        assert parts[-1]
    assert sum(map(len, parts)) == len(whole)
    assert {n: s for part in parts for n, s in part.items()} == whole


@pytest.mark.parametrize("preset", ["tiny", "debug_base"])
def test_the_dearest_stage_is_as_cheap_as_can_be(preset: str):
    config = VL2Config.preset(preset)
    costs = unit_costs(config)
    assert len(costs) == 3 + config.vision_config.layers + config.language_config.num_hidden_layers
    for stages in (1, 2, 3):
        ranges = split_points(config, stages)
        assert [*itertools.chain(*ranges)] == [*range(len(costs))]
        assert all(ranges)
        cuts = itertools.combinations(range(1, len(costs)), stages - 1)
        dearest = (largest(costs, (0, *cut, len(costs))) for cut in cuts)
        assert largest(costs, (*(r.start for r in ranges), len(costs))) == min(dearest)


def largest(costs: list[int], ends: Sequence[int]) -> int:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(ends))


def test_costs_are_those_of_the_released_parts():
    costs = unit_costs(VL2Config.tiny(), tokens=1000, tiles=3)
    patches = 3 * 729
    assert costs[0] == 2 * patches * 14 * 14 * 3 * 1152
    assert costs[1] == 2 * patches * (4 * 1152 + 2 * 4304) * 1152 + 4 * patches * 729 * 1152
    assert costs[-1] == 2 * 1000 * 1280 * 129280
    moe = 3 * 1280 * 896 * (6 + 2) + 64 * 1280  # six of 64 experts, two shared ones, the router
    assert costs[-2] == 2 * 1000 * (4 * 1280**2 + moe) + 1000**2 * 2 * 1280


def test_too_many_stages_and_a_hybrid_tower_are_refused():
    with pytest.raises(
        ValueError, match=r"parallel\.pipeline is 9: this model has 8 units.*1 to 8"
    ):
        split_points(CONFIG, 9)
    vision = replace(CONFIG.vision_config, tower="hybrid", sam=SamConfig())
    hybrid = replace(CONFIG, vision_config=vision)
    with pytest.raises(ValueError, match=r"cannot cut a hybrid tower.*set it to 1"):
        split_points(hybrid, 2)


def test_padding_is_seen_by_nobody():
    short = {"input_ids": torch.ones(1, 3, dtype=torch.int64)}
    short["labels"] = short["segment_ids"] = short["input_ids"]
    long = {name: tensor.repeat(1, 2) for name, tensor in short.items()}
    padded = pad_micro_batches([short, long], CONFIG)
    assert not any(m.tiles for m in padded)
    tensors = padded[0].tensors
    assert tensors["attention_mask"].tolist() == [[True] * 3 + [False] * 3]
    assert tensors["labels"].tolist() == [[1, 1, 1, *[IGNORE_ID] * 3]]
    assert tensors["segment_ids"].tolist() == [[1, 1, 1, -1, -1, -1]]
    assert padded[1].tensors["attention_mask"].all()


def test_a_loss_on_the_way_adds_its_gradient_once():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    passed = add_gradient(3 * x, (x**2).sum())
    assert torch.equal(passed, 3 * x)
    passed.backward(torch.tensor([10.0, 100.0]))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([30.0 + 2, 300.0 + 4]))
