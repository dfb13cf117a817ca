"""Products in bfloat16 of many rows: on tiles of AMX where there are any, else in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vl2.model.linear import Linear, outputs
from vl2.ops import backend
from vl2.ops.activations import swiglu
from vl2.ops.backend import in_c
from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.int4 import Int4Weight
from vl2.ops.int8 import Int8Weight
from vl2.ops.linear import experts, linear
from vl2.ops.moe import Routing, expert_mlp_ref
from vl2.ops.stored import stored_linears

ROUNDED = 0.0022
"""Relative distance of a result that is rounded to bfloat16 once: at most 2^-9 per number."""
TWICE = 0.008
"""After a hidden layer that is rounded too: up to 0.0031; PyTorch rounds oftener, up to 0.006."""


def noise(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def stack(*shape: int, size: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up and down of experts: [total, inner, hidden] and back."""
    total, inner, hidden = shape
    wide = [noise(total, inner, hidden, seed=n, size=size) for n in (1, 2)]
    return wide[0], wide[1], noise(total, hidden, inner, seed=3, size=size)


def narrow(weights: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    gate, up, down = weights
    return gate.bfloat16(), up.bfloat16(), down.bfloat16()


def twin(x: Tensor, routing: Routing, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    gate, up, down = weights
    return expert_mlp_ref(x.double(), routing, gate.double(), up.double(), down.double())


def routed(tokens: int, total: int, k: int) -> Routing:
    """Random choices, of which the last expert gets none where it can be so."""
    scores = noise(tokens, total, seed=7)
    scores[:, -1] = -9 if total > k else 0
    return Routing(scores.topk(k).indices, noise(tokens, k, seed=8).abs(), scores)


@pytest.mark.parametrize("rows", [2, 9, 16, 17, 48, 49, 700])
@pytest.mark.parametrize("width", [40, 64, 352])
@pytest.mark.parametrize("outs", [(48,), (20, 33), (64, 128, 96)])
@torch.inference_mode()
def test_linear_products_are_rounded_once(rows: int, width: int, outs: tuple[int, ...]):
    x = noise(rows, width).bfloat16()
    matrices = [noise(out, width, seed=out).bfloat16() for out in outs]
    bias = noise(outs[0], seed=3).bfloat16() if len(outs) == 1 else None
    wanted = F.linear(
        x.double(), torch.cat(matrices).double(), None if bias is None else bias.double()
    )
    assert distance(stored_linears(x, matrices, bias), wanted) < ROUNDED


@torch.inference_mode()
def test_a_row_depends_on_that_row_alone():
    x, matrix = noise(500, 96).bfloat16(), noise(70, 96, seed=1).bfloat16()
    whole = stored_linears(x, [matrix])
    for count in (2, 15, 33, 481):
        assert torch.equal(stored_linears(x[:count], [matrix]), whole[:count])


@torch.inference_mode()
def test_results_do_not_depend_on_threads():
    x, (gate, up, down) = noise(60, 64).bfloat16(), narrow(stack(6, 64, 64))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mixed = chosen_expert_mlp(x, routed(60, 6, 2), gate, up, down)
            found.append(torch.cat((stored_linears(x, [gate[0]]), mixed), dim=1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("tokens", [2, 20, 150])
@pytest.mark.parametrize(("hidden", "inner"), [(64, 48), (40, 24), (160, 96)])
@torch.inference_mode()
def test_experts_equal_their_twin(tokens: int, hidden: int, inner: int):
    x, routing, weights = (
        noise(tokens, hidden).bfloat16(),
        routed(tokens, 6, 2),
        stack(6, inner, hidden),
    )
    gate, up, down = narrow(weights)
    found = chosen_expert_mlp(x, routing, gate, up, down)
    assert distance(found, twin(x, routing, (gate, up, down))) < TWICE


@torch.inference_mode()
def test_all_rows_may_meet_one_expert():
    x, (gate, up, down) = noise(100, 64).bfloat16(), narrow(stack(3, 64, 64))
    routing = routed(100, 3, 1)._replace(experts=torch.ones(100, 1, dtype=torch.int64))
    found = chosen_expert_mlp(x, routing, gate, up, down)
    assert distance(found, twin(x, routing, (gate, up, down))) < TWICE


@pytest.mark.parametrize("rows", [10, 70])
@pytest.mark.parametrize(("out", "width"), [(64, 128), (100, 96), (20, 64)])
@torch.inference_mode()
def test_int4_is_unpacked_as_its_floats(rows: int, out: int, width: int):
    x, weight = noise(rows, width).bfloat16(), Int4Weight.pack(noise(out, width, seed=1))
    wanted = F.linear(x.double(), weight.floats().double())
    assert distance(linear(x, weight), wanted) < 0.003  # weights are rounded to bfloat16, too


@pytest.mark.parametrize("inner", [128, 96])
@torch.inference_mode()
def test_int4_experts_equal_their_twin(inner: int):
    """Rows of 96 are filled up to 128, which goes another way."""
    x, routing = noise(90, 64).bfloat16(), routed(90, 6, 2)
    gate, up, down = (Int4Weight.pack(weight) for weight in stack(6, inner, 64))
    wanted = twin(x, routing, (gate.floats(), up.floats(), down.floats()))
    assert distance(experts(x, routing, (gate, up, down)), wanted) < TWICE


@torch.inference_mode()
def test_layers_that_read_the_same_rows_are_one_product():
    layers = [Linear(64, out, bias=False).bfloat16() for out in (32, 48, 16)]
    x = noise(2, 20, 64).bfloat16()
    for found, layer in zip(outputs(x, *layers), layers, strict=True):
        wanted = F.linear(x.double(), layer.weight.double())
        assert distance(found, wanted) < ROUNDED
        assert found.shape == (2, 20, layer.out_features)


def test_training_keeps_pytorchs_products():
    layer = Linear(64, 32).bfloat16()
    x = noise(20, 64).bfloat16().requires_grad_()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not in_c("linear on tiles", x, layer.weight)


@pytest.mark.parametrize(("hidden", "inner"), [(64, 48), (100, 77), (40, 24)])
@torch.inference_mode()
def test_int8_experts_at_once_have_the_bits_of_two_products(
    hidden: int, inner: int, monkeypatch: pytest.MonkeyPatch
):
    x, routing = noise(60, hidden).bfloat16(), routed(60, 6, 2)
    gate, up, down = (Int8Weight.pack(weight) for weight in stack(6, inner, hidden))
    at_once = experts(x, routing, (gate, up, down))
    with monkeypatch.context() as one_by_one:
        never = replace(backend.TABLE["int8 experts"], least=1000)
        one_by_one.setitem(backend.TABLE, "int8 experts", never)
        assert torch.equal(experts(x, routing, (gate, up, down)), at_once)


@torch.inference_mode()
def test_the_swiglu_is_rounded_once():
    both = noise(3, 5, 200).bfloat16()
    for gate, up in (both.chunk(2, dim=-1), both.mT.contiguous().mT.chunk(2, dim=-1)):
        wanted = F.silu(gate.double()) * up.double()
        found = swiglu(gate, up)
        assert found.shape == gate.shape
        assert distance(found, wanted) < 2 * ROUNDED  # PyTorch rounds twice
