"""Which parameters a stage trains: those that it does not freeze, or low-rank adapters."""

from __future__ import annotations

import torch

from vl2.model.vl2 import VL2Model
from vl2.train.config import TRAINED, TrainConfig
from vl2.train.lora import apply_lora
from vl2.train.optim import freeze


def select(model: VL2Model, config: TrainConfig) -> list[str]:
    """Freeze what the stage freezes, or add adapters; returns the names that train."""
    if config.lora is not None:
        return apply_lora(model, config.lora, torch.Generator().manual_seed(config.seed))
    return freeze(model, TRAINED[config.stage])
