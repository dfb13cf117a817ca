"""How busy each expert is, for text and for pictures, and the bias that evens it out.

Loss-free balancing (arXiv 2408.15664): once per optimiser step each router's correction bias moves
by a fixed step against the load of the whole batch. The bias is float32 and in no optimiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.model.moe import MoE, Router
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import Routing, expert_load, update_bias
from vl2.parallel.mesh import ALONE, Ranks

KINDS = ("text", "image")


class Balancer:
    """Adds up the loads of the micro batches of a step, then moves the biases."""

    def __init__(self, model: VL2Model, bias_step: float, ranks: Ranks = ALONE) -> None:
        """Find the routers, of which a stage of a pipeline may have none.

        Raises:
            ValueError: the whole model has no bias that `bias_step` could move.
        """
        self.ranks = ranks
        layers = model.language.model.layers
        self.routers: list[Router] = [
            layer.mlp.gate for layer in layers if isinstance(layer.mlp, MoE)
        ]
        if bias_step:
            _check_bias(model.config.language_config, bias_step)
        self.bias_step = bias_step
        self.loads = self._zeros()

    def observe(
        self,
        routings: Sequence[Routing],
        real: Bool[Tensor, "b t"],
        pictures: Bool[Tensor, "b t"] | None,
    ) -> None:
        """Count the choices of one micro batch; padding (`real` False) does not count."""
        nowhere = torch.zeros_like(real)
        masks = (real & ~pictures, real & pictures) if pictures is not None else (real, nowhere)
        for layer, routing in enumerate(routings):
            experts = self.loads.shape[-1]
            for kind, mask in enumerate(masks):
                self.loads[kind, layer] += expert_load(routing, mask, experts).to(self.loads)

    def gather(self) -> None:
        """Add up the loads of all ranks, once after a step's last micro batch."""
        self.loads = self.ranks.total(self.loads)

    def update(self) -> None:
        """Move each bias against its layer's load over all ranks."""
        if not self.bias_step:
            return
        for router, load in zip(self.routers, self.loads.sum(dim=0), strict=True):
            bias = router.e_score_correction_bias
            assert bias is not None
            bias.copy_(update_bias(bias, load.to(bias.device), self.bias_step))

    def report(self) -> dict[str, float]:
        """Per kind of token, over all layers: worst max/mean load, least entropy, dead experts."""
        own = self._own_report()
        if self.ranks.layout.pipeline == 1:
            return own
        texts = self.ranks.gather_text(json.dumps(own))[:: self.ranks.layout.data]  # one per stage
        return merge_reports([json.loads(text) for text in texts])

    def _own_report(self) -> dict[str, float]:
        found = {}
        for kind, loads in zip(KINDS, self.loads, strict=True):
            if not loads.sum():
                continue
            found[f"load_{kind}"] = max(map(imbalance, loads))
            found[f"entropy_{kind}"] = min(map(evenness, loads))
            found[f"dead_{kind}"] = float((loads == 0).sum())
        return found

    def reset(self) -> None:
        """Start the next step."""
        self.loads = self._zeros()

    def _zeros(self) -> Float[Tensor, "2 l e"]:
        experts = len(self.routers[0].weight) if self.routers else 0
        device = self.routers[0].weight.device if self.routers else None
        return torch.zeros(len(KINDS), len(self.routers), experts, device=device)


def loss_scale(weight: float | None, config: LanguageConfig) -> float:
    """The factor of the model's balance loss, which has a weight already.

    Args:
        weight: that the balance loss is to have; None leaves the model's.
        config: gives `aux_loss_alpha`.

    Raises:
        ValueError: a weight for a model without balance loss.
    """
    if weight is None:
        return 1.0
    alpha = config.aux_loss_alpha if _has_experts(config) else 0.0
    if alpha:
        return weight / alpha
    if weight:
        why = "aux_loss_alpha 0 in its config" if _has_experts(config) else "no MoE layer"
        raise ValueError(
            f"balance.loss_weight is {weight}, but this model has {why}: leave the weight out"
        )
    return 1.0


def _has_experts(config: LanguageConfig) -> bool:
    return any(map(config.is_moe_layer, range(config.num_hidden_layers)))


def _check_bias(config: LanguageConfig, bias_step: float) -> None:
    asked = f"balance.bias_step is {bias_step}, but this model"
    if not _has_experts(config):
        raise ValueError(f"{asked} has no MoE layer: set it to 0")
    if config.topk_method != "noaux_tc":
        raise ValueError(
            f"{asked} routes without a correction bias (only topk_method noaux_tc, as Base has, "
            "moves one): set it to 0"
        )


def merge_reports(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The reports of the stages of a pipeline as one over all layers."""
    merge = {"load": max, "entropy": min, "dead": sum}
    names = {name: None for report in reports for name in report}
    return {
        name: merge[name.split("_")[0]]([report[name] for report in reports if name in report])
        for name in names
    }


def imbalance(load: Float[Tensor, " e"]) -> float:
    """Load of the busiest expert over the mean: 1 is perfect."""
    return float(load.max() / load.mean())


def evenness(load: Float[Tensor, " e"]) -> float:
    """Entropy of the loads as a share of the largest possible: 1 is perfect."""
    share = load / load.sum()
    return float(-(share * share.clamp(min=1e-12).log()).sum() / math.log(len(load)))
