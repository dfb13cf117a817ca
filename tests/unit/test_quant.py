"""Products with int8 and int4 weights: fast paths against plain twins, and what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vl2.ops import quant
from vl2.ops.moe import Routing, expert_mlp_ref
from vl2.ops.quant import (
    Int4Weight,
    Int8Weight,
    dequantize_int4,
    dequantize_int8,
    int4_expert_mlp,
    int4_group,
    int4_linear,
    int4_linear_ref,
    int8_expert_mlp,
    int8_linear,
    int8_linear_ref,
    quantize_int4,
    quantize_int4_ref,
    quantize_int8,
    quantize_int8_ref,
    quantized_expert_mlp_ref,
)


def matrix(out: int, width: int, *, experts: int | None = None) -> Tensor:
    """Rows of different sizes, one of them all zero."""
    shape = (out, width) if experts is None else (experts, out, width)
    weight = torch.randn(shape) * torch.logspace(-3, 1, out)[:, None]
    weight[..., out // 2, :] = 0
    return weight


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(params=["kernel", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to multiply: PyTorch's integer kernels, and floats for machines without them."""
    if request.param == "plain":
        monkeypatch.setattr(quant, "has_int_matmul", lambda device: False)
        monkeypatch.setattr(quant, "has_int4_kernel", lambda device: False)
        monkeypatch.setattr(quant, "DEQUANTIZE_NUMBERS", 5000)  # several parts per matrix
    return request.param


def test_int8_weights_equal_the_twin_and_are_near():
    weight = matrix(40, 96)
    found, twin = quantize_int8(weight), quantize_int8_ref(weight)
    torch.testing.assert_close(found.scale, twin.scale, rtol=1e-6, atol=0)
    assert int((found.values.int() - twin.values.int()).abs().max()) <= 1
    error = (dequantize_int8(found) - weight).abs()
    assert bool((error <= 0.5001 * found.scale[:, None]).all())
    assert bool((dequantize_int8(found)[20] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_int8_linear_equals_the_twin(dtype: torch.dtype, tokens: int, path: str):
    weight, bias = quantize_int8(matrix(70, 96)), torch.randn(70)
    x = torch.randn(2, tokens, 96).to(dtype)
    found = int8_linear(x, weight, bias)
    assert found.dtype == dtype
    assert relative(found, int8_linear_ref(x, weight, bias)) < 4 * torch.finfo(dtype).eps


def test_int8_linear_of_a_token_is_the_same_in_every_batch(path: str):
    weight, x = quantize_int8(matrix(70, 96)), torch.randn(9, 96)
    x[4] = x[4] * 1e4
    alone = torch.cat([int8_linear(row[None], weight) for row in x])
    assert torch.equal(int8_linear(x, weight), alone)


def test_int8_keeps_what_is_no_number():
    x = torch.randn(3, 96)
    x[1, 7] = float("nan")
    out = int8_linear(x, quantize_int8(matrix(70, 96)))
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize(("out", "width"), [(64, 128), (80, 96), (130, 64)])
def test_int4_weights_equal_the_twin_and_are_near(out: int, width: int):
    weight = matrix(out, width)
    weight[3] = 5.0  # a group without a range
    found, twin = quantize_int4(weight), quantize_int4_ref(weight)
    assert torch.equal(found.values, twin.values)
    assert torch.equal(found.scale, twin.scale)
    back = dequantize_int4(found)
    assert bool((back[out:] == 0).all())
    group = int4_group(width)
    parts = weight.unflatten(1, (-1, group))
    largest = parts.abs().amax(-1)
    span = torch.maximum(parts.amax(-1) - parts.amin(-1), largest * 2**-5)
    error = (back[:out].unflatten(1, (-1, group)) - parts).abs().amax(-1)
    assert bool((error <= span / 15 * 0.6 + largest * 2**-8).all())
    assert relative(back[:out], weight) < 0.1


def test_int4_groups_are_the_longest_that_fit():
    assert [int4_group(w) for w in (1280, 6848, 10944, 96, 4304)] == [128, 64, 64, 32, None]
    with pytest.raises(ValueError, match=r"rows of 4304 weights cannot be held in int4: .*int8"):
        quantize_int4(torch.zeros(64, 4304))


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("width", [96, 256])
def test_int4_linear_equals_the_twin(tokens: int, width: int, path: str):
    weight, bias = quantize_int4(matrix(80, width)), torch.randn(80)
    x = torch.randn(tokens, width)
    found = int4_linear(x, weight, bias, out_features=80)
    # The kernel's activations and results are bfloat16.
    bound = 8e-3 if path == "kernel" and tokens <= quant.INT4_KERNEL_ROWS else 1e-5
    assert found.shape == (tokens, 80)
    assert found.dtype == torch.float32
    assert relative(found, int4_linear_ref(x, weight, bias, out_features=80)) < bound


def routing(tokens: int, experts: int, k: int = 2) -> Routing:
    chosen = torch.rand(tokens, experts).topk(k, dim=-1).indices
    weights = torch.rand(tokens, k)
    return Routing(chosen, weights, torch.rand(tokens, experts))


@pytest.mark.parametrize("tokens", [1, 9])
def test_int8_experts_equal_the_twin(tokens: int, path: str):
    floats = matrix(48, 64, experts=6), matrix(48, 64, experts=6), matrix(64, 48, experts=6)
    gate, up, down = map(quantize_int8, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)

    def linear(weight: Int8Weight):
        return lambda row, e: int8_linear(row, Int8Weight(weight.values[e], weight.scale[e]))

    found = int8_expert_mlp(x, choice, gate, up, down)
    twin = quantized_expert_mlp_ref(x, choice, (linear(gate), linear(up), linear(down)))
    assert relative(found, twin) < 1e-6
    assert relative(found, expert_mlp_ref(x, choice, *floats)) < 0.03


@pytest.mark.parametrize("tokens", [1, 9])
def test_int4_experts_equal_the_twin(tokens: int, path: str):
    floats = matrix(48, 64, experts=6), matrix(48, 64, experts=6), matrix(64, 32, experts=6)
    floats = floats[0][:, :32], floats[1][:, :32], floats[2]
    gate, up, down = map(quantize_int4, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)

    def linear(weight: Int4Weight, out: int):
        return lambda row, e: int4_linear_ref(
            row, Int4Weight(weight.values[e], weight.scale[e]), out_features=out
        )

    found = int4_expert_mlp(x, choice, gate, up, down, inner=32)
    linears = (linear(gate, 32), linear(up, 32), linear(down, 64))
    twin = quantized_expert_mlp_ref(x, choice, linears)
    assert relative(found, twin) < (2e-2 if path == "kernel" else 1e-5)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_one_token_touches_its_experts_only(scheme: str):
    """All other experts hold scales that are not numbers."""
    make = quantize_int8 if scheme == "int8" else quantize_int4
    gate, up, down = (make(torch.randn(8, 64, 64)) for _ in range(3))
    choice = routing(1, 8)
    others = [e for e in range(8) if e not in choice.experts.tolist()[0]]
    for weight in (gate, up, down):
        weight.scale[others] = float("nan")
    x = torch.randn(1, 64)
    if isinstance(gate, Int8Weight):
        out = int8_expert_mlp(x, choice, gate, up, down)
    else:
        out = int4_expert_mlp(x, choice, gate, up, down, inner=64)
    assert bool(out.isfinite().all())
