"""What the model is asked: random text of an exact length, and pictures of noise."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from vl2.config import VL2Config
from vl2.model_folder import embedded_folder
from vl2.processing.inputs import ModelInputs
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

QUESTION = "What is in this picture?"


def fitting_processor(config: VL2Config) -> Processor:
    """A processor with the tiles of a model and the embedded tokenizer, whose ids are the fewest.

    Raises:
        ValueError: this installation came without the embedded model.
    """
    tokenizer = Tokenizer.from_pretrained(embedded_folder())
    settings = ProcessorConfig.for_model(config)
    return Processor(tokenizer, settings, image_size=config.vision_config.image_size)


def text_prompt(processor: Processor, length: int, seed: int) -> ModelInputs:
    """A prompt of `length` random text tokens after the first one; another for every seed."""
    tokenizer, size = processor.tokenizer, processor.layout.image_size
    words = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.control_ids]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(words), (length,), generator=generator)
    ids = torch.tensor(words)[drawn]
    ids[0] = tokenizer.bos_id
    return ModelInputs(
        input_ids=ids,
        labels=torch.full_like(ids, processor.config.ignore_id),
        images=torch.zeros(1, 3, size, size),
        images_seq_mask=torch.zeros_like(ids, dtype=torch.bool),
        images_spatial_crop=torch.zeros(1, 2, dtype=torch.int64),
    )


def picture_messages(processor: Processor, seed: int) -> list[dict[str, Any]]:
    """A question about noise of one tile's size, cut into the overview and one tile."""
    size = processor.layout.image_size
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size, size, 3), generator=generator, dtype=torch.uint8)
    picture = Image.frombytes("RGB", (size, size), bytes(pixels.flatten().tolist()))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]
