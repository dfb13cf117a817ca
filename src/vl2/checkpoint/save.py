"""Save in the released layout: numbered shards, then the index; nothing looks whole before it is.

Every file is written under a temporary name in the target folder and flushed to the disk. Only when
all are there does the old model's index go, then its weights; the new files take their names, the
index last. An interrupted save therefore leaves either the old model, or a folder that `load`
refuses because numbered shards are missing, or the new model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vl2.checkpoint.container import NAMES, OutTensor, main_dtype, write_tensors
from vl2.checkpoint.errors import SaveError
from vl2.checkpoint.folder import INDEX, SHARD, SINGLE
from vl2.checkpoint.layout import LAYOUTS, table
from vl2.checkpoint.sizes import format_bytes
from vl2.config import VL2Config
from vl2.logs import get_logger
from vl2.model.vl2 import VL2Model

log = get_logger(__name__)

ARCHITECTURE = "DeepseekVLV2ForCausalLM"
"""Other engines choose their model class by this; the released config.json lack it."""
MAX_SHARD_BYTES = 5 * 10**9
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files beside the weights that belong to a model: tokenizer and processor, never code."""
PARTIAL = ".vl2-partial"


def save_model(
    model: VL2Model,
    folder: str | Path,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
    *,
    layout: str = "released",
    companions_from: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model and its config.json into a folder; a model that is already there is replaced.

    `load_model` of the folder in the same dtype gives the same bits. Nothing is copied in memory:
    shards are written one after the other from views of the model's own tensors.

    Args:
        model: on any device, in float32, bfloat16 or float16.
        folder: created when it is missing.
        max_shard_bytes: most bytes of tensors in one file (a single larger tensor gets its own).
            None writes one `model.safetensors` without an index.
        layout: "released" (one tensor per expert) or "stacked" (our own state dict).
        companions_from: folder whose tokenizer and processor files are copied along.
        on_progress: hears (bytes written so far, bytes in all).

    Raises:
        ValueError: an unknown layout, a dtype that the format here has no name for, adapters that
            are not merged, or a disk that is too full or cannot be written.
    """
    check_layout_name(layout)
    state = model.state_dict()
    adapted = next((key for key in state if ".lora_" in key), None)
    if adapted is not None:
        raise ValueError(f"the model has adapters ({adapted}): merge them first")
    tensors = []
    for key, slot in table(state, layout):
        view = slot.of(state)
        if view.dtype not in NAMES:
            raise ValueError(
                f"{key} is held in {view.dtype}: only {', '.join(map(str, NAMES))} can be saved"
            )
        tensors.append(
            OutTensor(key=key, dtype=view.dtype, shape=slot.shape, pieces=lambda view=view: (view,))
        )
    write_checkpoint(
        Path(folder),
        tensors,
        model.config,
        max_shard_bytes=max_shard_bytes,
        companions=companions(Path(companions_from)) if companions_from else (),
        on_progress=on_progress,
    )


def write_checkpoint(
    folder: Path,
    tensors: Sequence[OutTensor],
    config: VL2Config,
    *,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
    companions: Sequence[Path] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write shards, config.json, companions and the index, in the order told above.

    Raises:
        SaveError: the disk is too full or cannot be written.
        CheckpointError: a value does not fit float16.
    """
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, total)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _check_space(folder, total)
        try:
            names = _write_partials(folder, tensors, config, max_shard_bytes, on_bytes)
            for file in companions:
                shutil.copyfile(file, folder / (file.name + PARTIAL))
        except BaseException:
            _sweep(folder)
            raise
        _commit(folder, [*(file.name for file in companions), *names])
    except OSError as error:
        raise SaveError(f"cannot save into {folder}: {error.strerror or error}") from None
    log.info("saved %d tensors, %s, into %s", len(tensors), format_bytes(total), folder)


def companions(folder: Path) -> tuple[Path, ...]:
    """Tokenizer and processor files of a model folder: no config, index or weights."""
    found = {file for pattern in COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    own = {"config.json", INDEX}
    return tuple(sorted(file for file in found if file.name not in own))


def check_layout_name(layout: str) -> None:
    """Refuse an unknown layout.

    Raises:
        ValueError: it is none of `LAYOUTS`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}: expected one of {', '.join(LAYOUTS)}")


def _shards(
    tensors: Sequence[OutTensor], max_shard_bytes: int | None
) -> Iterator[tuple[str, list[OutTensor]]]:
    """Names and contents of the shards: a 5-digit number of a 6-digit total, as released."""
    if max_shard_bytes is None:
        yield SINGLE, list(tensors)
        return
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}: expected at least 1")
    groups: list[list[OutTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    for number, group in enumerate(groups, start=1):
        yield f"model-{number:05}-of-{len(groups):06}.safetensors", group


def _write_partials(
    folder: Path,
    tensors: Sequence[OutTensor],
    config: VL2Config,
    max_shard_bytes: int | None,
    on_bytes: Callable[[int], None],
) -> list[str]:
    """Write all files under temporary names; the names they are to get, the index last."""
    names, weight_map = ["config.json"], {}
    for name, group in _shards(tensors, max_shard_bytes):
        write_tensors(folder / (name + PARTIAL), group, on_bytes)
        names.append(name)
        weight_map.update({tensor.key: name for tensor in group})
    _write_json(folder / ("config.json" + PARTIAL), _saved_config(config, tensors).to_dict())
    if max_shard_bytes is not None:
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / (INDEX + PARTIAL), index)
        names.append(INDEX)
    return names


def _saved_config(config: VL2Config, tensors: Sequence[OutTensor]) -> VL2Config:
    """The config with the architecture's name and the dtype that the weights really have."""
    dtype = str(main_dtype(tensors)).removeprefix("torch.")
    language = config.language_config
    extra = {k: dtype if k in ("torch_dtype", "dtype") else v for k, v in language.extra.items()}
    return replace(
        config,
        architectures=(ARCHITECTURE,),
        torch_dtype=dtype,
        language_config=replace(language, extra=extra),
    )


def _write_json(file: Path, data: object) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _commit(folder: Path, names: Sequence[str]) -> None:
    (folder / INDEX).unlink(missing_ok=True)
    for old in folder.glob("*.safetensors"):
        if old.name == SINGLE or SHARD.fullmatch(old.name):
            old.unlink()
    for name in names:
        (folder / (name + PARTIAL)).replace(folder / name)
    # The names live in the directory, which has to reach the disk as well.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    for leftover in folder.glob("*" + PARTIAL):
        leftover.unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SaveError(
            f"{folder} has {format_bytes(free)} free but the model takes {format_bytes(needed)}: "
            "make room or choose another disk"
        )
