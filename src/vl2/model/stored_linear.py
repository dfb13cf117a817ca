"""A linear layer whose weight stays as its file holds it, see model/storage.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.ops.stored import stored_linears


class StoredLinear(nn.Module):
    """`nn.Linear` with a frozen weight of any float dtype; results have the dtype of the input."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty(out_features, in_features)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Per token; a gradient passes to x, never to the weight."""
        return stored_linears(x, (self.weight,), self.bias)
