"""Pictures and messages to model inputs.

A name is imported when it is first used: a picture can be refused without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vl2.processing.grounding import (
        Box,
        draw_boxes,
        grounding_text,
        iou,
        parse_grounding,
        to_999,
        to_pixels,
    )
    from vl2.processing.image_gate import ImageError, ImagePolicy, open_image, probe
    from vl2.processing.inputs import Batch, ModelInputs
    from vl2.processing.processor import Processor
    from vl2.processing.settings import ProcessorConfig
    from vl2.processing.tiling import draw_layout
    from vl2.processing.tokenizer import TextDecoder, Tokenizer

__all__ = [
    "Batch",
    "Box",
    "ImageError",
    "ImagePolicy",
    "ModelInputs",
    "Processor",
    "ProcessorConfig",
    "TextDecoder",
    "Tokenizer",
    "draw_boxes",
    "draw_layout",
    "grounding_text",
    "iou",
    "open_image",
    "parse_grounding",
    "probe",
    "to_999",
    "to_pixels",
]

_HOMES = {
    "grounding": (
        "Box",
        "draw_boxes",
        "grounding_text",
        "iou",
        "parse_grounding",
        "to_999",
        "to_pixels",
    ),
    "image_gate": ("ImageError", "ImagePolicy", "open_image", "probe"),
    "inputs": ("Batch", "ModelInputs"),
    "processor": ("Processor",),
    "settings": ("ProcessorConfig",),
    "tiling": ("draw_layout",),
    "tokenizer": ("TextDecoder", "Tokenizer"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"vl2.processing.{home}"), name)
            return value
    raise AttributeError(f"module 'vl2.processing' has no attribute {name!r}")
