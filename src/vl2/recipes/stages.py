"""The paper's three stages for every model size, as recipes (arXiv 2412.10302, section 4, table 2).

    vl2 train tiny_sft data.sources.0.path=photos.json init.model=deepseek-ai/deepseek-vl2-tiny

Steps follow from the paper's tokens, batch size and sequence length. What it does not state stands
here as our choice: no warm-up, AdamW's epsilon 1e-8, a cosine that ends at zero, samples in one
sequence that do not see each other (`data.isolate_documents`). Weights are float32 and matrix
products bfloat16: steps of 1e-5 would vanish in bfloat16 weights. Only Base's moments are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from vl2.data.config import DataConfig, SourceConfig
from vl2.presets import RELEASED
from vl2.train.config import (
    BalanceConfig,
    CheckpointConfig,
    ComputeConfig,
    GuardConfig,
    InitConfig,
    OptimConfig,
    StageKind,
    TrainConfig,
)
from vl2.train.lora import LoraConfig

SEQUENCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One column of the paper's table 2."""

    hub_id: str
    rates: dict[str, float]
    tokens: dict[str, float]
    pretrain_batch: int
    balance: float
    bias_step: float  # in stage 2; only Base routes with a bias
    moments: Literal["float32", "bfloat16"] = "float32"


SIZES: dict[str, Size] = {
    "tiny": Size(
        hub_id=RELEASED["tiny"],
        rates={"align": 5.4e-4, "pretrain": 5.4e-4, "sft": 3.0e-5},
        tokens={"align": 2.0e9, "pretrain": 798.5e9, "sft": 19.5e9},
        pretrain_batch=2304,
        balance=0.001,
        bias_step=0.0,
    ),
    "small": Size(
        hub_id=RELEASED["small"],
        rates={"align": 4.2e-4, "pretrain": 4.2e-4, "sft": 1.4e-5},
        tokens={"align": 2.0e9, "pretrain": 808.9e9, "sft": 20.0e9},
        pretrain_batch=2304,
        balance=0.001,
        bias_step=0.0,
    ),
    "base": Size(
        hub_id=RELEASED["base"],
        rates={"align": 4.5e-4, "pretrain": 4.5e-4, "sft": 2.0e-5},
        tokens={"align": 2.0e9, "pretrain": 796.5e9, "sft": 19.5e9},
        pretrain_batch=3360,
        balance=0.0001,
        bias_step=0.001,
        moments="bfloat16",
    ),
}
SCHEDULES = {"align": "cosine", "pretrain": "step", "sft": "constant"}
BATCHES = {"align": 256, "sft": 64}
BEFORE: dict[str, str] = {"pretrain": "align", "sft": "pretrain"}
"""The stage whose run folder a debug stage starts from."""

NO_SOURCE = (SourceConfig(path=""),)
"""To be filled in by whoever has data."""


def paper(size: str, stage: StageKind) -> TrainConfig:
    """A stage of a released size with the paper's numbers."""
    column = SIZES[size]
    batch = BATCHES.get(stage, column.pretrain_batch)
    name = f"{size}_{stage}"
    return TrainConfig(
        name=name,
        stage=stage,
        steps=round(column.tokens[stage] / (batch * SEQUENCE)),
        init=InitConfig(model=column.hub_id),
        data=DataConfig(
            sources=NO_SOURCE,
            sequence_length=SEQUENCE,
            batch_size=batch,
            packing=stage != "align",
            mask_prompt=stage == "sft",
            workers=4,
        ),
        optim=OptimConfig(
            learning_rate=column.rates[stage],
            schedule=SCHEDULES[stage],  # pyright: ignore[reportArgumentType]
            moments=column.moments,
        ),
        balance=BalanceConfig(
            loss_weight=column.balance,
            bias_step=column.bias_step if stage == "pretrain" else 0.0,
        ),
        guard=_guard(stage),
        compute=ComputeConfig(autocast=True, recompute="full", recompute_vision="full"),
    )


def _guard(stage: StageKind) -> GuardConfig:
    """Tuning fits few rows closely: there, a row that is new looks like a spike."""
    return GuardConfig(spike=0.0) if stage == "sft" else GuardConfig()


def lora(size: str) -> TrainConfig:
    """Low-rank tuning of a released model on one's own data: a small batch, a few hundred steps."""
    config = paper(size, "sft")
    return replace(
        config,
        name=f"{size}_lora",
        steps=300,
        init=replace(config.init, dtype="bfloat16"),
        data=replace(config.data, batch_size=8, workers=2, balance_tiles=False),
        optim=OptimConfig(learning_rate=1e-4, vision_scale=1.0, warmup=10, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=100),
        lora=LoraConfig(),
    )


def nano(stage: StageKind) -> TrainConfig:
    """A stage for the embedded model, on drawn pictures until other sources are given.

    The source says nothing but what is drawn, so that `path` and `format` suffice to replace it.
    """
    return TrainConfig(
        name=f"nano_{stage}",
        stage=stage,
        steps=200,
        init=InitConfig(model="nano"),
        data=DataConfig(
            sources=(SourceConfig(path="drills", format="synthetic"),),
            sequence_length=1024,
            batch_size=8,
            micro_batch=4,
            balance_tiles=False,  # one device: a step's samples are as mixed as can be
            mask_prompt=stage == "sft",
        ),
        optim=OptimConfig(
            learning_rate={"align": 1e-3, "pretrain": 1e-3, "sft": 5e-4}[stage],
            schedule=SCHEDULES[stage],  # pyright: ignore[reportArgumentType]
            warmup=10,
        ),
        balance=BalanceConfig(  # Base's, whose routing it has
            loss_weight=SIZES["base"].balance,
            bias_step=SIZES["base"].bias_step if stage == "pretrain" else 0.0,
        ),
        guard=_guard(stage),
        checkpoint=CheckpointConfig(every=100),
    )


def nano_lora() -> TrainConfig:
    """Low-rank tuning of the embedded model: a fine-tune that a laptop does in a minute or two."""
    config = nano("sft")
    return replace(
        config,
        name="nano_lora",
        steps=80,
        data=replace(
            config.data, sources=NO_SOURCE, sequence_length=512, batch_size=2, micro_batch=2
        ),
        optim=replace(config.optim, learning_rate=5e-3, vision_scale=1.0, weight_decay=0.0),
        lora=LoraConfig(rank=4, alpha=8.0),
    )


def debug(stage: StageKind) -> TrainConfig:
    """The whole life in a minute: a very small model with Base's mechanisms, drawn pictures."""
    config = nano(stage)
    before = BEFORE.get(stage)
    return replace(
        config,
        name=f"debug_{stage}",
        steps=40,
        init=InitConfig(model=f"runs/debug_{before}")
        if before
        else InitConfig(preset="debug_base", tokenizer="nano"),
        data=replace(
            config.data,
            sources=(SourceConfig(path="easy", format="synthetic"),),
            sequence_length=512,
            batch_size=4,
            micro_batch=2,
        ),
        optim=replace(config.optim, learning_rate=3e-3, warmup=5),
        checkpoint=CheckpointConfig(every=20),
        compute=ComputeConfig(threads=1),  # a second one is slower at this size
    )


_STAGES: tuple[StageKind, ...] = ("align", "pretrain", "sft")

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    **{f"{size}_{stage}": partial(paper, size, stage) for size in SIZES for stage in _STAGES},
    **{f"{size}_lora": partial(lora, size) for size in SIZES},
    **{f"nano_{stage}": partial(nano, stage) for stage in _STAGES},
    "nano_lora": nano_lora,
    **{f"debug_{stage}": partial(debug, stage) for stage in _STAGES},
}
"""Every recipe by the name that `vl2 train` takes."""
