"""Engines around small random models, and conversations for them."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from vl2.config import VL2Config
from vl2.engine.config import EngineConfig
from vl2.engine.engine import Engine
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer"
TOKENIZER = Tokenizer.from_pretrained(GOLDEN)
ATTENTION = {
    "mla": {},
    "mha": {
        "use_mla": False,
        "kv_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "v_head_dim": 0,
    },
}


def config_with(attention: str) -> VL2Config:
    nano = VL2Config.nano()
    language = replace(
        nano.language_config,
        vocab_size=TOKENIZER.vocab_size,
        num_hidden_layers=2,
        initializer_range=0.2,
        **ATTENTION[attention],
    )
    vision = replace(nano.vision_config, layers=1)
    return replace(nano, language_config=language, vision_config=vision)


def random_model(attention: str = "mla") -> VL2Model:
    model = VL2Model(config_with(attention))
    model.init_weights(torch.Generator().manual_seed(5))
    return model


def engine_of(model: VL2Model, **sizes) -> Engine:
    image_size = model.config.vision_config.image_size
    processor = Processor(TOKENIZER, ProcessorConfig.for_model(model.config), image_size=image_size)
    return Engine(model, processor, EngineConfig(**sizes))


def picture(wide: int, high: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((wide, high))
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


def user(text: str, *images: Image.Image) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


MIXED = [
    user("the date"),
    user("What is the total price of all that?", picture(200, 90)),
    [*user("count the dogs"), {"role": "assistant", "content": "two"}, *user("and the cats?")],
    user("name", picture(50, 50), picture(90, 300)),
]
