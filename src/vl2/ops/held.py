"""Products of inference with a weight of any kind.

Where gradients pass, ops/quant_backward.py comes first, and calls these on the way forward.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from vl2.ops.float8_linear import float8_expert_mlp, float8_linear
from vl2.ops.moe import Routing
from vl2.ops.quant_linear import int4_expert_mlp, int4_linear, int8_expert_mlp, int8_linear
from vl2.ops.weight import QuantWeightData

LINEAR: dict[str, Callable[..., Tensor]] = {
    "int8": lambda x, weight, bias, _, activation: int8_linear(
        x, weight, bias, activation=activation
    ),
    "float8": lambda x, weight, bias, *_: float8_linear(x, weight, bias),
    "int4": lambda x, weight, bias, rows, _: int4_linear(x, weight, bias, out_features=rows),
}
EXPERTS: dict[str, Callable[..., Tensor]] = {
    "int8": lambda x, routing, weights, _: int8_expert_mlp(x, routing, *weights),
    "float8": lambda x, routing, weights, _: float8_expert_mlp(x, routing, *weights),
    "int4": lambda x, routing, weights, inner: int4_expert_mlp(x, routing, *weights, inner=inner),
}
"""Each by the kind of its weights."""


def held_linear(
    x: Float[Tensor, "*lead i"],
    weight: QuantWeightData,
    bias: Float[Tensor, " o"] | None = None,
    *,
    out_features: int,
    activation: str = "none",
) -> Float[Tensor, "*lead {out_features}"]:
    """Return x @ weight.T + bias in the dtype of x.

    Args:
        x: activations.
        weight: of any kind.
        bias: one per row of the matrix.
        out_features: these rows, without padding.
        activation: applied to x on the way, which a kind takes that goes through float32.
    """
    assert activation == "none" or weight.through_float32
    return LINEAR[weight.kind](x, weight, bias, out_features, activation)


def held_experts(
    x: Float[Tensor, "n h"],
    routing: Routing,
    weights: tuple[QuantWeightData, QuantWeightData, QuantWeightData],
    *,
    inner: int,
) -> Float[Tensor, "n h"]:
    """Weighted sum of each token's expert SwiGLUs: gate, up and down of one kind, `inner` wide."""
    return EXPERTS[weights[0].kind](x, routing, weights, inner)
