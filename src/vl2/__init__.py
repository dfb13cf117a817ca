"""A maintained implementation of DeepSeek-VL2: pictures and text in, answers and boxes out.

A name is imported when it is first used: torch alone takes longer to import than `vl2 --help` may.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vl2.checkpoint.load import load_model
    from vl2.config import VL2Config
    from vl2.engine.async_engine import AsyncEngine
    from vl2.engine.config import (
        Completion,
        EngineConfig,
        RepetitionGuard,
        SamplingParams,
        StructuredOutputsParams,
    )
    from vl2.engine.engine import Engine
    from vl2.processing.grounding import Box
    from vl2.processing.inputs import Batch, ModelInputs
    from vl2.processing.processor import Processor

__version__ = "0.1.0"

__all__ = [
    "AsyncEngine",
    "Batch",
    "Box",
    "Completion",
    "Engine",
    "EngineConfig",
    "ModelInputs",
    "Processor",
    "RepetitionGuard",
    "SamplingParams",
    "StructuredOutputsParams",
    "VL2Config",
    "__version__",
    "load_model",
]

_HOMES = {
    "AsyncEngine": "vl2.engine.async_engine",
    "Batch": "vl2.processing.inputs",
    "Box": "vl2.processing.grounding",
    "Completion": "vl2.engine.config",
    "Engine": "vl2.engine.engine",
    "EngineConfig": "vl2.engine.config",
    "ModelInputs": "vl2.processing.inputs",
    "Processor": "vl2.processing.processor",
    "RepetitionGuard": "vl2.engine.config",
    "SamplingParams": "vl2.engine.config",
    "StructuredOutputsParams": "vl2.engine.config",
    "VL2Config": "vl2.config",
    "load_model": "vl2.checkpoint.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vl2' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names alone, for completion in a shell."""
    return sorted(__all__)
