"""The linear layer of the model, whose matrix is a float, a float as its file has it, or held.

A held matrix (int8, float8, int4; ops/kinds.py) stands where the float one stood: key `K` of a
plain model's state dict becomes `K.int8` or the like beside `K.scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.ops.frozen import gradients_pass
from vl2.ops.kinds import KINDS, Weight
from vl2.ops.linear import linear
from vl2.ops.row_sizes import few_sizes
from vl2.ops.stored import stored_linears


class Held(nn.Module):
    """The matrix [out, in] of a linear layer, or [experts, out, in], in one kind."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        weight = KINDS[kind].empty(*shape)
        self.register_buffer(kind, weight.values)
        self.register_buffer("scale", weight.scale)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.data.values.device

    @property
    def data(self) -> Weight:
        """The tensors, for the functions of ops/."""
        values, scale = self._buffers[self.kind], self._buffers["scale"]
        assert values is not None
        assert scale is not None
        return KINDS[self.kind].of(values, scale, self.shape[-2])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Held:
        """Move with the module, but keep the dtypes: casts of a model are about its floats."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self


def held(module: nn.Module, name: str) -> Weight:
    """The weight that a module holds under a name."""
    part: Any = module._modules[name]
    return part.data


class Linear(nn.Module):
    """Return x @ weight.T + bias in the dtype of x.

    Attributes:
        weight: a parameter, or a `Held`: a gradient passes to x then, and never to it.
        bias: one per output, or None.
        stored: the weight is as its file has it, in whatever float dtype, see model/storage.py.
        kind: of the weight that is held; None: it is a float.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, kind: str | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.stored, self.kind = False, kind
        if kind is None:
            plain = nn.Linear(in_features, out_features, bias=bias)
            self.weight, self.bias = plain.weight, plain.bias
        else:
            self.add_module("weight", Held(kind, (out_features, in_features)))
            self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Per token."""
        if self.kind is not None:
            return linear(x, held(self, "weight"), self.bias)
        if self.stored or few_sizes(x):
            return stored_linears(x, (self.weight,), self.bias)
        return F.linear(x, self.weight, self.bias)

    def held_as(self, kind: str) -> Linear:
        """A layer like this whose matrix is held in a kind, unset; the bias is shared."""
        with torch.device(self.weight.device):
            made = Linear(self.in_features, self.out_features, bias=False, kind=kind)
        made.bias = self.bias
        return made

    @property
    def joint(self) -> str | None:
        """What other matrices must have, too, for one product with them; None: there is none."""
        if self.bias is not None:
            return None
        if self.kind is not None:
            return self.kind if KINDS[self.kind].joins else None
        return str(self.weight.dtype)


def outputs(x: Float[Tensor, "*lead i"], *layers: Any) -> tuple[Float[Tensor, "*lead _"], ...]:
    """Outputs of layers that read the same x, in one product where their matrices have one.

    Args:
        x: activations.
        layers: `Linear`, or the like with an adapter.
    """
    first = layers[0]
    common = {layer.joint for layer in layers}
    one = len(common) == 1 and None not in common
    floats = one and first.kind is None and (first.stored or few_sizes(x))
    if not floats and (not one or first.kind is None or gradients_pass(x)):
        return tuple(layer(x) for layer in layers)
    if floats:
        out = stored_linears(x, [layer.weight for layer in layers])
    else:
        weight, *others = (held(layer, "weight") for layer in layers)
        out = linear(x, weight, None, *others)
    return out.split([layer.out_features for layer in layers], dim=-1)
