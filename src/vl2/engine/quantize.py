"""Quantise a plain model in place, and measure per layer what it costs.

The error of a layer is the relative distance of its output, ||quantised - float|| / ||float||, over
the rows that calibration pictures send through it. A layer above the limit of its scheme stays
higher: int4 falls back to int8, int8 and float8 to floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vl2.config import QuantizationConfig
from vl2.logs import get_logger
from vl2.model.moe import matrix_layers
from vl2.model.quantized import default_plan, quantizable, quantize_modules, quantized_copy
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import Routing

log = get_logger(__name__)

FLOAT = "float"
MAX_ERROR = {"int8": 0.05, "float8": 0.1, "int4": 0.2}
"""Relative error of a layer's output from which on it stays higher."""
MAX_ROWS = 512
"""Rows per layer that are kept of the calibration; the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """How a layer is held after quantisation, and why."""

    name: str
    scheme: str  # int8, float8, int4 or float
    error: float | None  # in the scheme that was planned; None when not measured
    reason: str


@torch.no_grad()
def quantize_model(
    model: VL2Model,
    scheme: str,
    calibrate: Callable[[], object] | None = None,
    limits: Mapping[str, float] | None = None,
) -> list[LayerReport]:
    """Quantise the linear layers and routed experts of a plain model, one after the other.

    Args:
        model: changed in place; its config then says how each layer is held.
        scheme: "int8", "float8" or "int4".
        calibrate: runs the model on representative pictures and text; without it nothing is
            measured and only what cannot be held in the scheme stays higher.
        limits: greatest error of a layer by scheme; None takes `MAX_ERROR`.

    Returns:
        One entry per layer, in the order of the model.

    Raises:
        ValueError: an unknown scheme, or a model that is quantised, or keeps matrices as stored.
    """
    held = model.config.quantization_config
    if held is not None:
        raise ValueError(f"the model is quantised to {held.scheme} already: give the float model")
    if any(layer.stored for _, layer in matrix_layers(model)):
        raise ValueError("the model keeps matrices as stored: load it without storage_dtype")
    plan = default_plan(model, scheme)
    limits = {**MAX_ERROR, **(limits or {})}
    errors = measure_errors(model, plan, calibrate) if calibrate is not None else {}
    raised = _raised(plan, errors, limits)
    reports = [
        _report(name, scheme, plan=plan, raised=raised, errors=errors.get(name, {}), limits=limits)
        for name, _ in quantizable(model)
    ]
    quantize_modules(model, raised)
    for report in reports:
        if report.scheme != _planned(report.name, plan):
            log.info("%s is held in %s: %s", report.name, report.scheme, report.reason)
    return reports


@torch.no_grad()
def measure_errors(
    model: VL2Model, plan: QuantizationConfig, calibrate: Callable[[], object]
) -> dict[str, dict[str, float]]:
    """Error of every layer that ran, in the scheme of the plan and those above it.

    One layer at a time is held twice; the model itself does not change.
    """
    inputs, layers = _record(model, plan, calibrate), dict(matrix_layers(model))
    errors: dict[str, dict[str, float]] = {}
    for name, calls in inputs.items():
        module = layers[name]
        planned = _planned(name, plan)
        wanted = torch.cat([module(*call) for call in calls])
        errors[name] = {}
        for scheme in ("int8", "int4") if planned == "int4" else (planned,):
            copy = quantized_copy(module, scheme, name)
            found = torch.cat([copy(*call) for call in calls])
            errors[name][scheme] = _distance(found, wanted)
    return errors


def _record(
    model: VL2Model, plan: QuantizationConfig, calibrate: Callable[[], object]
) -> dict[str, list[tuple[Any, ...]]]:
    """The calls [rows, in] (experts: with their routing) of each layer of the plan, in order."""
    calls: dict[str, list[tuple[Any, ...]]] = {}

    def listen(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            kept = calls.setdefault(name, [])
            room = MAX_ROWS - sum(len(call[0]) for call in kept)
            if room > 0:
                x, *routing = args
                cut = [Routing(*(part[:room] for part in parts)) for parts in routing]
                kept.append((x.flatten(0, -2)[:room].clone(), *cut))

        return hook

    hooks = [
        module.register_forward_pre_hook(listen(name))
        for name, module in quantizable(model)
        if name not in plan.modules_to_not_convert
    ]
    try:
        calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: calls[name] for name, _ in quantizable(model) if name in calls}


def _planned(name: str, plan: QuantizationConfig) -> str:
    if name in plan.modules_to_not_convert:
        return FLOAT
    return "int8" if name in plan.modules_int8 else plan.scheme


def _raised(
    plan: QuantizationConfig, errors: Mapping[str, Mapping[str, float]], limits: Mapping[str, float]
) -> QuantizationConfig:
    """The plan with every layer in the lowest scheme that keeps its limit."""
    higher, kept = list(plan.modules_int8), list(plan.modules_to_not_convert)
    for name, error in errors.items():
        fits = [scheme for scheme, size in error.items() if size <= limits[scheme]]
        wanted = fits[-1] if fits else FLOAT
        if wanted == _planned(name, plan):
            continue
        if wanted == FLOAT:
            kept.append(name)
            higher = [other for other in higher if other != name]
        else:
            higher.append(name)
    return replace(plan, modules_int8=tuple(higher), modules_to_not_convert=tuple(kept))


def _report(
    name: str,
    asked: str,
    *,
    plan: QuantizationConfig,
    raised: QuantizationConfig,
    errors: Mapping[str, float],
    limits: Mapping[str, float],
) -> LayerReport:
    before, after = _planned(name, plan), _planned(name, raised)
    if before != after:
        reason = f"its error in {before} is {errors[before]:.3f}, above {limits[before]:g}"
    elif after == FLOAT:
        reason = "its matrix is used by its parts"
    elif after != asked:
        reason = "it belongs to the vision tower or adaptor, or its rows do not divide into groups"
    else:
        reason = "as asked" if errors else "as asked, not measured"
    return LayerReport(name=name, scheme=after, error=errors.get(before), reason=reason)


def _distance(found: Tensor, wanted: Tensor) -> float:
    size = float(wanted.float().norm())
    return float((found.float() - wanted.float()).norm()) / size if size > 0 else 0.0
