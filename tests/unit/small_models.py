"""Random models with the parts of the released ones, small enough to train in a test."""

from __future__ import annotations

from dataclasses import replace

import torch

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model


def small_model(*, layers: int = 2) -> VL2Model:
    config = VL2Config.nano()
    language = replace(config.language_config, num_hidden_layers=layers, vocab_size=64)
    vision = replace(config.vision_config, layers=1)
    model = VL2Model(replace(config, language_config=language, vision_config=vision))
    model.init_weights(torch.Generator().manual_seed(3))
    return model.eval()
