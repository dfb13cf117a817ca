"""Linear layers and routed experts that hold their weights in int8, float8 or int4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.model.stored_linear import StoredLinear
from vl2.ops.held import held_experts, held_linear
from vl2.ops.moe import ExpertChange, Routing, matmul_dtype
from vl2.ops.quant_backward import gradients_pass, quant_expert_mlp, quant_linear
from vl2.ops.quant_linear import int8_products
from vl2.ops.stored import stored_linears
from vl2.ops.weight import (
    INT4_ROWS,
    KINDS,
    Int8Weight,
    QuantWeightData,
    at_expert,
)

ROWS_NUMBERS = 2**21
"""Weights that are quantised at a time: 8 MiB in float32."""


class QuantWeight(nn.Module):
    """The matrix [out, in] of a linear layer, or [experts, out, in], in one scheme."""

    def __init__(self, scheme: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scheme, self.shape = scheme, shape
        values, scale = KINDS[scheme].empty(*shape)
        self.register_buffer(scheme, values)
        self.register_buffer("scale", scale)

    @property
    def data(self) -> QuantWeightData:
        """The tensors, for the functions of ops/."""
        values, scale = self._buffers[self.scheme], self._buffers["scale"]
        assert values is not None
        assert scale is not None
        return KINDS[self.scheme](values, scale)

    def fill(self, weight: Tensor) -> None:
        """Quantise `weight` into place, some rows at a time."""
        matrices = [()] if weight.dim() == 2 else [(e,) for e in range(len(weight))]
        rows = INT4_ROWS * max(1, ROWS_NUMBERS // (INT4_ROWS * weight.shape[-1]))
        for index in matrices:
            target = at_expert(self.data, index)
            for row in range(0, weight.shape[-2], rows):
                part = weight[index][row : row + rows]
                target.store(KINDS[self.scheme].pack(part), row)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantWeight:
        """Move with the module, but keep the dtypes: casts of a model are about its floats."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self


class QuantLinear(nn.Module):
    """`nn.Linear` with a quantised weight; the result has the dtype of the input."""

    def __init__(self, scheme: str, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = QuantWeight(scheme, (out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Per token; a gradient passes to x, never to the weight."""
        data, rows = self.weight.data, self.out_features
        if gradients_pass(x, self.bias):
            return quant_linear(x, data, self.bias, out_features=rows, dtype=matmul_dtype(x))
        return held_linear(x, data, self.bias, out_features=rows)


class QuantExperts(nn.Module):
    """All routed experts of a layer with quantised weights, in place of `Experts`."""

    def __init__(self, scheme: str, *, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.gate_proj = QuantWeight(scheme, (experts, inner, hidden))
        self.up_proj = QuantWeight(scheme, (experts, inner, hidden))
        self.down_proj = QuantWeight(scheme, (experts, hidden, inner))

    def forward(
        self, x: Float[Tensor, "n h"], routing: Routing, change: ExpertChange | None = None
    ) -> Float[Tensor, "n h"]:
        """Weighted sum over each token's experts, whose matrices a low-rank `change` may shift.

        Gradients pass to x, the routing and the change, never to the weights.
        """
        weights = (self.gate_proj.data, self.up_proj.data, self.down_proj.data)
        if change is not None or gradients_pass(x, routing.weights):
            dtype = matmul_dtype(x)
            return quant_expert_mlp(x, routing, weights, change, inner=self.inner, dtype=dtype)
        return held_experts(x, routing, weights, inner=self.inner)


def outputs(
    x: Float[Tensor, "*lead i"], *layers: nn.Module
) -> tuple[Float[Tensor, "*lead _"], ...]:
    """Outputs of linear layers that read the same x, where one call can give all of them.

    In int8 x is rounded once for all.
    """
    stored = [layer for layer in layers if isinstance(layer, StoredLinear) and layer.bias is None]
    if len(stored) == len(layers) and len({layer.weight.dtype for layer in stored}) == 1:
        out = stored_linears(x, [layer.weight for layer in stored])
        return out.split([layer.out_features for layer in stored], dim=-1)
    quantised = [layer for layer in layers if isinstance(layer, QuantLinear) and layer.bias is None]
    weights = (layer.weight.data for layer in quantised)
    held = [weight for weight in weights if isinstance(weight, Int8Weight)]
    if len(held) < len(layers) or gradients_pass(x):
        return tuple(layer(x) for layer in layers)
    out = int8_products(x.flatten(0, -2), held, dtype=x.dtype).unflatten(0, x.shape[:-1])
    return out.split([len(weight.scale) for weight in held], dim=-1)
