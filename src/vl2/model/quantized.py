"""How a model gets layers with weights in int8, float8 or int4, see model/linear.py.

Router, norms, embeddings, convolutions and biases stay floats, and so does MLA's `kv_b_proj`, whose
matrix the absorbed form multiplies by its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from vl2.config import QuantizationConfig
from vl2.model.linear import Held, Linear
from vl2.model.moe import Experts, matrix_layers
from vl2.model.vl2 import VL2Model
from vl2.ops.int4 import INT4_ROWS, int4_group
from vl2.ops.kinds import KINDS

SCHEMES = tuple(KINDS)
"""How weights can be held, most exact first."""
KEPT_FLOAT = ("kv_b_proj",)
"""Last names of linear layers that are read as matrices."""
ROWS_NUMBERS = 2**21
"""Weights that are quantised at a time: 8 MiB in float32."""


def check_scheme(scheme: str) -> None:
    """Refuse an unknown scheme.

    Raises:
        ValueError: it is none of `SCHEMES`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"quantization is {scheme!r}: expected one of {', '.join(SCHEMES)}")


def quantizable(model: nn.Module) -> Iterator[tuple[str, Linear | Experts]]:
    """Names and modules whose weights can be quantised, in the order of the model."""
    return ((n, m) for n, m in matrix_layers(model) if m.kind is None and not m.stored)


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
    module: Linear | Experts,
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
        weight = KINDS[scheme].empty(*shape)
    return weight.values.nbytes + weight.scale.nbytes


def fits_int4(name: str, module: Linear | Experts) -> bool:
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
    layers = dict(quantizable(model))
    unknown = sorted({*plan.modules_int8, *plan.modules_to_not_convert} - set(layers))
    if unknown:
        raise ValueError(
            f"quantization_config names {unknown[0]!r}, which is not a linear layer or experts of "
            "this model: the config is of another model"
        )
    model.requires_grad_(False)
    for name, layer in layers.items():
        if name in plan.modules_to_not_convert:
            continue
        scheme = "int8" if name in plan.modules_int8 else plan.scheme
        model.set_submodule(name, quantized_copy(layer, scheme, name, fill=fill))
    model.config = replace(model.config, quantization_config=plan)


def held_weights(module: nn.Module) -> dict[str, Held]:
    """The weights that are held otherwise than as floats, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Held)}


def quantized_buffers(module: nn.Module) -> frozenset[str]:
    """Names of the buffers of a module that are quantised weights: nothing moves them."""
    return frozenset(
        f"{path}.{name}"
        for path, weight in held_weights(module).items()
        for name, _ in weight.named_buffers()
    )


def quantized_copy(
    module: Linear | Experts, scheme: str, name: str, *, fill: bool = True
) -> Linear | Experts:
    """The layer or experts `module`, called `name`, in a scheme; a bias is shared.

    Raises:
        ValueError: int4 where no group divides the rows.
    """
    widths = _widths(module)
    if scheme == "int4" and None in map(int4_group, widths):
        raise ValueError(f"{name} cannot be held in int4, its rows are {widths} long: use int8")
    made = module.held_as(scheme)
    if fill:
        for key, held in held_weights(made).items():
            fill_held(held, module.get_parameter(key).detach())
    return made.train(module.training)


def fill_held(held: Held, weight: Tensor) -> None:
    """Quantise `weight` into place, some rows at a time."""
    matrices = [()] if weight.dim() == 2 else [(e,) for e in range(len(weight))]
    rows = INT4_ROWS * max(1, ROWS_NUMBERS // (INT4_ROWS * weight.shape[-1]))
    for index in matrices:
        target = held.data.at(index)
        for row in range(0, weight.shape[-2], rows):
            target.store(KINDS[held.kind].pack(weight[index][row : row + rows]), row)


def float_copy(layer: Linear, dtype: torch.dtype) -> Linear:
    """A layer of the floats that a held one stands for, made some rows at a time."""
    [held] = held_weights(layer).values()
    weight, first = torch.empty(held.shape, dtype=dtype, device=held.device), 0
    for part in held.data.blocks(dtype):
        kept = part[: len(weight) - first]  # int4 pads rows
        weight[first : first + len(kept)] = kept
        first += len(kept)
    with torch.device("meta"):
        made = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = layer.bias
    return made.train(layer.training)


def _widths(module: Linear | Experts) -> tuple[int, ...]:
    """Lengths of the rows of the module's matrices."""
    weights = dict(module.named_parameters(recurse=False))
    return tuple(dict.fromkeys(w.shape[-1] for key, w in weights.items() if key != "bias"))
