from dataclasses import replace

import pytest
import torch

from vl2.config import LanguageConfig, RopeScaling, VL2Config
from vl2.ops.groups import inverse_permutation, sort_by_expert
from vl2.ops.kv_cache import KVCache
from vl2.ops.loss import next_token_loss, next_token_loss_ref
from vl2.ops.moe import (
    ExpertChange,
    LowRank,
    Routing,
    balance_loss,
    combine_experts,
    expert_load,
    expert_mlp,
    expert_mlp_ref,
    expert_swiglu,
    expert_swiglu_ref,
    has_grouped_matmul,
    route,
    update_bias,
)
from vl2.ops.padded_experts import padded_expert_mlp
from vl2.ops.rope import apply_rope, deinterleave, inverse_frequencies, rope_tables
from vl2.ops.row_sizes import next_size

BASE = VL2Config.base().language_config


def moe_config(**changes) -> LanguageConfig:
    return replace(BASE, **{"n_routed_experts": 8, "num_experts_per_tok": 3, **changes})


# --- rope


def test_rope_is_a_rotation_by_the_position():
    config = replace(BASE, qk_rope_head_dim=8)
    cos, sin = rope_tables(torch.tensor([[0, 7]]), config)
    x = torch.randn(1, 2, 3, 8)
    turned = apply_rope(x, cos, sin)
    assert torch.equal(turned[:, 0], x[:, 0])
    angle = 7.0 * inverse_frequencies(8, 10000.0)
    pairs = torch.complex(x[0, 1, :, :4], x[0, 1, :, 4:]) * torch.polar(torch.ones(4), angle)
    torch.testing.assert_close(turned[0, 1], torch.cat((pairs.real, pairs.imag), -1))


def test_every_position_of_the_context_has_its_own_angle_whatever_the_model_dtype():
    cos, sin = rope_tables(torch.arange(4096)[None], BASE)
    assert cos.dtype == torch.float32
    assert len(torch.unique(torch.cat((cos, sin), -1)[0], dim=0)) == 4096


def test_deinterleave_puts_evens_first():
    assert deinterleave(torch.arange(6.0)).tolist() == [0, 2, 4, 1, 3, 5]


def test_yarn_leaves_fast_channels_and_divides_slow_ones():
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=1024)
    plain, stretched = inverse_frequencies(64, 10000.0), inverse_frequencies(64, 10000.0, scaling)
    assert stretched[0] == plain[0]
    torch.testing.assert_close(stretched[-1], plain[-1] / 4)
    assert (stretched <= plain).all()


# --- cache


def test_the_cache_refuses_more_than_it_holds():
    cache = KVCache.empty(BASE, 1, 3)
    assert cache.layers[0].shape == (1, 3, 576)
    cache.append(0, torch.zeros(1, 2, 576))
    cache.advance(2)
    with pytest.raises(ValueError, match="holds 3 tokens but 4 are needed"):
        cache.append(0, torch.zeros(1, 2, 576))


# --- routing


def test_softmax_greedy_weights_are_the_scores():
    config = moe_config(
        topk_method="greedy",
        scoring_func="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
    )
    logits = torch.randn(5, 8)
    got = route(logits, config)
    wanted = logits.softmax(-1).topk(3)
    assert torch.equal(got.experts.sort().values, wanted.indices.sort().values)
    torch.testing.assert_close(got.weights.sum(-1), wanted.values.sum(-1))


def test_noaux_bias_chooses_but_does_not_weigh():
    config = moe_config()
    logits, bias = torch.randn(50, 8), torch.zeros(8)
    bias[3] = 10.0
    got = route(logits, config, bias)
    assert (got.experts == 3).any(-1).all()
    torch.testing.assert_close(got.weights.sum(-1), torch.full((50,), 2.0))
    share = logits.sigmoid().gather(-1, got.experts)
    torch.testing.assert_close(got.weights, 2.0 * share / share.sum(-1, keepdim=True))


def test_group_limits_keep_whole_groups():
    config = moe_config(
        topk_method="group_limited_greedy", scoring_func="softmax", n_group=4, topk_group=2
    )
    got = route(torch.randn(64, 8), config)
    assert all(len(set((row // 2).tolist())) <= 2 for row in got.experts)


def test_a_dropped_group_loses_even_against_negative_scores():
    """The official code writes 0.0 for dropped groups, which beats a negative biased score."""
    config = moe_config(n_group=4, topk_group=2)
    bias = torch.full((8,), -5.0)
    got = route(torch.randn(64, 8), config, bias)
    assert all(len(set((row // 2).tolist())) <= 2 for row in got.experts)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_grouped_experts_equal_the_loop_forward_and_backward(tokens):
    weights = [torch.randn(8, 16, 12), torch.randn(8, 16, 12), torch.randn(8, 12, 16)]
    x = torch.randn(tokens, 12)
    logits = torch.randn(tokens, 8)
    logits[:, 5] = -9.0  # an expert that nobody chooses
    results = []
    for experts in (expert_mlp, expert_mlp_ref):
        leaves = [t.clone().requires_grad_() for t in (x, logits, *weights)]
        rows, scores, gate, up, down = leaves
        out = experts(rows, route(scores, moe_config()), gate, up, down)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)  # worst measured 6e-5 of 300


@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 5, 0, 0), (0, 0, 0, 0)])
def test_grouped_rows_equal_one_expert_after_the_other(counts):
    rows = torch.randn(sum(counts), 16)
    weights = (torch.randn(4, 8, 16), torch.randn(4, 8, 16), torch.randn(4, 16, 8))
    cotangent = torch.randn(sum(counts), 16)
    results = []
    for function in (expert_swiglu, expert_swiglu_ref):
        leaves = [tensor.clone().requires_grad_() for tensor in (rows, *weights)]
        x, gate, up, down = leaves
        out = function(x, torch.tensor(counts), gate, up, down)
        out.backward(cotangent)
        results.append([out, *(leaf.grad for leaf in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)  # worst measured 6e-8 of 290
    for expert, count in enumerate(counts):
        assert all(bool(g[expert].any()) == (count > 0) for g in results[0][2:])


@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("changed", [False, True])
def test_padded_experts_equal_the_loop_forward_and_backward(tokens: int, changed: bool):
    generator = torch.Generator().manual_seed(tokens)
    x, gate, up, down = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((tokens, 12), (5, 8, 12), (5, 8, 12), (5, 12, 8))
    )
    experts = torch.stack(
        [torch.randperm(4, generator=generator)[:2] for _ in range(tokens)]
    )  # nobody chooses the last
    routing = Routing(experts, torch.rand(tokens, 2, generator=generator), torch.rand(tokens, 5))
    change = None
    if changed:
        widths = ((12, 8), (12, 8), (8, 12))
        parts = [
            LowRank(
                torch.randn(5, 2, i, dtype=torch.float64), torch.randn(5, o, 2, dtype=torch.float64)
            )
            for i, o in widths
        ]
        change = ExpertChange(*parts)
    results = []
    for mlp in (padded_expert_mlp, expert_mlp_ref):
        out = mlp(x, routing, gate, up, down, change)
        grads = torch.autograd.grad(out.square().sum(), (x, gate, up, down))
        results.append((out.detach(), *grads))
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max() + 1))


def test_sizes_are_few_and_close():
    sizes = {next_size(rows) for rows in range(1, 5000)}
    assert len(sizes) < 40
    assert all(rows <= next_size(rows) <= max(16, 1.25 * rows + 1) for rows in range(1, 5000))


def test_copies_go_to_their_experts_and_back():
    experts = torch.tensor([[2, 0], [1, 2], [0, 2]])
    order, counts = sort_by_expert(experts, 4)
    assert order.tolist() == [1, 4, 2, 0, 3, 5]  # copies of a token keep its place
    assert counts.tolist() == [2, 1, 3, 0]
    assert torch.equal(order[inverse_permutation(order)], torch.arange(6))
    weights = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    copies = torch.arange(6.0)[:, None][order]  # what each copy's expert returned
    assert combine_experts(copies, order, weights).tolist() == [[10.0], [64.0], [162.0]]


def test_odd_widths_go_without_the_grouped_matmul():
    assert has_grouped_matmul(torch.zeros(1, 12), torch.zeros(2, 16, 12))
    assert not has_grouped_matmul(torch.zeros(1, 10), torch.zeros(2, 16, 10))
    assert not has_grouped_matmul(torch.zeros(1, 12).bfloat16(), torch.zeros(2, 16, 12).bfloat16())


def test_balance_loss_is_alpha_when_even_and_grows_when_skewed():
    config = moe_config(num_experts_per_tok=1, aux_loss_alpha=1.0)
    mask = torch.ones(1, 8, dtype=torch.bool)
    uniform = torch.full((8, 8), 1 / 8)
    even = Routing(torch.arange(8)[:, None], torch.ones(8, 1), uniform)
    assert balance_loss(even, mask, config).item() == pytest.approx(1.0)
    peaked = torch.zeros(8, 8)
    peaked[:, 0] = 1.0
    skewed = Routing(torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1), peaked)
    assert balance_loss(skewed, mask, config).item() == pytest.approx(8.0)


def test_balance_loss_of_sigmoids_follows_the_report_of_deepseek_v3():
    """arXiv 2412.19437, eq. 17 to 20, spelled out for two sequences."""
    config = moe_config(aux_loss_alpha=0.25)
    tokens, chosen, experts = 6, 3, 8
    routing = route(torch.randn(2 * tokens, experts), config)
    wanted = 0.0
    for rows in range(0, 2 * tokens, tokens):
        scores = routing.scores[rows : rows + tokens].double()
        picks = routing.experts[rows : rows + tokens].flatten().tolist()
        shares = torch.stack([token / token.sum() for token in scores]).mean(dim=0)
        often = [experts / (chosen * tokens) * picks.count(expert) for expert in range(experts)]
        wanted += 0.25 * sum(f * p for f, p in zip(often, shares.tolist(), strict=True)) / 2
    found = balance_loss(routing, torch.ones(2, tokens, dtype=torch.bool), config)
    assert found.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_small_scores_do_not_stand_for_balance(kind: str):
    """Shrinking every score of a skewed choice changes no share of it, and no loss."""
    config = moe_config(scoring_func=kind, topk_method="greedy", aux_loss_alpha=1.0)
    logits = torch.randn(12, 8) + torch.arange(8.0)
    routing, mask = route(logits, config), torch.ones(2, 6, dtype=torch.bool)
    whole = balance_loss(routing, mask, config)
    if kind == "softmax":  # scores are shares already: the official code's numbers, bit for bit
        scores = routing.scores.view(2, 6, 8).mean(dim=1)
        often = [torch.bincount(e.flatten(), minlength=8) for e in routing.experts.view(2, 6, 3)]
        assert torch.equal(whole, (torch.stack(often) / 6 * (8 / 3) * scores).sum(dim=1).mean())
        return
    small = balance_loss(routing._replace(scores=routing.scores * 1e-3), mask, config)
    torch.testing.assert_close(small, whole, rtol=1e-6, atol=0)


def test_padding_does_not_count_in_balance_or_load():
    config = moe_config()
    routing = route(torch.randn(12, 8), config)
    mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    kept = Routing(*(t.view(2, 6, -1)[:, 2:].flatten(0, 1) for t in routing))
    whole = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(
        balance_loss(routing, mask, config), balance_loss(kept, whole, config)
    )
    assert torch.equal(expert_load(routing, mask, 8), expert_load(kept, whole, 8))


def test_bias_update_lowers_the_overloaded():
    bias = update_bias(torch.zeros(4), torch.tensor([9.0, 1.0, 1.0, 1.0]), 0.001)
    torch.testing.assert_close(bias, torch.tensor([-0.001, 0.001, 0.001, 0.001]))


# --- loss


def test_chunked_loss_and_gradient_equal_the_plain_twin():
    labels = torch.randint(0, 30, (2, 9))
    labels[:, :4] = -100
    results = []
    for chunk in (None, 3):
        torch.manual_seed(1)
        hidden, head = (
            torch.randn(2, 9, 8, requires_grad=True),
            torch.randn(30, 8, requires_grad=True),
        )
        if chunk is None:
            loss = next_token_loss_ref(hidden @ head.T, labels)
        else:
            loss = next_token_loss(hidden, head, labels, chunk=chunk)
        loss.backward()
        results.append((loss, hidden.grad, head.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_nothing_supervised_is_zero_not_nan():
    labels = torch.full((1, 4), -100)
    assert next_token_loss(torch.randn(1, 4, 8), torch.randn(5, 8), labels).item() == 0.0
    assert next_token_loss_ref(torch.randn(1, 4, 5), labels).item() == 0.0


def test_nothing_supervised_still_reaches_hidden_states_and_head():
    """Ranks that train together reduce gradients of the same parameters, whatever their rows."""
    hidden, head = torch.randn(1, 4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    next_token_loss(hidden, head, torch.full((1, 4), -100)).backward()
    for part in (hidden, head):
        assert part.grad is not None
        assert not part.grad.any()
