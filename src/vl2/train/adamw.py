"""AdamW with moments in bfloat16, as the paper keeps them for Base (arXiv 2412.10302, table 2).

They take half the memory of float32 moments. A step computes in float32: it widens the moments of
some parameters at a time, runs torch's own kernel on them, and rounds what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

WIDENED = 2**26
"""Most numbers whose moments are float32 at one time, unless one parameter has more: 512 MiB."""

MOMENTS = ("exp_avg", "exp_avg_sq")

LARGEST_BETA = 1 - 2**-8
"""Above it a moment that should shrink may round to itself in bfloat16, step after step."""


class Bfloat16AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) whose moments are bfloat16 between the steps.

    The parameters may be DTensors; the parameters of a group are on one mesh. Everything is done
    number by number.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        """Nothing is held yet; a parameter's moments come with its first gradient."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameters in _portions(group["params"]):
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(fresh_state(parameter, torch.bfloat16))
        states = [self.state[parameter] for parameter in parameters]
        firsts, seconds = ([state[name] for state in states] for name in MOMENTS)
        # The kernel wants moments of the parameters' dtype; its arithmetic is float32 for both.
        wide_firsts, wide_seconds = (_as_wide_as(parameters, m) for m in (firsts, seconds))
        adamw(
            list(parameters),
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            wide_firsts,
            wide_seconds,
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        for held, wide in zip(firsts + seconds, wide_firsts + wide_seconds, strict=True):
            held.copy_(wide)


def fresh_state(parameter: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of a parameter before its first step: a counter and two moments."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        **{name: torch.zeros_like(parameter, dtype=dtype) for name in MOMENTS},
    }


def _as_wide_as(parameters: Sequence[nn.Parameter], moments: Sequence[Tensor]) -> list[Tensor]:
    return [moment.to(p.dtype) for moment, p in zip(moments, parameters, strict=True)]


def _portions(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters with a gradient, in lists of at most `WIDENED` numbers unless one has more."""
    portion: list[nn.Parameter] = []
    numbers = 0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if portion and numbers + parameter.numel() > WIDENED:
            yield portion
            portion, numbers = [], 0
        portion.append(parameter)
        numbers += parameter.numel()
    if portion:
        yield portion
