"""Which parameters a stage trains: all that it does not freeze, or low-rank adapters."""

from __future__ import annotations

import torch

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.train.config import TRAINED, TrainConfig
from vl2.train.lora import TARGETS, apply_lora
from vl2.train.optim import freeze


def select(model: VL2Model, config: TrainConfig) -> list[str]:
    """Freeze what the stage freezes, or add adapters; returns the names that train.

    Raises:
        ValueError: adapters are asked for where they cannot be.
    """
    check_targets(config)
    check_rank(config, model.config)
    if config.lora is not None:
        return apply_lora(model, config.lora, torch.Generator().manual_seed(config.seed))
    return freeze(model, TRAINED[config.stage])


def check_targets(config: TrainConfig) -> None:
    """Refuse adapters on what the stage freezes.

    Raises:
        ValueError: which targets of `lora` are frozen.
    """
    trained = TRAINED[config.stage]  # a target outside of the language model is a prefix, too
    if config.lora is None or "" in trained:
        return
    frozen = [target for target in config.lora.targets if target not in trained]
    if frozen:
        kept = ",".join(target for target in TARGETS if target in trained)
        raise ValueError(
            f"lora.targets has {', '.join(frozen)}, which stage {config.stage!r} freezes: give "
            f"lora.targets=[{kept}], or adapt them in another stage (stage=sft)"
        )


def check_rank(config: TrainConfig, model: VL2Config) -> None:
    """Refuse adapters that are larger than what they adapt, before memory is asked for them.

    Raises:
        ValueError: no layer's change can have such a rank.
    """
    widest = max(model.language_config.hidden_size, model.vision_config.width)
    if config.lora is not None and config.lora.rank > widest:
        raise ValueError(
            f"lora.rank is {config.lora.rank}: expected at most {widest}, the width of this model; "
            "8 to 64 are usual"
        )
