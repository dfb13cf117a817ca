"""Experts one after the other, as a CPU answers: the plain twin's numbers, in few sizes."""

import pytest
import torch
from tests.unit.test_ops import moe_config

from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.moe import ExpertChange, LowRank, Routing, expert_mlp_ref, route
from vl2.ops.row_sizes import filled_up, next_size
from vl2.ops.stored import stored_linears, stored_linears_ref


def low_ranks(weights: list[torch.Tensor]) -> ExpertChange:
    sizes = [weight.shape for weight in weights]
    factors = ((torch.randn(e, 2, i) / 4, torch.randn(e, o, 2) / 4) for e, o, i in sizes)
    return ExpertChange(*(LowRank(a, b) for a, b in factors))


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 64, 200])  # of 8 experts, in rows and in columns
def test_chosen_experts_equal_the_loop_over_all(tokens, changed):
    weights = [torch.randn(8, 16, 12), torch.randn(8, 16, 12), torch.randn(8, 12, 16)]
    logits = torch.randn(tokens, 8)
    logits[:, 5] = -9.0  # an expert that nobody chooses
    x, routing = torch.randn(tokens, 12), route(logits, moe_config())
    change = low_ranks(weights) if changed else None
    got, want = (f(x, routing, *weights, change) for f in (chosen_expert_mlp, expert_mlp_ref))
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 16, 17, 100, 513])
def test_products_of_few_sizes_are_those_of_the_rows(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    x = torch.randn(rows, 24, dtype=torch.bfloat16)
    weight, bias = torch.randn(8, 24).bfloat16(), torch.randn(8).bfloat16()
    routing = Routing(torch.randint(0, 4, (rows, 2)), torch.rand(rows, 2), torch.zeros(rows, 4))
    experts = [torch.randn(4, *shape).bfloat16() for shape in ((8, 24), (8, 24), (24, 8))]
    assert filled_up(x) is x  # training has sizes of its own
    with torch.inference_mode():
        filled = filled_up(x)
        assert filled.shape == (next_size(rows), 24)
        assert torch.equal(filled[:rows], x)
        assert not filled[rows:].any()
        got, want = stored_linears(x, [weight], bias), stored_linears_ref(x, [weight], bias)
        assert torch.allclose(got, want, atol=0.1)
        got, want = (mlp(x, routing, *experts) for mlp in (chosen_expert_mlp, expert_mlp_ref))
        assert torch.allclose(got, want, atol=0.05 * float(want.abs().max()))
