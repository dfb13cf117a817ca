"""Products with int8 and int4 weights: fast paths against plain twins, and what they promise."""

from __future__ import annotations

import pytest
import torch
from tests.unit.native_paths import use_path
from tests.unit.quant_samples import matrix, relative

from vl2.ops import quant_linear
from vl2.ops.moe import Routing, expert_mlp_ref
from vl2.ops.quant_linear import (
    int4_expert_mlp,
    int4_linear,
    int4_linear_ref,
    int8_expert_mlp,
    int8_linear,
    int8_linear_ref,
    quantized_expert_mlp_ref,
)
from vl2.ops.weight import Int4Weight, Int8Weight, quantize_int4, quantize_int8


@pytest.fixture(params=["native", "portable", "kernel", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to multiply: see `use_path`."""
    use_path(request.param, monkeypatch)
    return request.param


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


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("width", [96, 256])
def test_int4_linear_equals_the_twin(tokens: int, width: int, path: str):
    weight, bias = quantize_int4(matrix(80, width)), torch.randn(80)
    x = torch.randn(tokens, width)
    found = int4_linear(x, weight, bias, out_features=80)
    # Activations and results of PyTorch's kernel are bfloat16.
    in_bfloat16 = path in ("portable", "kernel") and tokens <= quant_linear.INT4_KERNEL_ROWS
    bound = 8e-3 if in_bfloat16 else 1e-5
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
    assert relative(found, twin) < (2e-2 if path in ("portable", "kernel") else 1e-5)


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
