"""Pictures and messages to model inputs."""

from vl2.processing.grounding import Box, parse_grounding, to_pixels
from vl2.processing.image_gate import ImageError, ImagePolicy, open_image
from vl2.processing.inputs import Batch, ModelInputs
from vl2.processing.processor import Processor, ProcessorConfig
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
    "open_image",
    "parse_grounding",
    "to_pixels",
]
