"""Products with int8 and int4 weights: fast paths against plain twins, and what they promise."""

from __future__ import annotations

import pytest
import torch
from tests.unit.native_paths import use_path
from tests.unit.quant_samples import matrix, relative

from vl2.ops.backend import INT4_KERNEL_ROWS
from vl2.ops.frozen import frozen_experts_ref
from vl2.ops.int4 import Int4Weight, int4_linear_ref
from vl2.ops.int8 import Int8Weight, int8_linear_ref
from vl2.ops.kinds import KINDS
from vl2.ops.linear import experts, linear
from vl2.ops.moe import Routing, expert_mlp_ref


@pytest.fixture(params=["native", "portable", "kernel", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to multiply: see `use_path`."""
    use_path(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_int8_linear_equals_the_twin(dtype: torch.dtype, tokens: int, path: str):
    weight, bias = Int8Weight.pack(matrix(70, 96)), torch.randn(70)
    x = torch.randn(2, tokens, 96).to(dtype)
    found = linear(x, weight, bias)
    assert found.dtype == dtype
    assert relative(found, int8_linear_ref(x, weight, bias)) < 4 * torch.finfo(dtype).eps


def test_int8_linear_of_a_token_is_the_same_in_every_batch(path: str):
    weight, x = Int8Weight.pack(matrix(70, 96)), torch.randn(9, 96)
    x[4] = x[4] * 1e4
    alone = torch.cat([linear(row[None], weight) for row in x])
    assert torch.equal(linear(x, weight), alone)


def test_int8_keeps_what_is_no_number():
    x = torch.randn(3, 96)
    x[1, 7] = float("nan")
    out = linear(x, Int8Weight.pack(matrix(70, 96)))
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("width", [96, 256])
def test_int4_linear_equals_the_twin(tokens: int, width: int, path: str):
    weight, bias = Int4Weight.pack(matrix(80, width)), torch.randn(80)
    x = torch.randn(tokens, width)
    found = linear(x, weight, bias)
    # Activations and results of PyTorch's kernel are bfloat16.
    in_bfloat16 = path in ("portable", "kernel") and tokens <= INT4_KERNEL_ROWS
    bound = 8e-3 if in_bfloat16 else 1e-5
    assert found.shape == (tokens, 80)
    assert found.dtype == torch.float32
    assert relative(found, int4_linear_ref(x, weight, bias)) < bound


def routing(tokens: int, experts: int, k: int = 2) -> Routing:
    chosen = torch.rand(tokens, experts).topk(k, dim=-1).indices
    weights = torch.rand(tokens, k)
    return Routing(chosen, weights, torch.rand(tokens, experts))


@pytest.mark.parametrize("tokens", [1, 9])
def test_int8_experts_equal_the_twin(tokens: int, path: str):
    floats = matrix(48, 64, experts=6), matrix(48, 64, experts=6), matrix(64, 48, experts=6)
    gate, up, down = map(Int8Weight.pack, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)
    found = experts(x, choice, (gate, up, down))
    twin = frozen_experts_ref(x, choice, (gate, up, down))
    assert relative(found, twin) < 1e-6
    assert relative(found, expert_mlp_ref(x, choice, *floats)) < 0.03


@pytest.mark.parametrize("tokens", [1, 9])
def test_int4_experts_equal_the_twin(tokens: int, path: str):
    floats = matrix(48, 64, experts=6), matrix(48, 64, experts=6), matrix(64, 32, experts=6)
    floats = floats[0][:, :32], floats[1][:, :32], floats[2]
    gate, up, down = map(Int4Weight.pack, floats)
    x, choice = torch.randn(tokens, 64), routing(tokens, 6)
    found = experts(x, choice, (gate, up, down))
    twin = frozen_experts_ref(x, choice, (gate, up, down))
    assert relative(found, twin) < (2e-2 if path in ("portable", "kernel") else 1e-5)


@pytest.mark.parametrize("scheme", KINDS)
def test_one_token_touches_its_experts_only(scheme: str):
    """All other experts hold scales that are not numbers."""
    gate, up, down = (KINDS[scheme].pack(torch.randn(8, 64, 64)) for _ in range(3))
    choice = routing(1, 8)
    others = [e for e in range(8) if e not in choice.experts.tolist()[0]]
    for weight in (gate, up, down):
        weight.scale[others] = float("nan")
    assert bool(experts(torch.randn(1, 64), choice, (gate, up, down)).isfinite().all())
