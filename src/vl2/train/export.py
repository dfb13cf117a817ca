"""What a finished run leaves: its model as released files, and its adapters if it has any."""

from __future__ import annotations

from pathlib import Path

from vl2.checkpoint.lora_files import load_lora, save_lora
from vl2.checkpoint.save import save_model
from vl2.failure import WorkError
from vl2.logs import get_logger
from vl2.model.vl2 import VL2Model
from vl2.train.config import TrainConfig
from vl2.train.kept import model_at
from vl2.train.lora import base_scheme, merge_lora
from vl2.train.origin import ADAPTER, EXPORTED, RunOrigin, load_weights, write_history
from vl2.train.trainer import Trainer

log = get_logger(__name__)


def export(trainer: Trainer, config: TrainConfig, origin: RunOrigin) -> Path:
    """Write the trained model as released files, with its processor and history.

    Of many ranks the main one does it, from the last kept state: no rank has the whole model.
    Adapters are merged into floats. Of an origin that is quantised there are none, so that the
    adapters are all that is left; their folder is returned then.

    Raises:
        WorkError: the model has numbers that are not finite; nothing is written.
    """
    folder = Path(config.folder) / (EXPORTED if origin.quantized is None else ADAPTER)
    is_main = trainer.ranks.is_main
    trainer.ranks.together(lambda: _export(trainer, config, origin, folder) if is_main else None)
    return folder


def _export(trainer: Trainer, config: TrainConfig, origin: RunOrigin, folder: Path) -> None:
    model = _whole_model(trainer, config, origin)
    _check_finite(model, trainer.step)
    if origin.quantized is None:
        _write(model, config, origin, folder)
        return
    _write_adapters(model, config)
    log.warning(
        "%s is there in %s only, into which adapters cannot be merged: they are left in %s",
        origin.folder,
        origin.quantized.scheme,
        folder,
    )


def _check_finite(model: VL2Model, step: int) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WorkError(
                f"{name} has numbers that are not finite after step {step}, so there is no model: "
                "train again with a lower optim.learning_rate, or from a start without them"
            )


def _whole_model(trainer: Trainer, config: TrainConfig, origin: RunOrigin) -> VL2Model:
    if trainer.ranks.is_alone:
        model = trainer.task.module
        assert isinstance(model, VL2Model)
        return model
    step = trainer.store.root / f"step-{trainer.step:08}"
    return model_at(step, config, origin)


def _write(model: VL2Model, config: TrainConfig, origin: RunOrigin, folder: Path) -> None:
    if config.lora is not None:
        adapters = _write_adapters(model, config)
        if base_scheme(model) is not None:  # the floats are read only now, on the CPU
            model = load_weights(origin, config.init, config.seed, "cpu")
            load_lora(model, adapters)
        merge_lora(model, keep_base=False)
    folder.mkdir(exist_ok=True)
    origin.processor.save_pretrained(folder)
    write_history(folder, (*origin.stages, config.stage))
    save_model(model, folder)


def _write_adapters(model: VL2Model, config: TrainConfig) -> Path:
    folder = Path(config.folder) / ADAPTER
    save_lora(model, folder, base_model=config.init.model or str(config.init.preset))
    return folder
