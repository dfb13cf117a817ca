"""Layers with low-rank adapters (LoRA, arXiv 2106.09685): W x + alpha / rank * B A x, W frozen.

The base keeps its dtype, or is held in int8 or int4 (QLoRA, arXiv 2305.14314); adapters are
float32. A base weight is never multiplied out with its change: both factors work on the
activations, so an adapted layer keeps its activations of width `rank` for the backward pass and no
second weight. That is also why the base may be held in any form that gradients pass.

`peft` does the same for `nn.Linear`, and it has `target_parameters` for stacked experts. Neither
fits here. Its stacked form adapts every expert of a layer, builds W + B A of all of them anew in
each forward pass, and keeps it for the backward pass: the experts of Base once more. Its Linear
shows the bare W as `weight`, which the absorbed form of latent attention reads: cached steps would
miss the adapter. Its unmerge subtracts what merge added, which does not bring the bits back. So the
layers are our own; the files (checkpoint/lora_files.py) are PEFT's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.model.linear import Held, Linear
from vl2.model.moe import Experts, matrix_layers
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import ExpertChange, LowRank, Routing, matmul_dtype

RANK_STEP = 8
"""Grouped matmuls want rows of a multiple of 16 bytes: ranks are padded with zeros up to this."""


class LoraLinear(nn.Module):
    """A linear layer with an adapter; a new one changes nothing."""

    joint = None  # no product of its own weight is enough

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self._kept: Tensor | None = None
        device = next(itertools.chain(base.parameters(), base.buffers())).device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The changed weight, for those who need the matrix itself (absorbed attention)."""
        if self._kept is not None:
            return self._kept
        assert self.base.kind is None, "layers that are read as matrices stay floats"
        return changed(self.base.weight, self.lora_A, self.lora_B, self.alpha / self.rank)

    @torch.no_grad()
    def keep(self, dtype: torch.dtype) -> None:
        """Multiply the change out, in the base's dtype: for answering; training is not seen."""
        self._kept = self.weight

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """The layer's output with the change."""
        inner = F.linear(x, self.lora_A.to(x.dtype))
        return self.base(x) + F.linear(inner, self.lora_B.to(x.dtype)) * (self.alpha / self.rank)


class LoraStack(nn.Module):
    """Adapters of one matrix of the chosen experts of a layer."""

    experts: Tensor  # [chosen] int64; kept with the state, which means nothing without it

    def __init__(self, weight: Tensor | Held, experts: Sequence[int], rank: int) -> None:
        super().__init__()
        self.total, out, width = weight.shape
        device = weight.device
        self.register_buffer("experts", torch.tensor(experts, dtype=torch.int64, device=device))
        self.lora_A = nn.Parameter(torch.zeros(len(experts), rank, width, device=device))
        self.lora_B = nn.Parameter(torch.zeros(len(experts), out, rank, device=device))

    def forward(self, scale: float, dtype: torch.dtype) -> LowRank:
        """The change of every expert's matrix: zeros for those that were not chosen."""
        pad = -self.lora_A.shape[1] % RANK_STEP
        a = F.pad(self.lora_A, (0, 0, 0, pad)).to(dtype)
        b = F.pad(self.lora_B * scale, (0, pad)).to(dtype)
        return LowRank(*(_spread(factor, self.experts, self.total) for factor in (a, b)))


class LoraExperts(nn.Module):
    """The routed experts of a layer, some or all of them with adapters."""

    def __init__(self, base: Experts, experts: Sequence[int], rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self._kept: ExpertChange | None = None
        self.gate_proj = LoraStack(base.gate_proj, experts, rank)
        self.up_proj = LoraStack(base.up_proj, experts, rank)
        self.down_proj = LoraStack(base.down_proj, experts, rank)

    def forward(self, x: Float[Tensor, "n h"], routing: Routing) -> Float[Tensor, "n h"]:
        """Weighted sum over each token's experts, changed ones among them."""
        change = self._kept or self._change(matmul_dtype(x))
        return self.base(x, routing, change)

    def keep(self, dtype: torch.dtype) -> None:
        """Spread the factors, for answering in a dtype; training is not seen."""
        self._kept = self._change(dtype)

    def _change(self, dtype: torch.dtype) -> ExpertChange:
        scale = self.alpha / self.rank
        return ExpertChange(*(stack(scale, dtype) for stack in self.stacks().values()))

    def stacks(self) -> dict[str, LoraStack]:
        """The adapters by the name of the matrix that they change, in the order of the MLP."""
        return {
            "gate_proj": self.gate_proj,
            "up_proj": self.up_proj,
            "down_proj": self.down_proj,
        }


Layer = LoraLinear | LoraExperts


def attach(model: VL2Model, places: Mapping[str, Sequence[int]], rank: int, alpha: float) -> None:
    """Freeze a model and wrap modules with adapters of zeros, which change nothing.

    Args:
        model: without adapters.
        places: paths of linear layers and of experts, and which of the latter to adapt.
        rank: of every adapter.
        alpha: the change is scaled by alpha / rank.

    Raises:
        ValueError: the model has adapters already.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters already: merge them, or load the model again")
    model.requires_grad_(False)
    layers = dict(matrix_layers(model))
    for path, experts in places.items():
        base = layers[path]
        if isinstance(base, Experts):
            model.set_submodule(path, LoraExperts(base, experts, rank, alpha))
        else:
            model.set_submodule(path, LoraLinear(base, rank, alpha))


def lora_layers(model: nn.Module) -> dict[str, Layer]:
    """The adapted layers of a model by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, LoraLinear | LoraExperts)}


def changed(
    weight: Float[Tensor, "o i"], a: Float[Tensor, "r i"], b: Float[Tensor, "o r"], scale: float
) -> Float[Tensor, "o i"]:
    """A matrix with its change, rounded to its dtype once."""
    return (weight + scale * (b @ a)).to(weight.dtype)


def _spread(
    rows: Float[Tensor, "n x y"], experts: Tensor, total: int
) -> Float[Tensor, "{total} x y"]:
    """Rows of the chosen experts at their places among all."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, experts, rows)
