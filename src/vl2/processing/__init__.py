"""Pictures and messages to model inputs."""

from vl2.processing.grounding import (
    Box,
    draw_boxes,
    grounding_text,
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
    "open_image",
    "parse_grounding",
    "probe",
    "to_999",
    "to_pixels",
]
