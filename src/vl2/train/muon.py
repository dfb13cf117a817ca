"""Muon: momentum whose update is orthogonalised, for the weight matrices inside a network.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
scaling that lets it share AdamW's learning rate is from "Muon is scalable for LLM training",
arXiv 2502.16982. `torch.optim.Muon` takes only plain matrices; this one takes stacked matrices
[..., out, in], such as experts, as many matrices at once. Both iterate in bfloat16, this one only
where such products are fast: many CPUs have none, and keep the gradient's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.parallel.gradients import on_whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen for speed: singular values end in 0.7 .. 1.2."""
STEPS = 5
"""Iterations."""


def orthogonalised(matrix: Float[Tensor, "*n r c"]) -> Float[Tensor, "*n r c"]:
    """The nearest semi-orthogonal matrix, roughly, by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.to(torch.bfloat16) if _multiplies_bfloat16(x.device) else x
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def _multiplies_bfloat16(device: torch.device) -> bool:
    return torch.cpu._is_amx_tile_supported() if device.type == "cpu" else True


class Muon(torch.optim.Optimizer):
    """Nesterov momentum 0.95, orthogonalised, with decoupled weight decay."""

    def __init__(
        self, params: Iterable[nn.Parameter] | Iterable[dict], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = on_whole(orthogonalised, gradient.lerp(momentum, group["momentum"]))
        scale = 0.2 * max(parameter.shape[-2:]) ** 0.5  # the size of an AdamW update
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)
