"""Gradients through int8 and int4 weights against autograd on the floats that they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vl2.config import VL2Config
from vl2.model.linear import Linear, held
from vl2.model.moe import Experts
from vl2.model.quantized import quantized_copy
from vl2.ops import int4, weight
from vl2.ops.frozen import (
    frozen_experts,
    frozen_experts_ref,
    frozen_linear,
    frozen_linear_ref,
    input_gradient,
)
from vl2.ops.kinds import KINDS, Weight
from vl2.ops.moe import ExpertChange, LowRank, Routing, expert_mlp_ref

SCHEMES = ["int8", "float8", "int4"]
ROWS = 70  # more than PyTorch's int4 kernel takes, whose products are bfloat16


def near(found: Tensor, wanted: Tensor, within: float) -> None:
    """The error as a share of the size of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    error = float((found - wanted).norm() / wanted.norm())
    assert error < within, error


def gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Of a loss whose gradient differs by element."""
    generator = torch.Generator().manual_seed(9)
    return list(
        torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator).to(out.dtype))
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough numbers at a time that every matrix is cut."""
    for module in (weight, int4):
        monkeypatch.setattr(module, "DEQUANTIZE_NUMBERS", 64 * 128)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("small_blocks")
def test_a_linear_layer_s_gradient_is_that_of_its_floats(scheme: str, bias: bool):
    layer = Linear(128, 200, bias=bias)  # int4 pads the rows to 256
    copy = quantized_copy(layer, scheme, "layer")
    data = held(copy, "weight")
    x = torch.randn(2, ROWS // 2, 128, requires_grad=True)
    leaves = [x, layer.bias] if bias else [x]
    found = gradients(copy(x), *leaves)
    wanted = gradients(F.linear(x, data.floats(), layer.bias), *leaves)
    twin = gradients(frozen_linear_ref(x, data, layer.bias), *leaves)
    for one, other, plain in zip(found, wanted, twin, strict=True):
        near(one, other, 1e-6)  # measured worst: 2.7e-7
        near(one, plain, 1e-6)


@pytest.mark.parametrize("rows", [3, ROWS])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_with_a_gradient_is_forward_without(scheme: str, rows: int):
    layer = quantized_copy(Linear(128, 96), scheme, "layer")
    x = torch.randn(rows, 128)
    wanted = layer(x)
    layer.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(layer(x), wanted)
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    assert out.requires_grad
    assert torch.equal(out, wanted)
    assert not layer(x).requires_grad


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_twin_s_forward_is_the_layer_s(scheme: str):
    held = KINDS[scheme].pack(torch.randn(96, 128))
    x = torch.randn(ROWS, 128)
    found = frozen_linear(x, held, dtype=torch.float32)
    # Measured worst: 5.6e-8 in int8, 0 in int4.
    near(found, frozen_linear_ref(x, held), 1e-6)


def test_a_bias_that_trains_gets_its_gradient_without_one_of_the_input():
    layer = quantized_copy(Linear(64, 64), "int8", "layer")
    layer(torch.randn(5, 64)).sum().backward()
    assert isinstance(layer.bias, nn.Parameter)
    assert torch.equal(layer.bias.grad, torch.full((64,), 5.0))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_in_bfloat16_err_as_autograd_s(scheme: str):
    held = KINDS[scheme].pack(torch.randn(192, 256))
    gradient = torch.randn(ROWS, 192)
    exact = gradient.double() @ held.floats().double()
    half = (gradient.bfloat16() @ held.floats().bfloat16()).float()
    error = (half - exact).norm()
    found = (input_gradient(gradient, held, torch.bfloat16) - exact).norm()
    assert found < 1.5 * error  # measured: 1.0
    x = torch.randn(ROWS, 256, dtype=torch.bfloat16, requires_grad=True)
    out = frozen_linear(x, held, dtype=torch.bfloat16)
    [of_x] = gradients(out, x)
    assert (out.dtype, of_x.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.usefixtures("small_blocks")
def test_no_more_floats_than_a_block_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    for module, name in ((weight, "scaled_rows"), (int4, "_floats")):
        original = getattr(module, name)

        def counted(values, scale, dtype=torch.float32, original=original):
            made = original(values, scale, dtype)
            sizes.append(made.numel())
            return made

        monkeypatch.setattr(module, name, counted)
    for scheme in SCHEMES:
        held = KINDS[scheme].pack(torch.randn(512, 128))
        input_gradient(torch.randn(2, 512), held, torch.float32)
    assert sizes == [64 * 128] * 24


Stacks = tuple[Weight, Weight, Weight]
HIDDEN, INNER, EXPERTS = 128, 96, 5


def layer_of_experts(scheme: str) -> Experts:
    config = replace(
        VL2Config.nano().language_config,
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
    )
    experts = Experts(config)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.randn(weight.shape) * weight.shape[-1] ** -0.5)
    made = quantized_copy(experts, scheme, "experts")
    assert isinstance(made, Experts)
    return made


def stacks(experts: Experts) -> Stacks:
    gate, up, down = (held(experts, f"{name}_proj") for name in ("gate", "up", "down"))
    return gate, up, down


def routed(rows: int) -> tuple[Tensor, Routing]:
    """Leaves; the third expert is chosen by nobody."""
    x = torch.randn(rows, HIDDEN, requires_grad=True)
    scores = torch.rand(rows, EXPERTS)
    scores[:, 2] = 0
    weights, experts = scores.topk(2)
    return x, Routing(experts, weights.requires_grad_(), scores)


def random_change() -> ExpertChange:
    shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    return ExpertChange(
        *(
            LowRank(
                (torch.randn(EXPERTS, 8, width) * width**-0.5).requires_grad_(),
                (torch.randn(EXPERTS, out, 8) * 0.3).requires_grad_(),
            )
            for out, width in shapes
        )
    )


@pytest.mark.parametrize("rows", [20, 400])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_with_a_gradient_compute_what_they_do_without(scheme: str, rows: int):
    layer = layer_of_experts(scheme)
    x, routing = routed(rows)
    with torch.inference_mode():
        wanted = layer(x, routing)
    out = layer(x, routing)
    assert out.requires_grad
    assert torch.equal(out, wanted)
    half = x.detach().bfloat16()
    with torch.inference_mode():
        wanted = layer(half, routing)
    assert torch.equal(layer(half, routing), wanted)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_gradients_are_their_twin_s(scheme: str, changed: bool):
    """Few rows an expert take the int4 kernel's bfloat16 products, which the twin does not."""
    layer = layer_of_experts(scheme)
    x, routing = routed(24 if scheme == "int8" else 400)
    change = random_change() if changed else None
    leaves = [x, routing.weights, *(factor for low in change or () for factor in low)]
    out = frozen_experts(x, routing, stacks(layer), change, dtype=x.dtype)
    plain = frozen_experts_ref(x, routing, stacks(layer), change)
    # Measured worst: 5.4e-7 over outputs and gradients.
    near(out, plain, 5e-6)
    for one, other in zip(gradients(out, *leaves), gradients(plain, *leaves), strict=True):
        near(one, other, 5e-6)


@pytest.mark.parametrize(("scheme", "within"), [("int8", 0.03), ("int4", 5e-6)])
def test_experts_gradients_are_near_those_of_the_float_layer(scheme: str, within: float):
    """int8 rounds activations on the way, which SwiGLU's derivative sees.

    Measured worst: 0.011 in int8, 6.6e-7 in int4.
    """
    layer = layer_of_experts(scheme)
    x, routing = routed(400)
    change = random_change()
    leaves = [x, routing.weights, *(factor for low in change for factor in low)]
    floats = [weight.floats() for weight in stacks(layer)]
    found = gradients(layer(x, routing, change), *leaves)
    wanted = gradients(expert_mlp_ref(x, routing, *floats, change), *leaves)
    for one, other in zip(found, wanted, strict=True):
        near(one, other, within)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_keep_no_floats_of_their_weights(scheme: str):
    layer = layer_of_experts(scheme)
    x, routing = routed(24)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x, routing)
    assert out.requires_grad
    wide = [t for t in kept if t.is_floating_point() and t.itemsize > 1]  # float8 is what is held
    floats = [t for t in wide if t.numel() >= INNER * HIDDEN]
    assert floats == []
