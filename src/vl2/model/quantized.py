"""How a model gets layers with weights in int8, float8 or int4 (model/quant_layers.py).

A quantised weight stands where the float one stood: key `K` of a plain model's state dict becomes
`K.int8`, `K.float8` or `K.int4` beside `K.scale`. Router, norms, embeddings, convolutions and
biases stay floats, and so does MLA's `kv_b_proj`, whose matrix the absorbed form multiplies by its
parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from vl2.config import QuantizationConfig
from vl2.model.moe import Experts
from vl2.model.quant_layers import QuantExperts, QuantLinear, QuantWeight
from vl2.model.vl2 import VL2Model
from vl2.ops.weight import KINDS, int4_group

SCHEMES = tuple(KINDS)
"""How weights can be held, most exact first."""
KEPT_FLOAT = ("kv_b_proj",)
"""Last names of linear layers that are read as matrices."""


def check_scheme(scheme: str) -> None:
    """Refuse an unknown scheme.

    Raises:
        ValueError: it is none of `SCHEMES`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"quantization is {scheme!r}: expected one of {', '.join(SCHEMES)}")


def quantizable(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Experts]]:
    """Names and modules whose weights can be quantised, in the order of the model."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Experts):
            yield name, module


def default_plan(
    model: VL2Model, scheme: str, *, kept: tuple[str, ...] = KEPT_FLOAT
) -> QuantizationConfig:
    """What is held how when nothing has been measured, see `default_scheme`.

    Raises:
        ValueError: an unknown scheme.
    """
    check_scheme(scheme)
    found = {n: default_scheme(n, m, scheme, kept=kept) for n, m in quantizable(model)}
    higher = [n for n, held in found.items() if held == "int8"] if scheme == "int4" else []
    floats = [n for n, held in found.items() if held is None]
    return QuantizationConfig(
        scheme=scheme, modules_int8=tuple(higher), modules_to_not_convert=tuple(floats)
    )


def default_scheme(
    name: str,
    module: nn.Linear | Experts,
    scheme: str,
    *,
    kept: tuple[str, ...] = KEPT_FLOAT,
) -> str | None:
    """How a layer is held when nothing has been measured: in `scheme`, but for two kinds.

    Those whose last name is in `kept` stay float (None). With int4 the vision side, and rows that
    no group divides, are int8: a tower multiplies many rows at a time, where int8 is faster and
    int4 saves little.
    """
    if name.rpartition(".")[2] in kept:
        return None
    return "int8" if scheme == "int4" and not fits_int4(name, module) else scheme


def held_bytes(scheme: str, shape: tuple[int, ...]) -> int:
    """Bytes of a quantised weight, scales and padded rows included."""
    with torch.device("meta"):
        return sum(tensor.nbytes for tensor in KINDS[scheme].empty(*shape))


def fits_int4(name: str, module: nn.Linear | Experts) -> bool:
    """Whether a layer of the model is of the language model and has rows that a group divides."""
    return name.startswith("language.") and None not in map(int4_group, _widths(module))


def quantize_modules(model: VL2Model, plan: QuantizationConfig, *, fill: bool = True) -> None:
    """Put quantised modules in the places of the plan's, one after the other.

    Everything is frozen then: gradients pass quantised layers, but never move what they hold.

    Args:
        model: a plain model, changed in place; its config then carries the plan.
        plan: what is held how.
        fill: False leaves the new weights unset, for a load that fills them.

    Raises:
        ValueError: the plan names what the model lacks, or int4 where no group fits.
    """
    names = [name for name, _ in quantizable(model)]
    unknown = sorted({*plan.modules_int8, *plan.modules_to_not_convert} - set(names))
    if unknown:
        raise ValueError(
            f"quantization_config names {unknown[0]!r}, which is not a linear layer or experts of "
            "this model: the config is of another model"
        )
    model.requires_grad_(False)
    for name in names:
        if name in plan.modules_to_not_convert:
            continue
        scheme = "int8" if name in plan.modules_int8 else plan.scheme
        made = quantized_copy(model.get_submodule(name), scheme, name, fill=fill)
        model.set_submodule(name, made)
    model.config = replace(model.config, quantization_config=plan)


def quantized_buffers(module: nn.Module) -> frozenset[str]:
    """Names of the buffers of a module that are quantised weights: nothing moves them."""
    return frozenset(
        f"{path}.{name}"
        for path, part in module.named_modules()
        if isinstance(part, QuantWeight)
        for name, _ in part.named_buffers()
    )


def quantized_copy(
    module: nn.Module, scheme: str, name: str, *, fill: bool = True
) -> QuantLinear | QuantExperts:
    """The layer or experts `module`, called `name`, in a scheme; a bias is shared.

    Raises:
        ValueError: int4 where no group divides the rows.
    """
    assert isinstance(module, nn.Linear | Experts)
    widths = _widths(module)
    if scheme == "int4" and None in map(int4_group, widths):
        raise ValueError(f"{name} cannot be held in int4, its rows are {widths} long: use int8")
    weights = module.named_parameters(recurse=False)
    floats = {key: value.detach() for key, value in weights}
    with torch.device(next(iter(floats.values())).device):
        if isinstance(module, nn.Linear):
            rows, width, bias = module.out_features, module.in_features, module.bias is not None
            made = QuantLinear(scheme, width, rows, bias=bias)
        else:
            experts, inner, hidden = module.gate_proj.shape
            made = QuantExperts(scheme, experts=experts, hidden=hidden, inner=inner)
    if isinstance(module, nn.Linear):
        made.bias = module.bias
    for key, weight in floats.items():
        if fill and key != "bias":
            quantized = made.get_submodule(key)
            assert isinstance(quantized, QuantWeight)
            quantized.fill(weight)
    return made.train(module.training)


def float_copy(layer: QuantLinear, dtype: torch.dtype) -> nn.Linear:
    """A plain layer of the floats that a quantised one stands for, made some rows at a time."""
    data = layer.weight.data
    shape, device = (layer.out_features, layer.in_features), data.values.device
    weight, first = torch.empty(shape, dtype=dtype, device=device), 0
    for part in data.blocks(dtype):
        kept = part[: len(weight) - first]  # int4 pads rows
        weight[first : first + len(kept)] = kept
        first += len(kept)
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        made.bias = layer.bias
    return made.train(layer.training)


def _widths(module: nn.Linear | Experts) -> tuple[int, ...]:
    """Lengths of the rows of the module's matrices."""
    if isinstance(module, nn.Linear):
        return (module.in_features,)
    return module.gate_proj.shape[2], module.down_proj.shape[2]
