"""Adapters served beside their base: one model, whose layers are swapped between parts of a step.

The adapted layers hold the base's own modules, so an adapter costs the memory of its factors, and
once more of those of experts in the form in which they are multiplied, and of each `kv_b_proj`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vl2.checkpoint.lora_files import CONFIG, WEIGHTS, load_lora
from vl2.model.lora import lora_layers
from vl2.model.vl2 import VL2Model

SIGHT = ("vision", "projector")
"""What makes a picture's features; paths of its modules begin so."""
KEPT = ("kv_b_proj", "experts")
"""Last names of layers whose change is made once: absorbed attention reads the matrix in every
step, and the factors of experts are spread over all of them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """One adapter.

    Attributes:
        name: by which requests ask for it.
        digest: of its files; what was computed under another one is not its own.
        sees: whether it changes the features of pictures.
    """

    name: str
    digest: bytes
    sees: bool
    swaps: tuple[Swap, ...]

    @property
    def sight(self) -> bytes:
        """What names of pictures begin with."""
        return self.digest if self.sees else b""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the adapter; afterwards it is the base again."""
        try:
            for swap in self.swaps:
                setattr(swap.parent, swap.child, swap.layer)
            yield
        finally:
            for swap in self.swaps:
                setattr(swap.parent, swap.child, swap.base)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Swap:
    """A module and the adapted layer that takes its place."""

    parent: nn.Module
    child: str
    base: nn.Module
    layer: nn.Module


def load_adapters(model: VL2Model, folders: Mapping[str, str | Path]) -> dict[str, Adapter]:
    """Read adapters by name; the model is afterwards as it was.

    Raises:
        ValueError: a name is unfit, the files are damaged or of another model, or the model has
            adapters already. The message names the adapter.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: dict[str, Adapter] = {}
    for name, folder in folders.items():
        if not name or not name.isprintable() or set(name) & set(" :/"):
            raise ValueError(
                f"the adapter's name is {name!r}: expected one without spaces, colons and slashes"
            )
        try:
            found[name] = _load(model, name, Path(folder))
        except ValueError as error:
            raise ValueError(f"adapter {name}: {error}") from None
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
    return found


def chosen(adapters: Mapping[str, Adapter], name: str | None) -> Adapter | None:
    """The adapter of a name; None is the base.

    Raises:
        ValueError: there is none of that name.
    """
    if name is None:
        return None
    if name not in adapters:
        there = ", ".join(adapters) or "none"
        raise ValueError(f"adapter is {name!r}: expected one that the engine has ({there}) or None")
    return adapters[name]


def _load(model: VL2Model, name: str, folder: Path) -> Adapter:
    load_lora(model, folder)
    layers = lora_layers(model)
    swaps = []
    for path, layer in layers.items():
        above, _, child = path.rpartition(".")
        parent = model.get_submodule(above)
        setattr(parent, child, layer.base)
        layer.eval().requires_grad_(False)
        if child in KEPT:
            layer.keep(model.image_newline.dtype)
        swaps.append(Swap(parent=parent, child=child, base=layer.base, layer=layer))
    return Adapter(
        name=name,
        digest=_digest(folder),
        sees=any(path.startswith(SIGHT) for path in layers),
        swaps=tuple(swaps),
    )


def _digest(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for file in (CONFIG, WEIGHTS):  # the config has the scale
        with (folder / file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()
