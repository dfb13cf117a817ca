"""float8 weights: how they are made, products against their twins, and PyTorch's own products."""

from __future__ import annotations

import pytest
import torch
from tests.unit.quant_samples import matrix, relative

from vl2.config import VL2Config
from vl2.engine import graphs
from vl2.model.quant_layers import QuantExperts
from vl2.ops import float8_linear as products
from vl2.ops.float8_linear import (
    float8_expert_mlp,
    float8_linear,
    float8_linear_ref,
    has_float8_experts,
    has_float8_products,
    scaled_product,
)
from vl2.ops.moe import Routing, expert_mlp_ref
from vl2.ops.quant_linear import quantized_expert_mlp_ref
from vl2.ops.weight import (
    FLOAT8,
    KINDS,
    Float8Weight,
    at_expert,
    dequantize_rows,
    quantize_float8,
    quantize_float8_ref,
)

STEP = 2.0**-4
"""Largest relative error of a float8 that is not tiny: half of its last bit."""


def test_weights_equal_the_twin_and_are_near():
    weight = matrix(40, 96)
    found, twin = quantize_float8(weight), quantize_float8_ref(weight)
    assert found.values.dtype == FLOAT8
    torch.testing.assert_close(found.scale, twin.scale, rtol=1e-6, atol=0)
    same = found.values.float() == twin.values.float()
    assert float(same.float().mean()) > 0.999  # a tie may fall either way
    back = dequantize_rows(found)
    largest = weight.abs().amax(1, keepdim=True)
    assert bool(((back - weight).abs() <= weight.abs() * STEP + largest * 2**-18).all())
    assert bool((back[20] == 0).all())
    assert bool((back.abs().amax(1) <= 1.0001 * largest[:, 0]).all())


@pytest.fixture(params=["parts", "whole"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "parts":
        monkeypatch.setattr(products, "DEQUANTIZE_NUMBERS", 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_linear_layer_equals_its_twin(dtype: torch.dtype, tokens: int, blocks: None):
    weight, bias = quantize_float8(matrix(70, 96)), torch.randn(70)
    x = torch.randn(2, tokens, 96).to(dtype)
    found = float8_linear(x, weight, bias)
    assert found.dtype == dtype
    assert relative(found, float8_linear_ref(x, weight, bias)) < 4 * torch.finfo(dtype).eps
    exact = x.double() @ dequantize_rows(weight).double().T + bias
    assert relative(found, exact) < 0.04


def test_what_is_no_number_stays_in_its_row():
    x = torch.randn(4, 96)
    x[1, 7], x[2, 3] = torch.nan, torch.inf
    out = float8_linear(x, quantize_float8(matrix(70, 96)))
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
    gate, up, down = map(quantize_float8, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)

    def linear(weight: Float8Weight):
        return lambda row, e: float8_linear_ref(row, at_expert(weight, e))

    found = float8_expert_mlp(x, choice, gate, up, down)
    twin = quantized_expert_mlp_ref(x, choice, (linear(gate), linear(up), linear(down)))
    assert relative(found, twin) < 1e-3  # the order of sums may round a hidden number elsewhere
    assert relative(found, expert_mlp_ref(x, choice, *floats)) < 0.1


def test_one_token_touches_its_experts_only():
    gate, up, down = (quantize_float8(torch.randn(8, 64, 64)) for _ in range(3))
    choice = routing(1, 8)
    others = [e for e in range(8) if e not in choice.experts.tolist()[0]]
    for weight in (gate, up, down):
        weight.scale[others] = float("nan")
    out = float8_expert_mlp(torch.randn(1, 64), choice, gate, up, down)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_product_of_float8_is_that_of_its_floats(tokens: int):
    """PyTorch's product runs on a CPU, too, so that layouts and scales are shown right here."""
    rows, weight = quantize_float8(torch.randn(tokens, 96)), quantize_float8(matrix(80, 96))
    found = scaled_product(rows, weight)
    assert found.dtype == torch.bfloat16
    exact = dequantize_rows(rows).double() @ dequantize_rows(weight).double().T
    assert relative(found, exact) < 4e-3


def grouped_twin(rows: Float8Weight, weight: Float8Weight, ends: torch.Tensor) -> torch.Tensor:
    parts = zip(
        dequantize_rows(rows).tensor_split(ends[:-1].long()),
        weight.values,
        weight.scale,
        strict=True,
    )
    outs = [part @ dequantize_rows(Float8Weight(*matrix)).T for part, *matrix in parts]
    return torch.cat(outs).bfloat16()


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts_in_one_grouped_product_are_those_one_by_one(
    tokens: int, monkeypatch: pytest.MonkeyPatch
):
    """The order of rows and scales around the card's product, which a loop stands in for."""
    weights = [quantize_float8(stack) for stack in stacks(6, 64, 48)]
    x, choice = torch.randn(tokens, 64).bfloat16(), routing(tokens, 6)
    wanted = float8_expert_mlp(x, choice, *weights)
    monkeypatch.setattr(products, "has_float8_experts", lambda *inputs: True)
    monkeypatch.setattr(products, "_grouped", grouped_twin)
    assert relative(float8_expert_mlp(x, choice, *weights), wanted) < 3e-2


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
        assert products._grouped(x, gate, ends).shape == (rows, inner)
        assert scaled_product(x, at_expert(gate, 0)).shape == (rows, inner)
        with pytest.raises(RuntimeError, match="scale_a"):
            products._grouped(x._replace(scale=x.scale[:, None]), gate, ends)


def test_only_float8_experts_stay_on_the_card(monkeypatch: pytest.MonkeyPatch):
    shape = {"experts": 2, "hidden": 64, "inner": 32}
    monkeypatch.setattr(graphs, "has_float8_experts", lambda *inputs: True)
    stay = [graphs._stay_on_device(QuantExperts(scheme, **shape)) for scheme in KINDS]
    assert dict(zip(KINDS, stay, strict=True)) == {"int8": False, "float8": True, "int4": False}
    monkeypatch.setattr(graphs, "has_float8_experts", lambda *inputs: False)
    assert not graphs._stay_on_device(QuantExperts("float8", **shape))


def test_a_cpu_has_no_float8_products():
    weight = quantize_float8(matrix(32, 32))
    assert not has_float8_products(torch.randn(1, 32), weight)
    assert not has_float8_experts(torch.randn(1, 32), weight)


@pytest.mark.gpu
def test_a_card_s_linear_layer_is_the_cpu_s():
    weight, x = quantize_float8(matrix(80, 96)), torch.randn(7, 96).bfloat16()
    there = Float8Weight(*(tensor.cuda() for tensor in weight))
    if not has_float8_products(x.cuda(), there):
        pytest.skip("the card has no products of float8")
    assert relative(float8_linear(x.cuda(), there).cpu(), float8_linear(x, weight)) < 8e-3


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_a_card_s_experts_are_the_cpu_s(tokens: int):
    weights = [quantize_float8(stack) for stack in stacks(6, 64, 48)]
    x, choice = torch.randn(tokens, 64).bfloat16(), routing(tokens, 6)
    there = [Float8Weight(*(tensor.cuda() for tensor in weight)) for weight in weights]
    if not has_float8_experts(x.cuda(), *there):
        pytest.skip("the card has no grouped product of float8")
    chosen = Routing(*(tensor.cuda() for tensor in choice))
    found = float8_expert_mlp(x.cuda(), chosen, *there).cpu()
    assert relative(found, float8_expert_mlp(x, choice, *weights)) < 3e-2
