"""Routed experts under autocast: the products of the plain loop, in its dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vl2.config import VL2Config
from vl2.model.moe import Experts
from vl2.ops.moe import Routing, expert_mlp_ref, route

CONFIG = replace(
    VL2Config.preset("debug_base").language_config,
    n_routed_experts=8,
    n_group=1,
    topk_group=1,
    hidden_size=32,
    moe_intermediate_size=16,
)


def make() -> Experts:
    generator = torch.Generator().manual_seed(0)
    experts = Experts(CONFIG)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return experts


def gradients(
    experts: Experts, mlp: Callable[[Tensor, Routing], Tensor], *, autocast: bool
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=generator)
    routing = route(torch.randn(64, 8, generator=generator), CONFIG)
    experts.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = mlp(x, routing)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    return {name: p.grad.clone() for name, p in experts.named_parameters()}


def test_under_autocast_they_multiply_in_bfloat16_as_plain_products_do():
    experts = make()

    def loop(rows: Tensor, routing: Routing) -> Tensor:
        weights = (experts.gate_proj, experts.up_proj, experts.down_proj)
        return expert_mlp_ref(rows, routing, *weights)

    exact = gradients(experts, experts, autocast=False)
    ours = gradients(experts, experts, autocast=True)
    plain = gradients(experts, loop, autocast=True)
    for name, wanted in exact.items():
        error, usual = (float((f[name] - wanted).norm() / wanted.norm()) for f in (ours, plain))
        assert 1e-3 < error < 1.5 * usual  # both about 0.004
