"""Released keys and ours: one table and its inverse.

Our parameter names are the released ones but for the routed experts, which we hold stacked:

    ours      language.model.layers.N.mlp.experts.gate_proj            [experts, out, in]
    released  language.model.layers.N.mlp.experts.E.gate_proj.weight   [out, in], one per expert E

(the same with up_proj and down_proj). `table` derives the stored form of a whole model from the
names and shapes of its state dict; `ours` is the inverse for one released key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYOUTS = ("released", "stacked")
"""`released`: one tensor per expert, as published. `stacked`: our own state dict."""

_OURS = re.compile(r"(language\.model\.layers\.\d+\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")
_RELEASED = re.compile(
    r"(language\.model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One stored tensor's place in the model: all of `key`, or slice `expert` of it."""

    key: str
    expert: int | None
    shape: tuple[int, ...]

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """The slot's values in a state dict, as a view."""
        tensor = state[self.key]
        return tensor if self.expert is None else tensor[self.expert]


def table(state: Mapping[str, Tensor], layout: str = "released") -> Iterator[tuple[str, Slot]]:
    """Every stored key of a model with its slot, in the order of the state dict.

    Args:
        state: the model's state dict; meta tensors do.
        layout: `released` or `stacked`.
    """
    for key, tensor in state.items():
        shape = tuple(tensor.shape)
        stack = _OURS.fullmatch(key)
        if layout == "stacked" or stack is None:
            yield key, Slot(key=key, expert=None, shape=shape)
            continue
        for expert in range(shape[0]):
            released = f"{stack[1]}.{expert}.{stack[2]}.weight"
            yield released, Slot(key=key, expert=expert, shape=shape[1:])


def ours(released: str) -> tuple[str, int | None]:
    """Our key of a released key, and the expert's index in it if it is a routed expert's weight."""
    match = _RELEASED.fullmatch(released)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else (released, None)


def is_stack(key: str) -> bool:
    """Whether our key is of stacked experts: one tensor here, one per expert as released."""
    return _OURS.fullmatch(key) is not None


def layout_of(keys: Iterable[str]) -> str:
    """Which layout the keys of a checkpoint are in."""
    return "stacked" if any(map(is_stack, keys)) else "released"


def stored_dtypes(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Dtype of each entry of the state dict when the model is held in `dtype`.

    Parameters take it. Buffers keep their own: the router's correction bias is float32 in every
    model, because the balancing steps of 0.001 that move it vanish in bfloat16.
    """
    buffers = dict(model.named_buffers())
    return {k: buffers[k].dtype if k in buffers else dtype for k in model.state_dict()}
