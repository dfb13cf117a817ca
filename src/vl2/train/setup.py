"""From a configuration to a trainer that is ready to run, and from a finished run to a model.

Everything that can be wrong is looked at first: settings, start, data. Weights are read last.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vl2.checkpoint.dcp import CheckpointStore
from vl2.checkpoint.load import choose_device
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.core_count import available_cores
from vl2.data.counting import UNUSABLE
from vl2.data.index import RowIndex
from vl2.data.loader import TrainLoader
from vl2.data.source_files import is_there
from vl2.data.sources import Source, open_source
from vl2.logs import get_logger
from vl2.model.quantized import held_weights
from vl2.model.vl2 import VL2Model
from vl2.overrides import to_mapping, write_yaml
from vl2.parallel.config import Layout
from vl2.parallel.mesh import ALONE, ONE, Ranks, join, leave
from vl2.parallel.parallelize import Blocks, parallelize_vl2, stage_units
from vl2.parallel.watchdog import Watchdog
from vl2.presets import RELEASED, preset_of
from vl2.train.config import TrainConfig
from vl2.train.determinism import use_deterministic_algorithms
from vl2.train.export import export
from vl2.train.flops import model_work, step_flops
from vl2.train.layouts import find_obstacle
from vl2.train.metrics import MetricsLog, SilentMetrics, peak_flops
from vl2.train.optim import Optimizers
from vl2.train.origin import (
    CHECKPOINTS,
    SETTINGS,
    RunOrigin,
    absolute,
    check_layout,
    find_origin,
    load_weights,
)
from vl2.train.report import estimate, trained_parts
from vl2.train.resume import ROWS, check_kept, check_places, content, identity, start_identity
from vl2.train.routing_profile import profile_routing
from vl2.train.select import check_rank, check_targets, select
from vl2.train.task import LanguageTask
from vl2.train.trainer import Trainer, seed_all

if TYPE_CHECKING:
    from vl2.parallel.pipeline import Pipeline

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A configuration whose start and data have been looked at; no weight is read yet."""

    config: TrainConfig
    origin: RunOrigin
    sources: tuple[Source, ...]
    index: RowIndex
    identity: dict[str, Any]  # what a kept state must agree with, see `resume.identity`


def prepare(config: TrainConfig, layout: Layout = ONE, *, check: bool = False) -> Prepared:
    """Check everything that can be checked without the weights.

    Args:
        config: of the run.
        layout: of its ranks.
        check: whether the run could resume from what its folder holds, before anything is written.

    Raises:
        ValueError: what is wrong, in one line.
    """
    check_places(Path(config.folder))
    for number, source in enumerate(config.data.sources):
        if not source.path:
            raise ValueError(f"no data: give data.sources.{number}.path=FILE")
    if not config.data.sources:
        raise ValueError("data.sources is empty: give at least one source")
    check_targets(config)
    if config.lora is not None and config.balance.bias_step:
        raise ValueError(
            f"balance.bias_step is {config.balance.bias_step} with lora: it would move the frozen "
            "base; set it to 0"
        )
    origin = find_origin(config)
    check_rank(config, origin.config)
    check_layout(origin.scheme(config.lora), layout)
    if (obstacle := find_obstacle(config, origin.config, layout)) is not None:
        raise ValueError(obstacle)
    sources = tuple(open_source(source) for source in config.data.sources)
    known = identity(config, origin, sources)
    if check:
        check_kept(Path(config.folder) / CHECKPOINTS, known, steps=config.steps)
    cache = Path(config.folder) / "index"
    index = RowIndex.build(
        config.data, sources, origin.processor, cache, processes=available_cores()
    )
    return Prepared(config=config, origin=origin, sources=sources, index=index, identity=known)


def run(config: TrainConfig) -> Path:
    """Train a stage from its beginning or from where it stopped; the folder of its model.

    Under torchrun every rank calls it.

    Raises:
        ValueError: something is wrong with settings, start or data; no weight was touched. Every
            rank raises the same.
        WorkError: the work failed, see `Trainer.run` and `export`.
        TrainingStopped: a signal ended it, its state is kept.
    """
    started = f"{version('vl2')} {to_mapping(config)}"
    try:
        ranks = join(config.parallel, str(choose_device(config.compute.device)), started)
        with Watchdog(ranks, config.parallel.watchdog):
            prepared = ranks.main_first(lambda: prepare(config, ranks.layout, check=ranks.is_main))
            trainer = build(prepared, ranks)
            with trainer.store:
                trainer.run()
                ranks.pulse.at(trainer.step, "exporting")
                return export(trainer, config, prepared.origin)
    finally:
        leave()


def profile(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Which experts the run's first `steps` batches choose, see `routing_profile`."""
    lora = replace(config.lora, experts=None) if config.lora else None  # as yet without a profile
    prepared = prepare(replace(config, lora=lora))
    origin = prepared.origin
    model = load_weights(
        origin, config.init, config.seed, config.compute.device, origin.scheme(lora)
    )
    with TrainLoader(config.data, origin.processor, prepared.sources, prepared.index) as loader:
        batches = itertools.chain.from_iterable(itertools.islice(loader, steps))
        device = model.image_newline.device
        moved = ({k: v.to(device) for k, v in batch.tensors.items()} for batch in batches)
        return profile_routing(model, moved)


def plan(config: TrainConfig) -> dict[str, Any]:
    """What the run will train and need, without reading weights or data.

    A released size is known without its files.
    """
    check_places(Path(config.folder))
    released = preset_of(str(config.init.model))
    if released in RELEASED and config.init.preset is None:
        size = VL2Config.preset(released)
    else:
        origin = find_origin(config)
        size = origin.config
        if config.lora is not None:
            scheme = origin.scheme(config.lora)
            config = replace(config, lora=replace(config.lora, quantization=scheme))
    model = build_skeleton(size)
    select(model, config)
    parts = trained_parts(model)
    return {"parts": parts, **estimate(config, size, parts)}


def look_at_data(config: TrainConfig) -> dict[str, dict[str, int]]:
    """Rows of each source that is here, and how many cannot be used; the log names the first ones.

    Nothing is written. Drawn pictures are left out: all of them can be used.

    Raises:
        ValueError: a run would refuse the data, see `RowIndex.build`.
    """
    given = [s for s in config.data.sources if s.format != "synthetic" and is_there(s.path)]
    if not given:
        return {}
    if preset_of(str(config.init.model)) in RELEASED and config.init.preset is None:
        log.warning("rows are not counted: a dry run does not fetch the model's tokenizer")
        return {}
    sources, cache = [open_source(source) for source in given], Path(config.folder) / "index"
    index = RowIndex.build(
        replace(config.data, sources=tuple(given)),
        sources,
        find_origin(config).processor,
        cache if cache.is_dir() else None,
        processes=available_cores(),
    )
    longest, found = config.data.sequence_length, {}
    for number, source in enumerate(sources):
        counts = index.counts(number)
        found[source.name] = {
            "rows": len(counts),
            "unusable": int((counts == UNUSABLE).sum()),
            "too_long": int((counts > longest).sum()),
        }
    return found


def build(prepared: Prepared, ranks: Ranks = ALONE) -> Trainer:
    """Read the weights and put the trainer together; it describes its folder when it begins."""
    config, origin = prepared.config, prepared.origin
    folder = Path(config.folder)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    if config.compute.deterministic:
        use_deterministic_algorithms()
    loader = ranks.together(
        lambda: TrainLoader(
            config.data,
            origin.processor,
            prepared.sources,
            prepared.index,
            rank=ranks.data_rank,
            world=ranks.layout.data,
            gather=None if ranks.is_alone else ranks.gather_data,
        )
    )
    store = CheckpointStore(folder / CHECKPOINTS, config.checkpoint.keep, peers=ranks.apart())
    model, tensors = ranks.in_turn(lambda: _model(prepared, ranks))
    start = start_identity(config.init, origin)  # its weights are here by now
    task = LanguageTask(
        model,
        config.balance,
        autocast=config.compute.autocast,
        ranks=ranks,
        pipeline=_pipeline(model, config, ranks),
    )
    metrics = SilentMetrics(config.steps)
    if ranks.is_main:
        metrics = _metrics(config, origin, ranks)
    trainer = Trainer(
        task,
        loader,
        Optimizers(model, config.optim, config.steps, ranks),
        store,
        metrics,
        guard=config.guard,
        checkpoint=config.checkpoint,
        fingerprint={**prepared.identity, **start, ROWS: content(None, [loader.fingerprint])},
    )
    if ranks.is_main:
        trainer.on_start = partial(_describe, tensors, config)
    return trainer


def _model(prepared: Prepared, ranks: Ranks) -> tuple[VL2Model, dict[str, Any]]:
    """The model as it is trained: weights read, parts frozen, spread over the ranks.

    With it goes the list of its tensors for the run folder.
    """
    config, origin = prepared.config, prepared.origin
    compute = config.compute
    seed_all(config.seed)
    # Each of many ranks reads the whole model, and keeps its part when the model is sharded.
    device = compute.device if ranks.is_alone else "cpu"
    scheme = origin.scheme(config.lora)
    model = load_weights(origin, config.init, config.seed, device, scheme)
    tensors = _listed(model, config, origin, select(model, config))
    if ranks.is_main:
        _log_parts(model, config, origin, tensors.get("quantised", {}))
    blocks = Blocks(
        recompute=compute.recompute,
        recompute_vision=compute.recompute_vision,
        compile=compute.compile,
        autocast=compute.autocast,
    )
    parallelize_vl2(model, ranks, blocks)
    return model, tensors


def _pipeline(model: VL2Model, config: TrainConfig, ranks: Ranks) -> Pipeline | None:
    """The pipeline that runs the model, if it is one stage of it."""
    if ranks.meshes is None or ranks.layout.pipeline == 1:
        return None
    from vl2.parallel.pipeline import Pipeline  # noqa: PLC0415 - takes seconds to import

    return Pipeline(
        model,
        ranks.meshes.dense["pipeline"],
        stage_units(model.config, ranks),
        schedule=config.parallel.schedule,
        autocast=config.compute.autocast,
    )


def _describe(tensors: dict[str, Any], config: TrainConfig) -> None:
    """Write the settings and the list of tensors into the run folder."""
    folder = Path(config.folder)
    write_yaml(replace(config, init=absolute(config.init)), folder / SETTINGS)
    (folder / "tensors.json").write_text(json.dumps(tensors, indent=1) + "\n", encoding="utf-8")
    log.info("tensors by name: %s", folder / "tensors.json")


def _listed(
    model: VL2Model, config: TrainConfig, origin: RunOrigin, names: list[str]
) -> dict[str, Any]:
    """What trains, what is frozen, and where it came from."""
    trained = set(names)
    held = {name: weight.kind for name, weight in held_weights(model).items()}
    return {
        "handed_over_from": str(origin.folder or f"random weights of {config.init.preset}"),
        "stages_before": list(origin.stages),
        "trained": names,
        "frozen": [n for n, _ in model.named_parameters() if n not in trained],
        **({"quantised": held} if held else {}),
    }


def _log_parts(
    model: VL2Model, config: TrainConfig, origin: RunOrigin, held: Mapping[str, str]
) -> None:
    """Log the numbers by part, and the form of what is frozen."""
    counted = model
    if held:  # numbers are of the float model
        _log_held(held, origin)
        counted = build_skeleton(origin.config)
        select(counted, config)
    for kind, parts in trained_parts(counted).items():
        listed = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        log.info("%s: %s", kind, listed or "nothing")


def _log_held(held: Mapping[str, str], origin: RunOrigin) -> None:
    """Say before the first step in which form the base is, and what that means for the last one."""
    schemes = " and ".join(sorted(set(held.values())))
    log.info("%d frozen matrices and stacks are held in %s", len(held), schemes)
    if origin.quantized is not None:
        log.info(
            "%s has no float weights: the run will save adapters, no merged model", origin.folder
        )


def _metrics(config: TrainConfig, origin: RunOrigin, ranks: Ranks) -> MetricsLog:
    peak = peak_flops(choose_device(config.compute.device))
    return MetricsLog(
        Path(config.folder),
        steps=config.steps,
        every=config.log_every,
        tensorboard=config.tensorboard,
        stage=config.stage,
        flops=_flops(config, origin) if peak else None,
        peak=(peak or 1.0) * ranks.layout.world,
    )


def _flops(config: TrainConfig, origin: RunOrigin) -> Callable[[Mapping[str, int]], float]:
    """A function from the sizes of a step to its operations."""
    model = build_skeleton(origin.config)
    select(model, config)
    work = model_work(model, config.compute)
    return lambda sizes: step_flops(work, sizes)
