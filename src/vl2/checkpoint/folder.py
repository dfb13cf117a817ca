"""The weights of a model folder: every shard's header, checked against the index and each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vl2.checkpoint.container import QUANTIZED_DTYPES, StoredTensor, read_header
from vl2.checkpoint.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def scan_folder(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor of a model folder by its key; only headers are read.

    An index is obeyed. Without one the weights are `model.safetensors`, else the numbered shards
    `model-*-of-*.safetensors`, else every `*.safetensors` of the folder.

    Raises:
        CheckpointError: no weights, only pickles, a missing or damaged file, a key in two files, or
            an index that does not describe the files.
    """
    if (folder / INDEX).is_file():
        return _indexed(folder)
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for key, tensor in read_header(file, QUANTIZED_DTYPES).items():
            if key in stored:
                raise _twice(key, stored[key].file, file)
            stored[key] = tensor
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model of a folder without an index.

    Raises:
        CheckpointError: there are none, only pickles, or numbered shards are missing.
    """
    found = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if (folder / SINGLE) in found:
        return [folder / SINGLE]
    shards = [file for file in found if SHARD.fullmatch(file.name)]
    if shards:
        _check_numbers(folder, shards)
    if found:
        return shards or found
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code and are not "
            "loaded: convert them to safetensors"
        )
    raise CheckpointError(f"no *.safetensors in {folder}: give a folder with weights")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds any file of weights, whole or not, pickled ones included."""
    return any(file.suffix in (".safetensors", *PICKLES) for file in folder.glob("*"))


def _check_numbers(folder: Path, shards: list[Path]) -> None:
    matches = [SHARD.fullmatch(file.name) for file in shards]
    totals = {int(match[2]) for match in matches if match}
    have = sorted(int(match[1]) for match in matches if match)
    total = max(totals)
    if len(totals) > 1 or have != list(range(1, total + 1)):
        raise CheckpointError(
            f"{folder} holds {len(have)} shards of a model of {total} and no index: "
            "an interrupted save or download; fetch or save it again"
        )


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    weight_map = _read_index(folder / INDEX)
    names = sorted(set(weight_map.values()))
    _check_shards(folder, names)
    headers = {name: read_header(folder / name, QUANTIZED_DTYPES) for name in names}
    stored: dict[str, StoredTensor] = {}
    for name, header in headers.items():
        for key, tensor in header.items():
            if key in stored:
                raise _twice(key, stored[key].file, tensor.file)
            if weight_map.get(key) != name:
                raise CheckpointError(
                    f"{folder / name} holds {key!r:.200} but {INDEX} says {weight_map.get(key)}: "
                    "index and shards are of different models; fetch them again"
                )
            stored[key] = tensor
    for key, name in weight_map.items():
        if key not in stored:
            raise CheckpointError(
                f"{key!r:.200} is missing: {INDEX} places it in {folder / name}, which lacks it; "
                "fetch both again"
            )
    return stored


def _read_index(file: Path) -> dict[str, str]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): fetch it again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{file} has no weight_map: fetch it again, or delete it to load without"
        )
    for key, name in weight_map.items():
        # A shard is a file beside the index, never a path that leads elsewhere.
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{file} places {key!r:.200} in {name!r:.80}: expected NAME.safetensors"
            )
    return weight_map


def _check_shards(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if len(missing) == 1:
        raise CheckpointError(
            f"{folder / missing[0]} is missing but {INDEX} names it: fetch it again"
        )
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX} names "
            f"({missing[0]}, ...): a download that was interrupted; fetch them again"
        )


def _twice(key: str, first: Path, second: Path) -> CheckpointError:
    return CheckpointError(
        f"{key!r:.200} is in {first} and in {second.name}: remove the file of another model"
    )
