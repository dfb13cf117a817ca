"""Where a run starts from: a model with its processor, and the stages that it has been through."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vl2.checkpoint.container import read_tensors
from vl2.checkpoint.load import choose_device, load_model, model_dtype, open_checkpoint
from vl2.config import QuantizationConfig, VL2Config
from vl2.model.quantized import KEPT_FLOAT, default_plan, float_copy, quantize_modules
from vl2.model.vl2 import VL2Model
from vl2.model_folder import resolve
from vl2.parallel.config import Layout
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.train.config import STAGE_ORDER, InitConfig, TrainConfig
from vl2.train.lora import LoraConfig

SETTINGS = "config.yaml"
CHECKPOINTS = "checkpoints"
EXPORTED = "model"
ADAPTER = "adapter"
"""Folder of a run's low-rank adapters, beside the merged model if there is one."""
HISTORY = "training.json"
"""File of an exported model that lists the stages that made it."""
HEAD = "language.lm_head"
FLOAT_IN_TRAINING = (*KEPT_FLOAT, "lm_head")
"""Last names of layers that no run quantises: the loss multiplies by the head's matrix."""
SAMPLED_PARTS, SAMPLED_BYTES = 16, 64 * 2**10
"""Parts of each file that identify it: reading the largest model whole takes minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOrigin:
    """What is known about the start of a run before a weight is read."""

    config: VL2Config  # of the model as floats
    processor: Processor
    folder: Path | None  # None: random weights
    stages: tuple[str, ...]  # that the model has been through, as far as its folder says
    quantized: QuantizationConfig | None = None  # how its files hold it; None: as floats

    def scheme(self, lora: LoraConfig | None) -> str | None:
        """Scheme of the frozen weights of a run: int8, int4, or None for floats."""
        if self.quantized is not None:
            return self.quantized.scheme
        return lora.quantization if lora is not None else None


def find_origin(config: TrainConfig) -> RunOrigin:
    """Find model, processor and history, and check that the stage may follow.

    Raises:
        ValueError: nothing to start from, a run that has not finished, a stage out of order, or a
            quantised model of which more than adapters would train.
    """
    init = config.init
    if (init.model is None) == (init.preset is None):
        raise ValueError(
            "init.model and init.preset: give exactly one, a model to start from or the name of a "
            "size that gets random weights"
        )
    if init.preset is not None:
        if init.tokenizer is None:
            raise ValueError(
                f"init.preset={init.preset} needs init.tokenizer: a folder with tokenizer.json "
                "(for the debug sizes: nano)"
            )
        model = VL2Config.preset(init.preset)
        return RunOrigin(
            config=model, processor=_processor(init.tokenizer, model), folder=None, stages=()
        )
    folder = resolve(model_folder(str(init.model)), weights=False)
    model = VL2Config.from_pretrained(folder)
    quantized = model.quantization_config
    if quantized is not None:
        check_quantized(quantized.scheme, config.lora, folder)
    processor = Processor.from_pretrained(init.tokenizer or folder)
    stages = read_history(folder)
    _check_order(stages, config.stage, folder)
    return RunOrigin(
        config=replace(model, quantization_config=None),
        processor=processor,
        folder=folder,
        stages=stages,
        quantized=quantized,
    )


def model_folder(name: str) -> str:
    """The exported model of a run folder; any other name as it is.

    Raises:
        ValueError: a run folder without an exported model.
    """
    run = Path(name).expanduser()
    if not (run / SETTINGS).is_file():
        if name.startswith("runs/") and not run.exists():
            raise ValueError(f"no run at {name}: run the stage before it first, or set init.model")
        return name
    if not (run / EXPORTED / "config.json").is_file():
        raise ValueError(f"the run in {name} has not finished: rerun its command to resume it")
    return str(run / EXPORTED)


def is_run(path: str | Path) -> bool:
    """Whether a run folder, or a step inside one, is meant."""
    return run_of(Path(path).expanduser()) is not None


def run_of(path: Path) -> Path | None:
    """The run folder of a run or of one of its steps."""
    for folder in (path, path.parent.parent):
        if (folder / SETTINGS).is_file() and (folder / CHECKPOINTS).is_dir():
            return folder
    return None


def absolute(init: InitConfig) -> InitConfig:
    """The start with absolute local folders, so that a run's settings serve anywhere."""

    def full(name: str | None) -> str | None:
        folder = Path(name).expanduser() if name else None
        return str(folder.resolve()) if folder and folder.is_dir() else name

    return replace(init, model=full(init.model), tokenizer=full(init.tokenizer))


def weights_digest(origin: RunOrigin) -> str:
    """sha256 of samples of the files that a run starts from; empty for random weights."""
    if origin.folder is None:
        return ""
    digest = hashlib.sha256()
    for file in sorted(origin.folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for part in range(SAMPLED_PARTS):
                stream.seek(part * size // SAMPLED_PARTS)
                digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()


def load_weights(
    origin: RunOrigin, init: InitConfig, seed: int, device: str, quantization: str | None = None
) -> VL2Model:
    """The model on its device, from its files or from the seed.

    Args:
        origin: where it comes from.
        init: gives the dtype of what stays float.
        seed: of random weights.
        device: where to.
        quantization: of a float origin, see `LoraConfig.quantization`. The output head stays float
            all the same, and that of a quantised origin becomes the floats that it stands for: the
            loss reads it as a matrix.
    """
    dtype = model_dtype(init.dtype)
    if origin.folder is None:
        model = VL2Model(origin.config)
        model.init_weights(torch.Generator().manual_seed(seed))
        if quantization is not None:  # before the cast, as weights of files are
            plan = default_plan(model, quantization, kept=FLOAT_IN_TRAINING)
            quantize_modules(model, plan)
        return model.to(device=choose_device(device), dtype=dtype)
    # Of a hub model only the description is here so far; its weights are fetched now.
    folder = resolve(model_folder(str(init.model)))
    scheme = quantization if origin.quantized is None else None
    model = load_model(folder, dtype=dtype, device=device, quantization=scheme)
    if model.language.lm_head.kind is not None:
        _put_float_head(model, folder if origin.quantized is None else None, dtype)
    return model


def check_quantized(scheme: str, lora: LoraConfig | None, name: str | Path) -> LoraConfig:
    """The adapters of a run on a model that is quantised already.

    Raises:
        ValueError: there are none, or the weights would have to be quantised once more.
    """
    if lora is None:
        raise ValueError(
            f"{name} is quantised to {scheme}, which cannot be trained: train adapters on it "
            "(lora.rank=8), or train the model that it was made from and quantise the result"
        )
    if lora.quantization not in (None, scheme):
        raise ValueError(
            f"lora.quantization is {lora.quantization!r}, but {name} is quantised to {scheme}: "
            "leave it out, or start from the model that it was made from"
        )
    return lora


def check_layout(scheme: str | None, layout: Layout) -> None:
    """Refuse layouts that would have to cut what is quantised.

    Raises:
        ValueError: experts or stages of a quantised base are asked for.
    """
    if scheme is not None and layout.expert * layout.pipeline > 1:
        raise ValueError(
            f"a base in {scheme} is whole on every rank, but parallel.expert is {layout.expert} "
            f"and parallel.pipeline {layout.pipeline}: set both to 1, or train on a float base"
        )


def _put_float_head(model: VL2Model, folder: Path | None, dtype: torch.dtype) -> None:
    """Exchange the quantised output head for a plain one, read from `folder` if that has floats."""
    plan = model.config.quantization_config
    assert plan is not None
    head = float_copy(model.language.lm_head, dtype)
    if folder is not None:
        [stored] = [s for s, slot in open_checkpoint(folder).places if slot.key == f"{HEAD}.weight"]
        read_tensors(stored.file, [(stored, head.weight.detach())], lambda _: None)
    model.set_submodule(HEAD, head)
    plan = replace(
        plan,
        modules_int8=tuple(name for name in plan.modules_int8 if name != HEAD),
        modules_to_not_convert=(*plan.modules_to_not_convert, HEAD),
    )
    model.config = replace(model.config, quantization_config=plan)


def read_history(folder: Path) -> tuple[str, ...]:
    """Stages that an exported model has been through; none for a model from elsewhere."""
    file = folder / HISTORY
    if not file.is_file():
        return ()
    try:
        return tuple(str(stage) for stage in json.loads(file.read_text("utf-8"))["stages"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read: {error}; remove it to continue without it"
        ) from None


def write_history(folder: Path, stages: tuple[str, ...]) -> None:
    """Write next to an exported model which stages made it."""
    (folder / HISTORY).write_text(json.dumps({"stages": list(stages)}) + "\n", encoding="utf-8")


def _check_order(stages: tuple[str, ...], stage: str, folder: Path) -> None:
    known = [s for s in stages if s in STAGE_ORDER]
    if known and STAGE_ORDER.index(stage) < STAGE_ORDER.index(known[-1]):
        raise ValueError(
            f"stage is {stage!r}, but {folder} has been through {', '.join(stages)}: the order is "
            f"{', '.join(STAGE_ORDER)}; start from an earlier model"
        )


def _processor(tokenizer: str, config: VL2Config) -> Processor:
    """The tokenizer with the tile grids of the model."""
    words = Processor.from_pretrained(tokenizer).tokenizer
    return Processor(
        words, ProcessorConfig.for_model(config), image_size=config.vision_config.image_size
    )
