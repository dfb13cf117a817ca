"""The state that a step holds: tensors by flat name, copied, and extra values as exact JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def flatten(tensors: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a nested mapping by name, the keys on the way joined with a dot.

    Raises:
        ValueError: a key is no str, a value is no tensor, or two tensors get one name.
    """
    flat: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not isinstance(key, str):
            raise ValueError(
                f"the key {key!r} below {prefix!r} is not a str: use a string as the key"
            )
        name = prefix + key
        if isinstance(value, Mapping):
            found = flatten(value, name + ".")
        elif isinstance(value, Tensor):
            found = {name: value}
        else:
            raise ValueError(f"{name} is {type(value).__name__}, no tensor: put it into extra")
        if twice := sorted(flat.keys() & found.keys()):
            raise ValueError(f"{twice[0]} names two tensors: rename one of them")
        flat |= found
    return flat


def snapshot(tensor: Tensor, *, alone: bool) -> Tensor:
    """A copy on the CPU that shares memory with nothing, as safetensors wants it.

    Of a tensor that is distributed over ranks it holds this rank's part.

    Raises:
        ValueError: such a tensor in a store of one process.
    """
    if isinstance(tensor, DTensor):
        if alone:
            raise ValueError(
                f"a tensor of shape {list(tensor.shape)} is distributed over ranks, of which a "
                "single process would save only its own part: open the store with `peers`, or "
                "gather the tensor with full_tensor() first"
            )
        return tensor.detach().to("cpu", copy=True)
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def extra_text(extra: Mapping[str, Any]) -> str:
    """`extra` as JSON that reads back equal.

    Raises:
        ValueError: it holds what JSON would change, such as a tuple; the place is named.
    """
    _check_json(dict(extra), "extra")
    return json.dumps(dict(extra), ensure_ascii=False)


def _check_json(value: object, where: str) -> None:
    """Refuse what JSON would change without a word, such as tuples and keys that are numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: JSON keeps only str keys")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_json(item, f"{where}[{number}]")
    elif not (value is None or type(value) in (str, int, float, bool)):
        raise ValueError(
            f"{where} is {type(value).__name__}, which JSON does not keep: "
            "use lists, dicts, numbers and strings"
        )
