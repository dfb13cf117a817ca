"""A small random model and adapters of it, in folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import vl2
from vl2.checkpoint.lora_files import save_lora
from vl2.checkpoint.save import save_model
from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer
from vl2.train.lora import LoraConfig, apply_lora

TOKENIZER = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer"


def save_small_model(folder: Path) -> None:
    """Save one of the embedded model's kind with two layers."""
    tokenizer, nano = Tokenizer.from_pretrained(TOKENIZER), VL2Config.nano()
    language = replace(nano.language_config, vocab_size=tokenizer.vocab_size, num_hidden_layers=2)
    vision = replace(nano.vision_config, layers=1)
    config = replace(nano, language_config=language, vision_config=vision, torch_dtype="float32")
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder)
    settings = ProcessorConfig.for_model(config)
    size = vision.image_size
    Processor(tokenizer, settings, image_size=size).save_pretrained(folder)


def save_adapter(model_folder: Path, folder: Path, *, seed: int, targets: tuple[str, ...]) -> None:
    """Save an adapter that changes what the model in the other folder answers."""
    model = vl2.load_model(model_folder)
    generator = torch.Generator().manual_seed(seed)
    apply_lora(model, LoraConfig(targets=targets), generator)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("lora_B"):
                parameter.normal_(0, 0.3, generator=generator)
    save_lora(model, folder, base_model="test")
