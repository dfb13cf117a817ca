"""Adapters on the disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Keys are `base_model.model.<released module>.lora_A.weight` [rank, in] and `.lora_B.weight`
[out, rank], one pair per expert, so that `peft` reads them for a model that holds its experts as
separate linear layers, as the official code does. Source: `peft` 0.21, `utils/save_and_load.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vl2.checkpoint.causes import unwrapped
from vl2.checkpoint.container import (
    CheckpointError,
    OutTensor,
    StoredTensor,
    read_header,
    read_tensors,
    write_tensors,
)
from vl2.checkpoint.errors import SaveError
from vl2.checkpoint.layout import ours, table
from vl2.checkpoint.skeleton import build_skeleton
from vl2.logs import get_logger
from vl2.model.lora import LoraLinear, attach, lora_layers
from vl2.model.moe import matrix_layers
from vl2.model.vl2 import VL2Model

log = get_logger(__name__)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
FACTORS = (".lora_A.weight", ".lora_B.weight")
PARTIAL = ".vl2-partial"

PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": None,
    "inference_mode": True,
    "bias": "none",
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "init_lora_weights": True,
}
"""Settings of plain LoRA in adapter_config.json beside rank, alpha, modules and base model."""
OTHER_KINDS = (
    *("use_dora", "use_rslora", "use_qalora", "fan_in_fan_out", "lora_bias", "rank_pattern"),
    *("alpha_pattern", "layer_replication", "trainable_token_indices", "alora_invocation_tokens"),
)
"""Settings that turn LoRA into something else; all of them must be off."""
UNREAD = ("modules_to_save", "target_parameters")
"""Settings that keep more in the file than the two factors of linear layers."""
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base as it was; others (PiSSA, OLoRA ...) change it too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Settings of adapter_config.json that vl2 reads."""

    rank: int
    alpha: float
    base_model: str | None  # folder or hub id of the model that was adapted


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One adapted matrix: its released module name, and views of base weight and factors."""

    name: str
    weight: Tensor | None  # [out, in]; None: there is no float one
    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float


def save_lora(model: VL2Model, folder: str | Path, *, base_model: str) -> None:
    """Write the adapters of a model; adapters that are already there are replaced.

    An interrupted save leaves the old adapters, or a folder that `load_lora` refuses.

    Args:
        model: with adapters, not merged.
        folder: created when it is missing.
        base_model: folder or hub id of the base, for whoever loads the adapters.

    Raises:
        ValueError: the model has no adapters.
        SaveError: the folder cannot be written.
    """
    layers = list(lora_layers(model).values())
    if not layers:
        raise ValueError("the model has no adapters to save: apply some, or save before merging")
    found = list(adapters(model))
    tensors = [
        _out(PREFIX + adapter.name + factor, tensor)
        for adapter in found
        for factor, tensor in zip(FACTORS, (adapter.a, adapter.b), strict=True)
    ]
    config = {
        **PLAIN,
        "base_model_name_or_path": base_model,
        "r": layers[0].rank,
        "lora_alpha": layers[0].alpha,
        "target_modules": sorted(adapter.name for adapter in found),
    }
    _write(Path(folder), tensors, config)
    log.info("saved %d adapters into %s", len(found), folder)


def load_lora(model: VL2Model, folder: str | Path) -> list[str]:
    """Put saved adapters into a model and freeze everything else; returns the adapters' names.

    Everything is checked against the model before the model is touched. Of an expert that has an
    adapter on some of its three matrices only, the others get zeros, which stay zeros in training.

    Raises:
        CheckpointError: the files are damaged, are not plain LoRA, or are of another model.
        ValueError: the model has adapters already.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters already: merge them, or load the model again")
    folder = Path(folder)
    config = read_adapter_config(folder)
    file = _weights(folder)
    stored = read_header(file)
    pairs = _match(model, stored, config.rank, file)
    attach(model, _places(pairs), config.rank, config.alpha)
    targets = {adapter.name: (adapter.a, adapter.b) for adapter in adapters(model)}
    wanted = [
        pair for name, tensors in pairs.items() for pair in zip(tensors, targets[name], strict=True)
    ]
    read_tensors(file, wanted, lambda _: None)
    log.info("loaded %d adapters from %s", len(pairs), folder)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def adapters(model: nn.Module) -> Iterator[Adapter]:
    """Every adapted matrix of a model, experts one by one under their released names."""
    for path, layer in lora_layers(model).items():
        scale = layer.alpha / layer.rank
        if isinstance(layer, LoraLinear):
            weight = None if layer.base.kind else layer.base.weight.detach()
            a, b = layer.lora_A.detach(), layer.lora_B.detach()
            yield Adapter(name=path, weight=weight, a=a, b=b, scale=scale)
            continue
        for part, stack in layer.stacks().items():
            weights = None
            if layer.base.kind is None:
                weights = layer.base.get_parameter(part).detach()
            stacked = torch.empty(stack.total, 0, device="meta")
            released = [key for key, _ in table({f"{path}.{part}": stacked})]
            for place, expert in enumerate(stack.experts.tolist()):
                yield Adapter(
                    name=released[expert].removesuffix(".weight"),
                    weight=None if weights is None else weights[expert],
                    a=stack.lora_A.detach()[place],
                    b=stack.lora_B.detach()[place],
                    scale=scale,
                )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json and check that it describes plain LoRA.

    Raises:
        CheckpointError: it is missing, damaged, or asks for something else than plain LoRA.
    """
    file = folder / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}): give a folder that holds adapters"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is no JSON: fetch it again") from None
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise CheckpointError(f"{file} does not describe LoRA adapters: peft_type must be 'LORA'")
    wrong = [key for key in OTHER_KINDS if data.get(key)]
    wrong += ["bias"] if data.get("bias", "none") != "none" else []
    wrong += ["init_lora_weights"] if data.get("init_lora_weights") not in STARTS else []
    if wrong:
        raise CheckpointError(
            f"{file} sets {wrong[0]} to {data[wrong[0]]!r:.80}: only plain LoRA can be loaded; "
            "merge these adapters into their base with the tool that made them"
        )
    for key in UNREAD:
        if data.get(key):
            raise CheckpointError(
                f"{file} sets {key} to {data[key]!r:.80}: whole trained tensors cannot be "
                "loaded; merge the adapters into their base with the tool that made them"
            )
    rank, alpha, base = data.get("r"), data.get("lora_alpha"), data.get("base_model_name_or_path")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{file} has r = {rank!r:.80}: expected a whole number above 0")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise CheckpointError(f"{file} has lora_alpha = {alpha!r:.80}: expected a number above 0")
    base_model = base if isinstance(base, str) else None
    return AdapterConfig(rank=rank, alpha=float(alpha), base_model=base_model)


def _match(
    model: VL2Model, stored: Mapping[str, StoredTensor], rank: int, file: Path
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Stored factors by released module name, after checking each against the model."""
    # Of a quantised matrix the state has other keys than the one that an adapter names.
    floats = build_skeleton(replace(model.config, quantization_config=None))
    shapes = {key: slot.shape for key, slot in table(floats.state_dict())}
    pairs: dict[str, tuple[StoredTensor, StoredTensor]] = {}
    for key in stored:
        name = _module(key)
        shape = shapes.get(f"{name}.weight")
        if name is None or shape is None or not _adaptable(model, name):
            raise CheckpointError(f"{key!r:.200} in {file} is {_foreign(key, shapes)}")
        first, second = (stored.get(PREFIX + name + factor) for factor in FACTORS)
        if first is None or second is None:
            raise CheckpointError(f"{file} has only one of {name}'s two factors: fetch it again")
        expected = (rank, shape[1]), (shape[0], rank)
        if (first.shape, second.shape) != expected:
            raise CheckpointError(
                f"{name} in {file} has factors {list(first.shape)} and {list(second.shape)}: this "
                f"model and r = {rank} expect {list(expected[0])} and {list(expected[1])}; "
                "the adapters are of another model"
            )
        pairs[name] = first, second
    if not pairs:
        raise CheckpointError(f"{file} holds no adapters: fetch it again")
    return pairs


def _module(key: str) -> str | None:
    """The released module name in a stored key, if it is one of a factor."""
    for factor in FACTORS:
        if key.startswith(PREFIX) and key.endswith(factor):
            return key[len(PREFIX) : -len(factor)]
    return None


def _foreign(key: str, shapes: Mapping[str, object]) -> str:
    """Why a stored key is no factor of an adapter of the model, with the remedy."""
    _, wrapper = unwrapped(key)
    start, factor, end = key.partition(".lora_")
    named = re.fullmatch(r"[AB]\.(\w+)\.weight", end)
    if wrapper:
        word, remedy = wrapper, "save the adapters of the model that it wraps"
    elif named:
        word, remedy = f".{named[1]}", "save with peft's save_pretrained"
    elif factor and not key.startswith(PREFIX):
        return (
            f"not named as peft names adapters: its keys begin with {PREFIX!r}; save it with peft"
        )
    elif start.removeprefix(PREFIX) in shapes or ".modules_to_save." in key:
        return (
            "a whole tensor, which cannot be loaded: merge the adapters into their base with the "
            "tool that made them"
        )
    else:
        return "not an adapter of a linear layer of this model: the adapters are of another model"
    return f"not named as peft names adapters: {remedy}, or take {word!r} out of the keys"


def _weights(folder: Path) -> Path:
    """The file of the factors.

    Raises:
        CheckpointError: it is missing; pickled adapters beside it are named.
    """
    file = folder / WEIGHTS
    if not file.is_file() and (folder / PICKLED).is_file():
        raise CheckpointError(
            f"{folder} holds only pickled adapters ({PICKLED}), which can run code and are not "
            "loaded: save them as safetensors with peft's save_pretrained"
        )
    return file


def _adaptable(model: VL2Model, name: str) -> bool:
    """Whether the released module is a routed expert's matrix or a linear layer."""
    key, expert = ours(f"{name}.weight")
    return expert is not None or key.removesuffix(".weight") in dict(matrix_layers(model))


def _places(names: Mapping[str, object]) -> dict[str, list[int]]:
    """Paths in our model of released modules, and the experts of each stack."""
    places: dict[str, set[int]] = {}
    for name in names:
        key, expert = ours(f"{name}.weight")
        experts = places.setdefault(key.rpartition(".")[0], set())
        if expert is not None:
            experts.add(expert)
    return {path: sorted(experts) for path, experts in places.items()}


def _out(key: str, tensor: Tensor) -> OutTensor:
    shape = tuple(tensor.shape)
    return OutTensor(key=key, dtype=tensor.dtype, shape=shape, pieces=lambda: (tensor,))


def _write(folder: Path, tensors: list[OutTensor], config: Mapping[str, Any]) -> None:
    """Both files under temporary names first; the config takes its place last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / (WEIGHTS + PARTIAL), tensors, lambda _: None)
        with (folder / (CONFIG + PARTIAL)).open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(config, indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        (folder / CONFIG).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG):
            (folder / (name + PARTIAL)).replace(folder / name)
    except OSError as error:
        raise SaveError(f"cannot save into {folder}: {error.strerror or error}") from None
