"""GELU and softmax of training in C against PyTorch's, in the same precision and in float32."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.native_paths import AARCH64, use_path

from vl2.ops import activations
from vl2.ops.backend import in_c
from vl2.ops.native import kernels, training

pytestmark = pytest.mark.skipif(not kernels.available(), reason="needs a C compiler")


@pytest.fixture(autouse=True, params=["native", *AARCH64])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_path(request.param, monkeypatch)


SHAPES = [(1,), (3, 5), (2, 2, 40, 33), (2050,)]


@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_those_of_pytorch_to_the_bit(shape: tuple[int, ...], name: str) -> None:
    function = getattr(activations, name)
    x = (3 * torch.randn(shape)).bfloat16().requires_grad_()
    assert in_c("activations", x)
    change = torch.randn(shape).bfloat16()
    [found] = torch.autograd.grad(function(x), x, change)
    plain = x.detach().float().requires_grad_()
    wanted = function(plain)
    [slope] = torch.autograd.grad(wanted, plain, change.float())
    assert torch.equal(function(x), wanted.bfloat16())
    torch.testing.assert_close(found.float(), slope, rtol=2**-8, atol=1e-30)


def test_gelu_of_the_ends_of_the_range() -> None:
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-40]).bfloat16()
    wanted = F.gelu(x.float(), approximate="tanh").bfloat16()
    torch.testing.assert_close(training.activate(x, "gelu"), wanted, equal_nan=True, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 90), scale=st.floats(0.01, 2.0))
def test_softmax_is_that_of_float32_rounded(rows: int, width: int, scale: float) -> None:
    x = (4 * torch.randn(rows, width)).bfloat16().requires_grad_()
    change = torch.randn(rows, width).bfloat16()
    shares = training.scaled_softmax(x, scale, None)
    [found] = torch.autograd.grad(shares, x, change)
    plain = x.detach().float().requires_grad_()
    wanted = (scale * plain).softmax(-1)
    [slope] = torch.autograd.grad(wanted, plain, change.float())
    torch.testing.assert_close(shares.float(), wanted, rtol=2**-7, atol=1e-6)
    # The shares were rounded before they were multiplied by changes of about one.
    torch.testing.assert_close(found.float(), slope, rtol=2**-6, atol=2**-8 * scale * 3)


@pytest.mark.parametrize("batch", [1, 3])
def test_softmax_leaves_out_what_is_masked(batch: int) -> None:
    x = (4 * torch.randn(3, 2, 5, 37)).bfloat16().requires_grad_()
    mask = torch.rand(batch, 1, 5, 37) < 0.4
    mask[..., 3] = True
    change = torch.randn(x.shape).bfloat16()
    shares = training.scaled_softmax(x, 0.3, mask)
    [found] = torch.autograd.grad(shares, x, change)
    plain = x.detach().float().requires_grad_()
    wanted = (0.3 * plain).masked_fill(~mask, -torch.inf).softmax(-1)
    [slope] = torch.autograd.grad(wanted, plain, change.float())
    torch.testing.assert_close(shares.float(), wanted, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(found.float(), slope, rtol=2**-6, atol=2**-7)
    hidden = ~mask.expand_as(x)
    assert not shares[hidden].any()
    assert not found[hidden].any()


def test_layouts_do_not_matter() -> None:
    x = torch.randn(6, 8).bfloat16().t().requires_grad_()
    change = torch.randn(6, 8).bfloat16().t()
    for function in (activations.gelu, lambda x: training.scaled_softmax(x, 0.5, None)):
        out = function(x)
        assert torch.equal(out, function(x.contiguous()))
        [one] = torch.autograd.grad(out, x, change)
        [two] = torch.autograd.grad(function(x.contiguous()), x, change.contiguous())
        assert torch.equal(one, two)


def test_other_tensors_are_left_to_pytorch() -> None:
    x = torch.randn(3).requires_grad_()
    assert not in_c("activations", x)
    assert not in_c("activations", x.detach().bfloat16())
    with torch.no_grad():
        assert not in_c("activations", x.bfloat16())
    with kernels.left_out():
        assert not in_c("activations", x.bfloat16())
    assert in_c("activations", x.bfloat16())
