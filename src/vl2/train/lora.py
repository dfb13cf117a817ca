"""Which layers of a model get adapters, and adapters merged into the weights and out again.

The layers are in model/lora.py, the files in checkpoint/lora_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import nn

from vl2.checkpoint.lora_files import adapters
from vl2.model.lora import Layer, attach, changed, lora_layers
from vl2.model.moe import matrix_layers
from vl2.model.quantized import SCHEMES, held_weights
from vl2.model.vl2 import VL2Model
from vl2.ranges import Range, check_ranges
from vl2.train.routing_profile import chosen_experts, load_profile

_LAYER = r"language\.model\.layers\.\d+\."
TARGETS: dict[str, re.Pattern[str]] = {
    "attention": re.compile(_LAYER + r"self_attn\.\w+"),
    "dense": re.compile(_LAYER + r"mlp\.(shared_experts\.)?(gate|up|down)_proj"),
    "experts": re.compile(_LAYER + r"mlp\.experts"),
    "projector": re.compile(r"projector(_high)?\..+"),
    "vision": re.compile(r"vision(_high)?\.(?!attn_pool).+"),
}
"""What gets adapters by name: linear layers and routed experts. Embeddings, output head, norms and
routers stay as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Layers that get adapters, and their size."""

    rank: Annotated[int, Range(least=1)] = 8
    alpha: Annotated[float, Range(above=0)] = 16.0  # the change is scaled by alpha / rank
    targets: tuple[str, ...] = ("attention", "dense", "experts")  # names of TARGETS
    experts: str | None = None  # routing profile: only the experts that it shows busiest
    # of each layer's experts, with a profile
    expert_share: Annotated[float, Range(above=0, most=1)] = 0.25
    quantization: Literal["int8", "int4"] | None = None  # of the frozen base; None: as it is

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_ranges(self)
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ValueError(
                f"lora.targets is {list(self.targets)}: expected some of {', '.join(TARGETS)}"
            )
        if self.experts is not None and "experts" not in self.targets:
            raise ValueError(
                f"lora.experts is {self.experts!r}, but lora.targets has no 'experts': add it"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """The parts that `merge_lora` took out of a model."""

    layers: dict[str, Layer]
    originals: dict[str, nn.Parameter]  # base parameters by full name; empty if not kept


def apply_lora(
    model: VL2Model, config: LoraConfig, generator: torch.Generator | None = None
) -> list[str]:
    """Put adapters into a model and freeze everything else; returns the adapters' names.

    A starts uniform in +-1/sqrt(in) as in `peft`, B at zero: the model computes what it did. Cast
    or move the base before, not after: `model.to(bfloat16)` would round the adapters too.

    Args:
        model: as loaded, without adapters.
        config: what is adapted.
        generator: of the CPU, on whatever device the model is.

    Raises:
        ValueError: a target that the model lacks, a profile of another model, or a model that has
            adapters already.
    """
    attach(model, _places(model, config), config.rank, config.alpha)
    names = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            names.append(name)
            if name.endswith("lora_A"):
                bound = parameter.shape[-1] ** -0.5
                start = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(start)
    return names


def base_scheme(model: nn.Module) -> str | None:
    """The lowest precision of a model's quantised layers; None: all are floats."""
    found = {weight.kind for weight in held_weights(model).values()}
    return next((scheme for scheme in reversed(SCHEMES) if scheme in found), None)


@torch.no_grad()
def merge_lora(model: VL2Model, *, keep_base: bool = True) -> Merged:
    """Add the adapters into the weights: afterwards the model is a plain one, with plain keys.

    Sums are float32 and rounded to the base's dtype once.

    Args:
        model: with adapters.
        keep_base: keep the base weights that change beside the merged ones, so that `unmerge_lora`
            brings back the same bits; subtracting would not. That takes their memory once more.
            False overwrites them, for a model that is only to be used or saved.

    Raises:
        ValueError: the model has no adapters, or its base is held in int8 or int4.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to merge: load or apply some first")
    if (scheme := base_scheme(model)) is not None:
        raise ValueError(
            f"adapters cannot be merged into a base in {scheme}, which would round them away: "
            "save them, load them into the float model (load_lora), and merge there"
        )
    originals: dict[str, nn.Parameter] = {}
    if keep_base:
        for path, layer in layers.items():
            for name, parameter in layer.base.named_parameters():
                originals[f"{path}.{name}"] = parameter
                setattr(layer.base, name, nn.Parameter(parameter.clone(), requires_grad=False))
    for adapter in adapters(model):
        weight = adapter.weight
        assert weight is not None
        weight.copy_(changed(weight, adapter.a, adapter.b, adapter.scale))
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)
    return Merged(layers=layers, originals=originals)


def unmerge_lora(model: VL2Model, merged: Merged) -> None:
    """Bring back the adapted model that `merge_lora` merged, base weights bit for bit.

    Raises:
        ValueError: the base was not kept, or the model is not the one that was merged.
    """
    if not merged.originals:
        raise ValueError("merged with keep_base=False: load the base model and the adapters again")
    modules = dict(model.named_modules())
    if any(modules.get(path) is not layer.base for path, layer in merged.layers.items()):
        raise ValueError("the model is not the merged one: unmerge what merge_lora was given")
    for path, layer in merged.layers.items():
        for name, _ in list(layer.base.named_parameters()):
            setattr(layer.base, name, merged.originals[f"{path}.{name}"])
        model.set_submodule(path, layer)


def _places(model: VL2Model, config: LoraConfig) -> dict[str, Sequence[int]]:
    """Paths of the modules to adapt, and the experts of each `Experts`."""
    every, chosen = range(model.config.language_config.n_routed_experts or 0), None
    if config.experts is not None:
        profile = load_profile(Path(config.experts), model)
        chosen = chosen_experts(profile, config.expert_share)
    places: dict[str, Sequence[int]] = {}
    for target in config.targets:
        found: dict[str, Sequence[int]] = {
            path: () for path, _ in matrix_layers(model) if TARGETS[target].fullmatch(path)
        }
        if target == "experts":
            found = {p: chosen[int(p.split(".")[3])] if chosen else every for p in found}
        if not found:
            raise ValueError(f"lora.targets has {target!r}, which this model lacks: leave it out")
        places.update(found)
    return places
