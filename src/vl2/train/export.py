"""What a finished run leaves: its model as released files, and its adapters if it has any."""

from __future__ import annotations

from pathlib import Path

from vl2.checkpoint.hf import save_model
from vl2.model.vl2 import VL2Model
from vl2.train.config import TrainConfig
from vl2.train.kept import model_at
from vl2.train.lora import merge_lora
from vl2.train.lora_files import save_lora
from vl2.train.origin import EXPORTED, Origin, write_history
from vl2.train.trainer import Trainer

ADAPTER = "adapter"
"""Where a run with low-rank adapters leaves them, beside the merged model."""


def export(trainer: Trainer, config: TrainConfig, origin: Origin) -> Path:
    """Write the trained model as released files, with its processor and history.

    Of many ranks the main one does it, from the last kept state: no rank has the whole model.
    """
    folder = Path(config.folder) / EXPORTED
    if trainer.ranks.is_main:
        _write(_whole_model(trainer, config, origin), config, origin, folder)
    trainer.ranks.barrier()
    return folder


def _whole_model(trainer: Trainer, config: TrainConfig, origin: Origin) -> VL2Model:
    if trainer.ranks.is_alone:
        model = trainer.task.module
        assert isinstance(model, VL2Model)
        return model
    step = trainer.store.root / f"step-{trainer.step:08}"
    return model_at(step, config, origin)


def _write(model: VL2Model, config: TrainConfig, origin: Origin, folder: Path) -> None:
    if config.lora is not None:
        base = config.init.model or str(config.init.preset)
        save_lora(model, Path(config.folder) / ADAPTER, base_model=base)
        merge_lora(model, keep_base=False)
    folder.mkdir(exist_ok=True)
    origin.processor.save_pretrained(folder)
    write_history(folder, (*origin.stages, config.stage))
    save_model(model, folder)
