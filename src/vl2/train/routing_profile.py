"""Which experts some data uses: counted over real tokens, kept as JSON, read to choose experts.

A fine-tune on narrow data meets few experts often (ESFT, arXiv 2407.01906): adapters on them alone
are smaller and leave the others' knowledge as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import expert_load

_IDENTITY = ("num_hidden_layers", "hidden_size", "n_routed_experts", "num_experts_per_tok")
"""Settings of the language model that a profile must agree with."""


@torch.no_grad()
def profile_routing(model: VL2Model, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Run batches through a model and count how often each expert is chosen by real tokens.

    Args:
        model: with MoE layers; its mode is kept.
        batches: arguments of the model by name, on its device; `labels` are ignored.

    Returns:
        `{"model": {...}, "layers": {"1": [count of each expert], ...}, "tokens": real tokens}`;
        layers are named by their index in the language model.

    Raises:
        ValueError: the model has no MoE layer, or there was no real token.
    """
    config = model.config.language_config
    layers = _moe_layers(config)
    if not layers:
        raise ValueError("the model has no MoE layer: there is no routing to profile")
    experts = config.n_routed_experts
    assert experts is not None
    counts = torch.zeros(len(layers), experts, dtype=torch.int64)
    tokens, training = 0, model.training
    model.eval()
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        out = model(**inputs, logits="none").language
        real = torch.ones(out.hidden.shape[:2], dtype=torch.bool, device=out.hidden.device)
        if inputs.get("attention_mask") is not None:
            real = inputs["attention_mask"].bool()
        tokens += int(real.sum())
        for count, routing in zip(counts, out.routing, strict=True):
            count += expert_load(routing, real, experts).long().cpu()
    model.train(training)
    if not tokens:
        raise ValueError("the data has no real token: give at least one batch")
    by_layer = {str(layer): count.tolist() for layer, count in zip(layers, counts, strict=True)}
    return {"model": _identity(config), "layers": by_layer, "tokens": tokens}


def save_profile(profile: Mapping[str, Any], path: Path) -> None:
    """Write a profile as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(profile) + "\n", encoding="utf-8")


def load_profile(path: Path, model: VL2Model) -> dict[str, Any]:
    """Read a profile and check that it is of this model.

    Raises:
        ValueError: the file cannot be read, is not a routing profile, or is of another model.
    """
    try:
        profile = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give the path of a routing profile"
        ) from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON: write the routing profile again") from None
    if not isinstance(profile, dict) or set(profile) != {"model", "layers", "tokens"}:
        raise ValueError(
            f"{path} is not a routing profile: expected an object with model, layers and tokens"
        )
    config = model.config.language_config
    if profile["model"] != _identity(config):
        raise ValueError(
            f"{path} is the routing profile of another model: it was made with "
            f"{profile['model']!r:.200}, this one has {_identity(config)}; profile this model"
        )
    _check_counts(path, profile, config)
    return profile


def chosen_experts(profile: Mapping[str, Any], share: float) -> dict[int, list[int]]:
    """The most used experts of each layer by index, sorted: `share` of all, at least one.

    Of experts that are used equally the first are taken.
    """
    chosen = {}
    for layer, counts in profile["layers"].items():
        by_use = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
        chosen[int(layer)] = sorted(by_use[: max(1, round(share * len(counts)))])
    return chosen


def _identity(config: LanguageConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _IDENTITY}


def _moe_layers(config: LanguageConfig) -> list[int]:
    return [layer for layer in range(config.num_hidden_layers) if config.is_moe_layer(layer)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_counts(path: Path, profile: Mapping[str, Any], config: LanguageConfig) -> None:
    """Each token of each layer must have chosen `num_experts_per_tok` experts."""
    layers, tokens = profile["layers"], profile["tokens"]
    wanted = [str(layer) for layer in _moe_layers(config)]
    if not isinstance(layers, dict) or sorted(layers) != sorted(wanted) or not _is_count(tokens):
        raise ValueError(
            f"{path} is damaged: expected counts for the layers {', '.join(wanted)} and a number "
            "of tokens; write the routing profile again"
        )
    assert config.num_experts_per_tok is not None
    choices = tokens * config.num_experts_per_tok
    for layer, counts in layers.items():
        if (
            not isinstance(counts, list)
            or len(counts) != config.n_routed_experts
            or not all(map(_is_count, counts))
            or sum(counts) != choices
        ):
            raise ValueError(
                f"{path} is damaged: layer {layer} must count {config.n_routed_experts} experts, "
                f"{choices} choices in all; write the routing profile again"
            )
