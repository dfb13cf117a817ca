"""The parts of the trainer together: a few samples are learnt by heart, busy experts lose load."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vl2.config import VL2Config
from vl2.data.collate import Sample, SampleInfo, TrainBatch, collate_rows
from vl2.data.config import SourceConfig
from vl2.data.encode import encode_record
from vl2.data.source_synthetic import SyntheticSource
from vl2.model.vl2 import VL2Model
from vl2.processing import Processor, ProcessorConfig
from vl2.train.balance import Balancer
from vl2.train.config import BalanceConfig, OptimConfig
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask, StepReport

SAMPLES = 8


def model_of(config: VL2Config) -> VL2Model:
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(0))
    freeze(model, ("",))
    return model.train()


def drawn_samples(config: VL2Config) -> TrainBatch:
    """Eight drawn pictures, each with its first question and answer."""
    words = Processor.from_pretrained("nano").tokenizer
    size = config.vision_config.image_size
    processor = Processor(words, ProcessorConfig.for_model(config), image_size=size)
    source = SyntheticSource(SourceConfig(path="easy", format="synthetic", rows=SAMPLES))
    rows = []
    for number in range(SAMPLES):
        record = source[number]
        inputs = encode_record(replace(record, turns=record.turns[:2]), processor)
        info = SampleInfo(
            source=source.name,
            id=record.id,
            position=number,
            row=number,
            tokens=len(inputs.input_ids),
        )
        rows.append([Sample(info=info, source=0, inputs=inputs)])
    return collate_rows(rows, pad_id=words.pad_id, source_names=(source.name,))


def take_step(
    task: LanguageTask, optimizers: Optimizers, step: int, batch: TrainBatch
) -> StepReport:
    """What the trainer does in a step."""
    optimizers.set_rates(step)
    report = task.accumulate([batch])
    optimizers.clip()
    optimizers.step()
    optimizers.zero_grad()
    task.after_step()
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "optimizer"),
    [
        ("debug_tiny", "adamw"),
        ("debug_small", "adamw"),
        ("debug_base", "adamw"),
        ("debug_base", "muon"),
    ],
)
def test_eight_samples_are_learnt_by_heart(preset: str, optimizer: str):
    config = VL2Config.preset(preset)
    batch = drawn_samples(config)
    model = model_of(config)
    balance = BalanceConfig(bias_step=0.001 if preset == "debug_base" else 0.0)
    settings = OptimConfig(
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        learning_rate=0.01,
        vision_scale=1.0,
        schedule="constant",
        warmup=5,
    )
    task, optimizers = LanguageTask(model, balance), Optimizers(model, settings, 60)
    first = take_step(task, optimizers, 0, batch).loss
    assert first > 7  # about log(2048): nothing is known yet
    losses = [take_step(task, optimizers, step, batch).loss for step in range(1, 60)]
    assert losses[-1] < 0.05


EXPERTS_AHEAD = 2
SHARED, SKEW = 0.15, 0.3
STEPS = 200


def skewed_model() -> VL2Model:
    """Two experts of each layer are liked by every token, by the router's weights themselves.

    All embeddings share one large coordinate, which the residual stream carries through the
    layers; the routers' rows of the two experts follow it.
    """
    config = VL2Config.preset("debug_base")
    model = model_of(config)
    with torch.no_grad():
        model.language.model.embed_tokens.weight[:, 0] = SHARED
        for router in Balancer(model, 0.0).routers:
            router.weight[:, 0] = 0.0
            router.weight[:EXPERTS_AHEAD, 0] = SKEW
    return model


def random_text(seed: int, rows: int, tokens: int) -> TrainBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 2000, (rows, tokens), generator=generator)
    return TrainBatch(tensors={"input_ids": ids, "labels": ids}, tokens=ids.numel())


@torch.no_grad()
def worst_load(model: VL2Model) -> float:
    """Largest max/mean load of a layer on text that training did not see."""
    balancer = Balancer(model, 0.0)
    ids = random_text(10_000, 16, 128).tensors["input_ids"]
    routing = model(input_ids=ids, logits="none").language.routing
    balancer.observe(routing, torch.ones_like(ids, dtype=torch.bool), None)
    return balancer.report()["load_text"]


def after_training(bias_step: float) -> tuple[VL2Model, list[Tensor]]:
    model = skewed_model()
    balance = BalanceConfig(loss_weight=0.0, bias_step=bias_step)
    settings = OptimConfig(learning_rate=1e-4, schedule="constant")
    task, optimizers = LanguageTask(model, balance), Optimizers(model, settings, STEPS)
    for step in range(STEPS):
        take_step(task, optimizers, step, random_text(step, 4, 64))
    return model, [router.e_score_correction_bias for router in task.balancer.routers]


@pytest.mark.slow
def test_a_skewed_start_is_balanced_by_the_biases_and_not_without():
    assert worst_load(skewed_model()) > 2.5
    idle, unmoved = after_training(bias_step=0.0)
    assert worst_load(idle) > 2.5
    assert not any(bias.any() for bias in unmoved)
    balanced, moved = after_training(bias_step=0.001)
    assert worst_load(balanced) < 1.5
    for bias in moved:
        assert bias[:EXPERTS_AHEAD].max() < bias[EXPERTS_AHEAD:].min()
