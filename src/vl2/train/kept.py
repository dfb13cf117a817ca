"""A model from the saved state of a run, finished or not: what `vl2 convert RUN` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vl2.checkpoint.commit import newest_state
from vl2.checkpoint.dcp import load_step
from vl2.checkpoint.manifest import step_number
from vl2.model.vl2 import VL2Model
from vl2.overrides import read_yaml
from vl2.processing.processor import Processor
from vl2.train.config import TrainConfig
from vl2.train.lora import merge_lora
from vl2.train.origin import (
    CHECKPOINTS,
    SETTINGS,
    RunOrigin,
    find_origin,
    load_weights,
    run_of,
)
from vl2.train.select import select
from vl2.train.trainer import model_state


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A model as a run had it after `step` steps, adapters merged."""

    model: VL2Model
    processor: Processor
    step: int
    stages: tuple[str, ...]


def load_kept(path: str | Path) -> Kept:
    """The model of a run's newest valid step, or of the step that `path` names.

    Raises:
        ValueError: no run, no valid step, or a damaged one; what is wrong is named.
    """
    given = Path(path).expanduser()
    run = run_of(given)
    if run is None:
        raise ValueError(
            f"{path} is not a training run: expected a folder with {SETTINGS} and {CHECKPOINTS}"
        )
    step = newest_state(run / CHECKPOINTS) if given == run else given
    if step is None:
        raise ValueError(
            f"{run / CHECKPOINTS} holds no valid saved state: let the run save one first"
        )
    config = read_yaml(run / SETTINGS, TrainConfig)
    origin = find_origin(config)
    model = model_at(step, config, origin)
    if config.lora is not None:
        merge_lora(model, keep_base=False)
    return Kept(
        model=model.eval(),
        processor=origin.processor,
        step=step_number(step),
        stages=(*origin.stages, config.stage),
    )


def model_at(step: Path, config: TrainConfig, origin: RunOrigin) -> VL2Model:
    """The model of a kept step on the CPU, its adapters beside the base.

    Raises:
        CheckpointError: the step is damaged or of another model.
    """
    model = load_weights(origin, config.init, config.seed, "cpu")
    select(model, config)
    load_step(step, model_state(model), subset=True)
    return model
