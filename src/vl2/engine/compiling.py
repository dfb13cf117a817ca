"""`torch.compile` for serving: the vision tower's blocks and the dense feed-forward layers.

Attention over pages and routed experts stay eager: their shapes change with every step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vl2.model.moe import Mlp
from vl2.model.vl2 import VL2Model

COMPILERS = ("g++", "clang++", "cl")


def compiled_parts(model: VL2Model) -> list[nn.Module]:
    """Modules that are compiled, each by itself, so that equal ones share a graph."""
    dense = [module for module in model.language.modules() if isinstance(module, Mlp)]
    return [*model.vision.blocks, *dense]


def compile_parts(model: VL2Model, *, adapted: bool = False) -> None:
    """Compile them when they first run.

    Raises:
        ValueError: there is no compiler, or layers of adapters will take their places.
    """
    reason = why_not_compiled(model)
    if adapted:
        reason = "its layers are swapped for those of adapters"
    if reason:
        raise ValueError(f"the model cannot be compiled: {reason}; leave EngineConfig.compile off")
    for part in compiled_parts(model):
        part.compile(dynamic=True)


@contextmanager
def compiled(model: VL2Model) -> Iterator[None]:
    """The model with its parts compiled, as it was afterwards."""
    compile_parts(model)
    try:
        yield
    finally:
        for part in compiled_parts(model):
            part._compiled_call_impl = None


def why_not_compiled(model: VL2Model) -> str | None:
    """What is missing, or None: on a CPU the compiler writes C++."""
    if model.config.quantization_config is not None:
        return "its weights are quantised, whose kernels are compiled already"
    chosen = os.environ.get("CXX")
    if model.image_newline.device.type == "cpu" and not any(
        map(shutil.which, [chosen] if chosen else COMPILERS)
    ):
        return "no C++ compiler is installed"
    return None
