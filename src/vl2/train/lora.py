"""Low-rank adapters (LoRA, arXiv 2106.09685): W x + alpha / rank * B A x with a frozen W.

The base keeps its dtype, or is held in int8 or int4 (QLoRA, arXiv 2305.14314); adapters are
float32. A base weight is never multiplied out with its change: both factors work on the
activations, so an adapted layer keeps its activations of width `rank` for the backward pass and no
second weight. That is also why the base may be held in any form that gradients pass.

`peft` does the same for `nn.Linear`, and it has `target_parameters` for stacked experts. Neither
fits here. Its stacked form adapts every expert of a layer, builds W + B A of all of them anew in
each forward pass, and keeps it for the backward pass: the experts of Base once more. Its Linear
shows the bare W as `weight`, which the absorbed form of latent attention reads: cached steps would
miss the adapter. Its unmerge subtracts what merge added, which does not bring the bits back. So the
layers are our own; the files (lora_files.py) are PEFT's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.checkpoint.layout import table
from vl2.model.moe import Experts
from vl2.model.quant_layers import QuantExperts, QuantLinear, QuantWeight
from vl2.model.quantized import SCHEMES
from vl2.model.stored_linear import StoredLinear
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import ExpertChange, LowRank, Routing, matmul_dtype
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
"""What gets adapters by name: linear layers and routed experts (`Linears`, `Stacked`). Embeddings,
output head, norms and routers stay as they are."""

RANK_STEP = 8
"""Grouped matmuls want rows of a multiple of 16 bytes: ranks are padded with zeros up to this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """What gets adapters, and of which size."""

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


class LoraLinear(nn.Module):
    """A linear layer with an adapter; a new one changes nothing."""

    def __init__(
        self, base: nn.Linear | StoredLinear | QuantLinear, rank: int, alpha: float
    ) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        device = next(itertools.chain(base.parameters(), base.buffers())).device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The changed weight, for those who need the matrix itself (absorbed attention)."""
        weight = self.base.weight
        assert isinstance(weight, Tensor), "layers that are read as matrices stay floats"
        return _changed(weight, self.lora_A, self.lora_B, self.alpha / self.rank)

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """The layer's output with the change."""
        inner = F.linear(x, self.lora_A.to(x.dtype))
        return self.base(x) + F.linear(inner, self.lora_B.to(x.dtype)) * (self.alpha / self.rank)


class LoraStack(nn.Module):
    """Adapters of one matrix of the chosen experts of a layer."""

    experts: Tensor  # [chosen] int64; kept with the state, which means nothing without it

    def __init__(self, weight: Tensor | QuantWeight, experts: Sequence[int], rank: int) -> None:
        super().__init__()
        self.total, out, width = weight.shape
        device = weight.device if isinstance(weight, Tensor) else weight.data.values.device
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

    def __init__(
        self, base: Experts | QuantExperts, experts: Sequence[int], rank: int, alpha: float
    ) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gate_proj = LoraStack(base.gate_proj, experts, rank)
        self.up_proj = LoraStack(base.up_proj, experts, rank)
        self.down_proj = LoraStack(base.down_proj, experts, rank)

    def forward(self, x: Float[Tensor, "n h"], routing: Routing) -> Float[Tensor, "n h"]:
        """Weighted sum over each token's experts, changed ones among them."""
        scale = self.alpha / self.rank
        factors = (stack(scale, matmul_dtype(x)) for stack in self.stacks().values())
        return self.base(x, routing, ExpertChange(*factors))

    def stacks(self) -> dict[str, LoraStack]:
        """The adapters by the name of the matrix that they change, in the order of the MLP."""
        return {
            "gate_proj": self.gate_proj,
            "up_proj": self.up_proj,
            "down_proj": self.down_proj,
        }


Layer = LoraLinear | LoraExperts
Linears = (nn.Linear, StoredLinear, QuantLinear)
Stacked = (Experts, QuantExperts)
"""What can be adapted, in whatever form weights are held: linear layers, and stacks of experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One adapted matrix: its released module name, and views of base weight and factors."""

    name: str
    weight: Tensor | None  # [out, in]; None: there is no float one
    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What `merge_lora` took out of a model."""

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
    for path, experts in places.items():
        base = model.get_submodule(path)
        if isinstance(base, Stacked):
            model.set_submodule(path, LoraExperts(base, experts, rank, alpha))
        else:
            assert isinstance(base, Linears), path
            model.set_submodule(path, LoraLinear(base, rank, alpha))


def lora_layers(model: nn.Module) -> dict[str, Layer]:
    """The adapted layers of a model by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, LoraLinear | LoraExperts)}


def base_scheme(model: nn.Module) -> str | None:
    """How the quantised layers of a model are held, the lowest form of it; None: all are floats."""
    found = {module.scheme for module in model.modules() if isinstance(module, QuantWeight)}
    return next((scheme for scheme in reversed(SCHEMES) if scheme in found), None)


def adapters(model: nn.Module) -> Iterator[Adapter]:
    """Every adapted matrix of a model, experts one by one under their released names."""
    for path, layer in lora_layers(model).items():
        scale = layer.alpha / layer.rank
        if isinstance(layer, LoraLinear):
            held = layer.base.weight
            weight = held.detach() if isinstance(held, Tensor) else None
            a, b = layer.lora_A.detach(), layer.lora_B.detach()
            yield Adapter(name=path, weight=weight, a=a, b=b, scale=scale)
            continue
        for part, stack in layer.stacks().items():
            weights = None
            if isinstance(layer.base, Experts):
                weights = layer.base.get_parameter(part).detach()
            stacked = torch.empty(stack.total, 0, device="meta")
            released = [key for key, _ in table({f"{path}.{part}": stacked})]
            for place, expert in enumerate(stack.experts.tolist()):
                yield Adapter(
                    name=released[expert].removesuffix(".weight"),
                    weight=None if weights is None else weights[expert],
                    a=stack.lora_A.detach()[place],
                    b=stack.lora_B.detach()[place],
                    scale=scale,
                )


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
        weight.copy_(_changed(weight, adapter.a, adapter.b, adapter.scale))
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
    chosen = None
    if config.experts is not None:
        profile = load_profile(Path(config.experts), model)
        chosen = chosen_experts(profile, config.expert_share)
    places: dict[str, Sequence[int]] = {}
    for target in config.targets:
        found = {
            path: _experts_of(path, module, chosen)
            for path, module in model.named_modules()
            if TARGETS[target].fullmatch(path) and isinstance(module, Linears + Stacked)
        }
        if not found:
            raise ValueError(f"lora.targets has {target!r}, which this model lacks: leave it out")
        places.update(found)
    return places


def _experts_of(
    path: str, module: nn.Module, chosen: Mapping[int, Sequence[int]] | None
) -> Sequence[int]:
    if not isinstance(module, Stacked):
        return ()
    if chosen is None:
        return range(module.gate_proj.shape[0])
    return chosen[int(path.split(".")[3])]


def _changed(
    weight: Float[Tensor, "o i"], a: Float[Tensor, "r i"], b: Float[Tensor, "o r"], scale: float
) -> Float[Tensor, "o i"]:
    return (weight + scale * (b @ a)).to(weight.dtype)


def _spread(
    rows: Float[Tensor, "n x y"], experts: Tensor, total: int
) -> Float[Tensor, "{total} x y"]:
    """Rows of the chosen experts at their places among all."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, experts, rows)
