"""float8 weights: how they are made, products against their twins, and PyTorch's own products."""

from __future__ import annotations

import pytest
import torch
from tests.unit.quant_samples import matrix, relative

from vl2.config import VL2Config
from vl2.engine import graphs
from vl2.model.moe import Experts
from vl2.ops import float8
from vl2.ops import linear as linears
from vl2.ops.float8 import (
    FLOAT8,
    Float8Weight,
    float8_linear_ref,
    has_float8_experts,
    has_float8_products,
    pack_float8_ref,
    scaled_product,
)
from vl2.ops.frozen import frozen_experts_ref
from vl2.ops.groups import rows_by_expert
from vl2.ops.kinds import KINDS
from vl2.ops.linear import experts as held_experts
from vl2.ops.linear import linear
from vl2.ops.moe import Routing, expert_mlp_ref

STEP = 2.0**-4
"""Largest relative error of a float8 that is not tiny: half of its last bit."""


def test_weights_equal_the_twin_and_are_near():
    weight = matrix(40, 96)
    found, twin = Float8Weight.pack(weight), pack_float8_ref(weight)
    assert found.values.dtype == FLOAT8
    torch.testing.assert_close(found.scale, twin.scale, rtol=1e-6, atol=0)
    same = found.values.float() == twin.values.float()
    assert float(same.float().mean()) > 0.999  # a tie may fall either way
    back = found.floats()
    largest = weight.abs().amax(1, keepdim=True)
    assert bool(((back - weight).abs() <= weight.abs() * STEP + largest * 2**-18).all())
    assert bool((back[20] == 0).all())
    assert bool((back.abs().amax(1) <= 1.0001 * largest[:, 0]).all())


@pytest.fixture(params=["parts", "whole"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "parts":
        monkeypatch.setattr(float8, "DEQUANTIZE_NUMBERS", 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_linear_layer_equals_its_twin(dtype: torch.dtype, tokens: int, blocks: None):
    weight, bias = Float8Weight.pack(matrix(70, 96)), torch.randn(70)
    x = torch.randn(2, tokens, 96).to(dtype)
    found = linear(x, weight, bias)
    assert found.dtype == dtype
    assert relative(found, float8_linear_ref(x, weight, bias)) < 4 * torch.finfo(dtype).eps
    exact = x.double() @ weight.floats().double().T + bias
    assert relative(found, exact) < 0.04


def test_what_is_no_number_stays_in_its_row():
    x = torch.randn(4, 96)
    x[1, 7], x[2, 3] = torch.nan, torch.inf
    out = linear(x, Float8Weight.pack(matrix(70, 96)))
    assert bool(out[1].isnan().all())
    assert not bool(out[2].isfinite().any())
    assert bool(out[[0, 3]].isfinite().all())


def routing(tokens: int, experts: int, k: int = 2) -> Routing:
    chosen = torch.rand(tokens, experts).topk(k, dim=-1).indices
    return Routing(chosen, torch.rand(tokens, k), torch.rand(tokens, experts))


def stacks(experts: int, hidden: int, inner: int) -> list[torch.Tensor]:
    shapes = (inner, hidden), (inner, hidden), (hidden, inner)
    return [torch.randn(experts, *shape) for shape in shapes]


@pytest.mark.parametrize("tokens", [1, 9])
def test_experts_equal_the_twin(tokens: int):
    floats = stacks(6, 64, 48)
    gate, up, down = map(Float8Weight.pack, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)
    found = held_experts(x, choice, (gate, up, down))
    twin = frozen_experts_ref(x, choice, (gate, up, down))
    assert relative(found, twin) < 1e-3  # the order of sums may round a hidden number elsewhere
    assert relative(found, expert_mlp_ref(x, choice, *floats)) < 0.1


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_product_of_float8_is_that_of_its_floats(tokens: int):
    """PyTorch's product runs on a CPU, too, so that layouts and scales are shown right here."""
    rows, weight = Float8Weight.pack(torch.randn(tokens, 96)), Float8Weight.pack(matrix(80, 96))
    found = scaled_product(rows, weight)
    assert found.dtype == torch.bfloat16
    exact = rows.floats().double() @ weight.floats().double().T
    assert relative(found, exact) < 4e-3


def grouped_twin(rows: Float8Weight, weight: Float8Weight, ends: torch.Tensor) -> torch.Tensor:
    parts = zip(
        rows.floats().tensor_split(ends[:-1].long()),
        weight.values,
        weight.scale,
        strict=True,
    )
    outs = [part @ Float8Weight(*matrix).floats().T for part, *matrix in parts]
    return torch.cat(outs).bfloat16()


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts_in_one_grouped_product_are_those_one_by_one(
    tokens: int, monkeypatch: pytest.MonkeyPatch
):
    """The order of rows and scales around the card's product, which a loop stands in for."""
    gate, up, down = map(Float8Weight.pack, stacks(6, 64, 48))
    weights = (gate, up, down)
    x, choice = torch.randn(tokens, 64).bfloat16(), routing(tokens, 6)
    wanted = held_experts(x, choice, weights)
    monkeypatch.setattr(float8, "has_float8_experts", lambda *inputs: True)
    monkeypatch.setattr(float8, "_grouped", grouped_twin)
    # A card sorts the choices of one token, too.
    monkeypatch.setattr(linears, "group_rows", lambda r, total: rows_by_expert(r.experts, total))
    assert relative(held_experts(x, choice, weights), wanted) < 3e-2


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_pytorch_takes_the_layouts_of_released_experts(preset: str):
    """Its own checks of shapes, strides and scales, without a card."""
    config = VL2Config.preset(preset).language_config
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    experts, rows = config.n_routed_experts, 5
    with torch.device("meta"):
        x = Float8Weight(torch.empty(rows, hidden, dtype=FLOAT8), torch.empty(rows))
        gate = Float8Weight(
            torch.empty(experts, inner, hidden, dtype=FLOAT8), torch.empty(experts, inner)
        )
        ends = torch.empty(experts, dtype=torch.int32)
        assert float8._grouped(x, gate, ends).shape == (rows, inner)
        assert scaled_product(x, gate.at(0)).shape == (rows, inner)
        with pytest.raises(RuntimeError, match="scale_a"):
            float8._grouped(x._replace(scale=x.scale[:, None]), gate, ends)


def test_only_float8_experts_stay_on_the_card(monkeypatch: pytest.MonkeyPatch):
    config = VL2Config.nano().language_config
    monkeypatch.setattr(graphs, "has_float8_experts", lambda *inputs: True)
    stay = {kind: graphs._stays_on_device(Experts(config, kind)) for kind in (None, *KINDS)}
    assert stay == {None: True, "int8": False, "float8": True, "int4": False}
    monkeypatch.setattr(graphs, "has_float8_experts", lambda *inputs: False)
    assert not graphs._stays_on_device(Experts(config, "float8"))


def test_a_cpu_has_no_float8_products():
    weight = Float8Weight.pack(matrix(32, 32))
    assert not has_float8_products(torch.randn(1, 32), weight)
    assert not has_float8_experts(torch.randn(1, 32), weight)


@pytest.mark.gpu
def test_a_card_s_linear_layer_is_the_cpu_s():
    weight, x = Float8Weight.pack(matrix(80, 96)), torch.randn(7, 96).bfloat16()
    there = Float8Weight(*(tensor.cuda() for tensor in weight))
    if not has_float8_products(x.cuda(), there):
        pytest.skip("the card has no products of float8")
    assert relative(linear(x.cuda(), there).cpu(), linear(x, weight)) < 8e-3


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_a_card_s_experts_are_the_cpu_s(tokens: int):
    gate, up, down = map(Float8Weight.pack, stacks(6, 64, 48))
    weights = (gate, up, down)
    x, choice = torch.randn(tokens, 64).bfloat16(), routing(tokens, 6)
    gate, up, down = (Float8Weight(*(t.cuda() for t in weight)) for weight in weights)
    there = (gate, up, down)
    if not has_float8_experts(x.cuda(), *there):
        pytest.skip("the card has no grouped product of float8")
    chosen = Routing(*(tensor.cuda() for tensor in choice))
    found = held_experts(x.cuda(), chosen, there).cpu()
    assert relative(found, held_experts(x, choice, weights)) < 3e-2
