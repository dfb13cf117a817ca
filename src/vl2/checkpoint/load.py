"""Load a model straight into its dtype and device, with one copy of the weights in memory.

Order: headers are read and checked, the model is built on the meta device, every stored
tensor is matched with its place, and only then memory is taken, once per tensor, and filled from
the files. Whatever fails before the end leaves no model behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.causes import cause_in_names
from vl2.checkpoint.container import DTYPES, NAMES, StoredTensor, main_dtype, read_tensors
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.folder import scan_folder
from vl2.checkpoint.layout import Slot, layout_of, stored_dtypes, table
from vl2.checkpoint.quantized import quantize_into
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.logs import get_logger
from vl2.model.quantized import check_scheme, default_plan
from vl2.model.storage import store_matrices
from vl2.model.vl2 import VL2Model
from vl2.model_folder import resolve
from vl2.ops.cards import has_bfloat16

log = get_logger(__name__)

MODEL_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes that a model can be held in, by the names of config.json's `torch_dtype`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model folder whose files fit its config: what is stored where, and where it belongs.

    `skeleton` is the model on the meta device, `places` pairs every stored tensor with its slot.
    """

    folder: Path
    config: VL2Config
    skeleton: VL2Model
    places: tuple[tuple[StoredTensor, Slot], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of weights in the files."""
        return sum(stored.nbytes for stored, _ in self.places)


def load_model(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantization: str | None = None,
    *,
    storage_dtype: str | torch.dtype | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VL2Model:
    """Load a model for inference (`eval` mode) without ever holding its weights twice.

    Args:
        path: "nano" (the embedded model), a local folder, or a hub id such as
            "deepseek-ai/deepseek-vl2-tiny".
        dtype: "auto" (config.json's, else the files'; float16 for bfloat16 on cards that cannot
            multiply that), "float32", "bfloat16", "float16" or a torch.dtype. Float32 buffers (the
            router's correction bias) stay float32 in any of them.
        device: "auto" (CUDA when available, else the CPU) or a torch device.
        quantization: "int8", "int4", or for cards that multiply it "float8", quantises a float
            checkpoint layer by layer while it is read;
            None keeps the form of the files. A quantised folder needs no argument.
        storage_dtype: dtype that matrices are kept in, frozen, while the model computes in `dtype`;
            "auto" is bfloat16 where the files have it, so that a float32 model computes what a
            float32 load does, from half the memory. None keeps them as the model computes.
        on_progress: hears (bytes read so far, bytes in all) after every read.

    Raises:
        CheckpointError: weights are missing, unexpected, mis-shaped, truncated, twice there,
            pickled or of a dtype that cannot be loaded; the message names key, file and remedy.
        ValueError: an argument, the path or config.json is wrong.
    """
    if quantization is not None:
        check_scheme(quantization)
    target = choose_device(device)
    checkpoint = open_checkpoint(resolve(path))
    held = _dtype(dtype, checkpoint, target)
    model = checkpoint.skeleton
    if quantization is not None:
        model = quantized_skeleton(checkpoint, quantization)
    dtypes = stored_dtypes(model, held)
    if storage_dtype is not None:
        _check_floats(checkpoint, quantization)
        dtypes |= _storage_dtypes(checkpoint, store_matrices(model), storage_dtype, held)
    state = _allocate(model, dtypes, target)
    _fill(checkpoint, state, on_progress or (lambda done, total: None))
    model.load_state_dict(state, strict=True, assign=True)
    log.info("loaded %s: %d tensors in %s on %s", path, len(checkpoint.places), held, target)
    if model.config.quantization_config is not None:
        say_if_slow(model.config.quantization_config.scheme, target.type)
    return model.eval()


@cache
def say_if_slow(scheme: str, device: str) -> None:
    """Say once that a card has no kernel for a scheme."""
    if device == "cuda" and scheme in ("int8", "int4"):
        log.warning(
            "%s weights have no kernel on CUDA: they save memory and are slower than bfloat16; "
            "load without quantization where that fits, or float8 from compute capability 8.9 on",
            scheme,
        )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and every header of a folder and check that they fit; no weights are read.

    Raises:
        CheckpointError: the files do not hold the model of config.json.
        ValueError: config.json is missing or wrong.
    """
    config = VL2Config.from_pretrained(folder)
    stored = scan_folder(folder)
    language = config.language_config
    layers = max(language.num_hidden_layers, config.vision_config.layers)
    apart = config.quantization_config is None and layout_of(stored) == "released"
    experts = language.n_routed_experts or 0 if apart else 0
    # Every layer and every expert that is not stacked has tensors: absurd configs end here, early.
    for count, parts in ((layers, "layers"), (experts, "experts")):
        if count > len(stored):
            raise CheckpointError(
                f"{folder / 'config.json'} asks for {count} {parts} but the files hold "
                f"{len(stored)} tensors: config and weights are of different models"
            )
    skeleton = build_skeleton(config)
    return Checkpoint(
        folder=folder, config=config, skeleton=skeleton, places=_match(skeleton, stored, folder)
    )


def _match(
    skeleton: VL2Model, stored: Mapping[str, StoredTensor], folder: Path
) -> tuple[tuple[StoredTensor, Slot], ...]:
    places: list[tuple[StoredTensor, Slot]] = []
    state = skeleton.state_dict()
    slots = dict(table(state, layout_of(stored)))
    if stored.keys() != slots.keys() and (cause := cause_in_names(stored, slots)):
        raise CheckpointError(f"{folder} cannot be loaded: {cause}")
    for key, slot in slots.items():
        tensor = stored.get(key)
        if tensor is None:
            raise CheckpointError(
                f"{key} is missing in {folder}: expected shape {list(slot.shape)}; "
                "config.json describes another model or a shard is not whole"
            )
        if tensor.shape != slot.shape:
            raise CheckpointError(
                f"{key} in {tensor.file} has shape {list(tensor.shape)}: config.json expects "
                f"{list(slot.shape)}; config and weights are of different models"
            )
        _check_kind(tensor, state[slot.key].dtype)
        places.append((tensor, slot))
    unexpected = sorted(set(stored) - {tensor.key for tensor, _ in places})
    if unexpected:
        raise CheckpointError(
            f"{unexpected[0]!r:.200} in {stored[unexpected[0]].file} is not a tensor of the model "
            f"of config.json ({len(unexpected)} such): they are of different models"
        )
    return tuple(places)


def _check_kind(tensor: StoredTensor, wanted: torch.dtype) -> None:
    """Integers and float8 are quantised weights: exactly what the config expects."""
    floats = DTYPES.values()
    if tensor.dtype in floats and wanted in floats:
        return
    if tensor.dtype != wanted:
        expected = ", ".join(DTYPES) if wanted in floats else NAMES[wanted]
        raise CheckpointError(
            f"{tensor.key!r:.200} in {tensor.file} has dtype {NAMES[tensor.dtype]!r}, which cannot "
            f"be loaded: expected {expected}; convert the checkpoint with the tool that wrote it"
        )


def quantized_skeleton(checkpoint: Checkpoint, scheme: str) -> VL2Model:
    """The model of a float checkpoint on the meta device, with quantised layers.

    Raises:
        ValueError: an unknown scheme, or the checkpoint is quantised already.
    """
    check_scheme(scheme)
    held = checkpoint.config.quantization_config
    if held is not None:
        raise ValueError(
            f"{checkpoint.folder} is quantised to {held.scheme} already: load it without "
            "quantization, or quantise the model that it was made from"
        )
    plan = default_plan(checkpoint.skeleton, scheme)
    return build_skeleton(replace(checkpoint.config, quantization_config=plan))


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant by "auto" (CUDA when available, else the CPU) or by its name.

    Raises:
        ValueError: there is no such device, or this PyTorch cannot use it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}: expected auto, cpu, cuda or cuda:N") from None
    if found.type == "cpu":
        return torch.device("cpu")
    there = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if there and there.type == found.type else 0
    if (found.index or 0) >= count:
        seen = f"{count} such devices" if count else f"no {found.type.upper()} device"
        raise ValueError(f"device is {str(device)!r} but PyTorch sees {seen}: use cpu or auto")
    return found


def _dtype(dtype: str | torch.dtype, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return model_dtype(dtype)
    held = _stated_dtype(checkpoint.folder) or main_dtype(s for s, _ in checkpoint.places)
    if held == torch.bfloat16 and not has_bfloat16(device):
        log.info("%s has no products in bfloat16: the model is held in float16", device)
        return torch.float16
    return held


def model_dtype(dtype: str | torch.dtype, name: str = "dtype") -> torch.dtype:
    """The dtype meant by a name of `MODEL_DTYPES`, or the given one if it is among them.

    Args:
        dtype: what an argument asks for.
        name: of the argument, for the error.

    Raises:
        ValueError: a model cannot be held in it.
    """
    if isinstance(dtype, torch.dtype):
        found = dtype if dtype in MODEL_DTYPES.values() else None
    else:
        found = MODEL_DTYPES.get(dtype)
    if found is None:
        raise ValueError(f"{name} is {dtype}: expected auto, {', '.join(MODEL_DTYPES)}")
    return found


def _stated_dtype(folder: Path) -> torch.dtype | None:
    """`torch_dtype` (lately `dtype`) if config.json itself says it; our default does not count."""
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stated = data.get("torch_dtype", data.get("dtype"))
    return MODEL_DTYPES.get(stated) if isinstance(stated, str) else None


def _check_floats(checkpoint: Checkpoint, quantization: str | None) -> None:
    held = checkpoint.config.quantization_config
    scheme = quantization or (held and held.scheme)
    if scheme:
        raise ValueError(
            f"storage_dtype is given and matrices are quantised to {scheme}: choose one of the two"
        )


def _storage_dtypes(
    checkpoint: Checkpoint, keys: frozenset[str], dtype: str | torch.dtype, held: torch.dtype
) -> dict[str, torch.dtype]:
    """Dtypes of the matrices of these keys, in a model that computes in `held`."""
    if dtype != "auto":
        return dict.fromkeys(keys, model_dtype(dtype, "storage_dtype"))
    found = dict.fromkeys(keys, torch.bfloat16)
    for stored, slot in checkpoint.places:
        if slot.key in keys and stored.dtype != torch.bfloat16:
            found[slot.key] = held
    return found


def _allocate(
    skeleton: VL2Model, dtypes: Mapping[str, torch.dtype], device: torch.device
) -> dict[str, Tensor]:
    return {
        key: torch.empty(tensor.shape, dtype=dtypes[key], device=device)
        for key, tensor in skeleton.state_dict().items()
    }


def _fill(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], on_progress: Callable[[int, int], None]
) -> None:
    """Fill the tensors of `state` from the files; what they lack is held there quantised."""
    by_file: dict[Path, list[tuple[StoredTensor, Tensor]]] = {}
    quantized: list[tuple[StoredTensor, Slot]] = []
    for stored, slot in checkpoint.places:
        if slot.key in state:
            by_file.setdefault(stored.file, []).append((stored, slot.of(state)))
        else:
            quantized.append((stored, slot))
    total, done = checkpoint.nbytes, 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for file, wanted in by_file.items():
        read_tensors(file, wanted, on_bytes)
    for stored, slot in quantized:
        quantize_into(state, slot, stored, on_bytes)
