"""A model without memory: names, shapes and dtypes of its tensors, for loading and counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vl2.config import VL2Config
from vl2.model.quantized import quantize_modules
from vl2.model.vl2 import VL2Model


class _NoInit(TorchFunctionMode):
    """Skip torch.nn's default initialisers.

    They have nothing to fill on the meta device, yet the first `normal_` there imports the
    compiler: more than a second and 78 MB.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        # Not every function that passes here is a Python one with a module.
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_skeleton(config: VL2Config) -> VL2Model:
    """The model of `config` on the meta device, with quantised layers where the config says so."""
    with torch.device("meta"), _NoInit():
        model = VL2Model(config)
        if config.quantization_config is not None:
            quantize_modules(model, config.quantization_config, fill=False)
        return model
