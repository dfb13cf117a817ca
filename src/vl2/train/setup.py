"""From a configuration to a trainer that is ready to run, and from a finished run to a model.

Everything that can be wrong is looked at first: settings, start, data. Weights are read last.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vl2.checkpoint.count import count_parameters, model_shapes
from vl2.checkpoint.dcp import CheckpointStore
from vl2.checkpoint.hf import save_model
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.data.index import RowIndex
from vl2.data.loader import TrainLoader
from vl2.data.sources import Source, open_source
from vl2.logs import get_logger
from vl2.model.vl2 import VL2Model
from vl2.overrides import to_mapping, write_yaml
from vl2.parallel.activation_checkpoint import recompute_activations
from vl2.parallel.compile_blocks import compile_blocks
from vl2.train.config import TRAINED, TrainConfig
from vl2.train.lora import apply_lora, merge_lora
from vl2.train.lora_files import save_lora
from vl2.train.metrics import MetricsLog, peak_flops, step_flops
from vl2.train.optim import Optimizers, freeze
from vl2.train.origin import (
    CHECKPOINTS,
    EXPORTED,
    SETTINGS,
    Origin,
    absolute,
    find_origin,
    load_weights,
    weights_digest,
    write_history,
)
from vl2.train.report import estimate, trained_parts
from vl2.train.routing_profile import profile_routing
from vl2.train.task import LanguageTask
from vl2.train.trainer import Trainer, check_fingerprint, seed_all

log = get_logger(__name__)

ADAPTER = "adapter"
"""Where a run with low-rank adapters leaves them, beside the merged model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A configuration whose start and data have been looked at; no weight is read yet."""

    config: TrainConfig
    origin: Origin
    sources: tuple[Source, ...]
    index: RowIndex


def prepare(config: TrainConfig) -> Prepared:
    """Check everything that can be checked without the weights.

    Raises:
        ValueError: what is wrong, in one line.
    """
    for number, source in enumerate(config.data.sources):
        if not source.path:
            raise ValueError(f"no data: give data.sources.{number}.path=FILE")
    if not config.data.sources:
        raise ValueError("data.sources is empty: give at least one source")
    if config.lora is not None and config.balance.bias_step:
        raise ValueError(
            f"balance.bias_step is {config.balance.bias_step} with lora: it would move the frozen "
            "base; set it to 0"
        )
    origin = find_origin(config)
    sources = tuple(open_source(source) for source in config.data.sources)
    cache = Path(config.folder) / "index"
    index = RowIndex.build(
        config.data.sources,
        sources,
        origin.processor,
        cache,
        mask_prompt=config.data.mask_prompt,
    )
    return Prepared(config=config, origin=origin, sources=sources, index=index)


def run(config: TrainConfig) -> Path:
    """Train a stage from its beginning or from where it stopped; the folder of its model.

    Raises:
        ValueError: something is wrong with settings, start or data; no weight was touched.
        TrainingStopped: a signal ended it, its state is kept.
    """
    prepared = prepare(config)
    trainer = build(prepared)
    with trainer.store:
        trainer.run()
        return export(trainer, prepared)


def profile(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Which experts the run's first `steps` batches choose, see `routing_profile`."""
    prepared = prepare(replace(config, lora=None))
    origin = prepared.origin
    model = load_weights(origin, config.init, config.seed, config.compute.device)
    with TrainLoader(config.data, origin.processor, prepared.sources, prepared.index) as loader:
        batches = itertools.chain.from_iterable(itertools.islice(loader, steps))
        device = model.image_newline.device
        moved = ({k: v.to(device) for k, v in batch.tensors.items()} for batch in batches)
        return profile_routing(model, moved)


def plan(config: TrainConfig) -> dict[str, Any]:
    """What the run will train and need, without reading weights or data."""
    origin = find_origin(config)
    model = build_skeleton(origin.config)
    select(model, config)
    parts = trained_parts(model)
    return {"parts": parts, **estimate(config, origin.config, parts)}


def select(model: VL2Model, config: TrainConfig) -> list[str]:
    """Freeze what the stage freezes, or add adapters; returns the names that train."""
    if config.lora is not None:
        return apply_lora(model, config.lora, torch.Generator().manual_seed(config.seed))
    return freeze(model, TRAINED[config.stage])


def build(prepared: Prepared) -> Trainer:
    """Read the weights and put the trainer together; its folder is made and described."""
    config, origin = prepared.config, prepared.origin
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(folder / CHECKPOINTS, keep=config.checkpoint.keep)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    loader = TrainLoader(config.data, origin.processor, prepared.sources, prepared.index)
    fingerprint = _fingerprint(prepared, loader)
    check_fingerprint(store.newest(), fingerprint)
    seed_all(config.seed)
    model = load_weights(origin, config.init, config.seed, config.compute.device)
    names = select(model, config)
    _describe(model, config, origin, names, folder)
    recompute_activations(model, config.compute.recompute, config.compute.recompute_vision)
    if config.compute.compile:
        compile_blocks(model)
    task = LanguageTask(model, config.balance, autocast=config.compute.autocast)
    return Trainer(
        task,
        loader,
        Optimizers(model, config.optim, config.steps),
        store,
        _metrics(config, origin, model, folder),
        guard=config.guard,
        checkpoint=config.checkpoint,
        fingerprint=fingerprint,
    )


def export(trainer: Trainer, prepared: Prepared) -> Path:
    """Write the trained model as released files, with its processor and history."""
    config, origin = prepared.config, prepared.origin
    model = trainer.task.module
    assert isinstance(model, VL2Model)
    folder = Path(config.folder) / EXPORTED
    if config.lora is not None:
        base = config.init.model or str(config.init.preset)
        save_lora(model, Path(config.folder) / ADAPTER, base_model=base)
        merge_lora(model, keep_base=False)
    folder.mkdir(exist_ok=True)
    origin.processor.save_pretrained(folder)
    write_history(folder, (*origin.stages, config.stage))
    save_model(model, folder)
    return folder


def _describe(
    model: VL2Model, config: TrainConfig, origin: Origin, names: list[str], folder: Path
) -> None:
    """Write the settings and the list of tensors, and log the numbers by part."""
    write_yaml(replace(config, init=absolute(config.init)), folder / SETTINGS)
    trained = set(names)
    frozen = [n for n, _ in model.named_parameters() if n not in trained]
    tensors = {
        "handed_over_from": str(origin.folder or f"random weights of {config.init.preset}"),
        "stages_before": list(origin.stages),
        "trained": names,
        "frozen": frozen,
    }
    (folder / "tensors.json").write_text(json.dumps(tensors, indent=1) + "\n", encoding="utf-8")
    for kind, parts in trained_parts(model).items():
        listed = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        log.info("%s: %s", kind, listed or "nothing")
    log.info("tensors by name: %s", folder / "tensors.json")


def _metrics(config: TrainConfig, origin: Origin, model: VL2Model, folder: Path) -> MetricsLog:
    peak = peak_flops(model.image_newline.device)
    return MetricsLog(
        folder,
        steps=config.steps,
        every=config.log_every,
        tensorboard=config.tensorboard,
        stage=config.stage,
        flops=_flops(origin.config, config.data.sequence_length) if peak else None,
        peak=peak or 1.0,
    )


def _flops(config: VL2Config, length: int) -> Callable[[int], float]:
    """FLOPs of a step by its tokens."""
    active = count_parameters(config, model_shapes(config)).active
    return lambda tokens: step_flops(config, active, tokens, length)


def _fingerprint(prepared: Prepared, loader: TrainLoader) -> dict[str, Any]:
    """What a kept state must agree with; the rest of the settings may change."""
    config = prepared.config
    fixed = {
        "stage": config.stage,
        "start": [config.init.preset, config.init.dtype, weights_digest(prepared.origin)],
        "lora": [to_mapping(config.lora), _profile_bytes(config)],
        "optimizer": config.optim.optimizer,
        "data": loader.fingerprint,
        "model": prepared.origin.config.to_dict(),
    }
    return {key: _digest(value) for key, value in fixed.items()}


def _profile_bytes(config: TrainConfig) -> str:
    """The routing profile that chose the experts, if one did."""
    if config.lora is None or config.lora.experts is None:
        return ""
    return Path(config.lora.experts).read_text(encoding="utf-8")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
