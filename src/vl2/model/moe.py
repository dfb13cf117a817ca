"""Feed-forward layers of the language model: the SwiGLU MLP and DeepSeekMoE (arXiv 2401.06066)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.model.linear import Held, Linear, held, outputs
from vl2.ops.activations import swiglu
from vl2.ops.batched_experts import batched_expert_mlp, batches_experts
from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.linear import experts
from vl2.ops.moe import (
    ExpertChange,
    Routing,
    expert_mlp,
    matmul_dtype,
    route,
    router_logits,
)
from vl2.ops.padded_experts import padded_expert_mlp, pads_experts


class Mlp(nn.Module):
    """SwiGLU without biases: down(silu(gate x) * up x)."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, inner, bias=False)
        self.up_proj = Linear(hidden, inner, bias=False)
        self.down_proj = Linear(inner, hidden, bias=False)

    def forward(self, x: Float[Tensor, "*lead h"]) -> Float[Tensor, "*lead h"]:
        """Per token."""
        gate, up = outputs(x, self.gate_proj, self.up_proj)
        return self.down_proj(swiglu(gate, up))


class Router(nn.Module):
    """Scores in float32; noaux_tc adds a correction bias that training steers without gradients."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = None
        if config.topk_method == "noaux_tc":
            bias = torch.empty(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Float[Tensor, "n h"]) -> Routing:
        """Experts, weights and scores of n tokens."""
        logits = router_logits(x, self.weight)
        return route(logits, self.config, self.e_score_correction_bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move with the module, but stay float32: bfloat16 would round 0.001 steps away."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if bias is not None and self.e_score_correction_bias.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device)
        return self


class Experts(nn.Module):
    """All routed experts of a layer, stacked: [experts, out, in]; see `Linear` for `kind`."""

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor

    def __init__(self, config: LanguageConfig, kind: str | None = None) -> None:
        super().__init__()
        self.config, self.kind, self.stored = config, kind, False
        e, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        assert e is not None
        wide, narrow = (e, inner, hidden), (e, hidden, inner)
        for name, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow)):
            if kind is None:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                self.add_module(name, Held(kind, shape))

    def forward(
        self, x: Float[Tensor, "n h"], routing: Routing, change: ExpertChange | None = None
    ) -> Float[Tensor, "n h"]:
        """Weighted sum over each token's experts, whose matrices a low-rank `change` may shift."""
        if self.kind is not None:
            gate, up, down = (held(self, f"{name}_proj") for name in ("gate", "up", "down"))
            return experts(x, routing, (gate, up, down), change)
        dtype = matmul_dtype(x)
        weights = (self.gate_proj, self.up_proj, self.down_proj)
        if x.device.type == "cpu" and not _traced():
            return chosen_expert_mlp(x.to(dtype), routing, *weights, change).to(x.dtype)
        gate, up, down = (weight.to(dtype) for weight in weights)
        rows = x.to(dtype)
        mlp = expert_mlp
        if batches_experts(rows, gate):
            mlp = batched_expert_mlp
        elif pads_experts(rows):
            mlp = padded_expert_mlp
        return mlp(rows, routing, gate, up, down, change).to(x.dtype)

    def held_as(self, kind: str) -> Experts:
        """Experts like these whose matrices are held in a kind, unset."""
        with torch.device(self.gate_proj.device):
            return Experts(self.config, kind)


def _traced() -> bool:
    """Whether autograd or the compiler follows; neither likes loops that depend on data."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


class MoE(nn.Module):
    """Routed experts beside shared ones, which are one fused MLP of n_shared_experts widths."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            inner = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = Mlp(config.hidden_size, inner)

    def forward(self, x: Float[Tensor, "b t h"]) -> tuple[Float[Tensor, "b t h"], Routing]:
        """The layer's output and what the router chose, for balancing."""
        rows = x.flatten(0, 1)
        routing = self.gate(rows)
        out = self.experts(rows, routing).view_as(x)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return out, routing


def matrix_layers(model: nn.Module) -> Iterator[tuple[str, Linear | Experts]]:
    """Names and modules that multiply by matrices, however these are held, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | Experts):
            yield name, module


def expert_stacks(model: nn.Module) -> list[Experts]:
    """The routed experts of every layer that is here, without adapters around them."""
    return [module for module in model.modules() if isinstance(module, Experts)]
