"""A model of random weights in any form, made tensor by tensor in the form that it is held in.

No float copy of a quantised model is ever there, so that Base in int4 is built on a machine that
could not hold its floats. Speed does not depend on the values, but for the experts that are chosen:
router and activations have the spread of a fresh model, so tokens spread over the experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from vl2.benchmarks.config import STORED
from vl2.checkpoint.layout import stored_dtypes
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.model.init import standard_deviation
from vl2.model.linear import Held
from vl2.model.quantized import default_plan, held_weights
from vl2.model.storage import store_matrices
from vl2.model.vl2 import VL2Model
from vl2.ops.float8 import FLOAT8

POOL_NUMBERS = 2**24 + 43
"""Random numbers that are drawn; all weights repeat them. Odd, so that rows begin anywhere."""
INT8_SPREAD = 127 / 3**0.5
"""Standard deviation of whole numbers drawn evenly from -127 to 127."""
FLOAT8_SPREAD = 64.0
"""The same of the float8 numbers drawn here: seven times it is the largest of them."""
INT4_SPREAD = ((16**2 - 1) / 12) ** 0.5
"""The same of 0 to 15."""


def cut_layers(config: VL2Config, layers: int | None, vision_layers: int | None) -> VL2Config:
    """The config with the first decoder layers and the first blocks of the tower, at full width.

    Raises:
        ValueError: more layers than the model has.
    """
    language, vision = config.language_config, config.vision_config
    depth = language.num_hidden_layers if layers is None else layers
    blocks = vision.layers if vision_layers is None else min(vision_layers, vision.layers)
    if depth > language.num_hidden_layers:
        raise ValueError(f"layers is {depth}: the model has {language.num_hidden_layers}")
    return replace(
        config,
        language_config=replace(language, num_hidden_layers=depth),
        vision_config=replace(vision, layers=blocks),
    )


def form_skeleton(
    config: VL2Config, form: str, dtype: torch.dtype
) -> tuple[VL2Model, dict[str, torch.dtype]]:
    """The model on the meta device in a form of `FORMS`, and the dtype of each tensor.

    Args:
        config: how large it is; where it is quantised, it says itself which layer is held how.
        form: as `default_plan` lays it out where it is quantised.
        dtype: of all that the form leaves as it is.
    """
    model = build_skeleton(config)
    if form == STORED:
        narrow = store_matrices(model)
        return model, stored_dtypes(model, dtype) | dict.fromkeys(narrow, torch.bfloat16)
    if form != "none" and config.quantization_config is None:
        model = build_skeleton(replace(config, quantization_config=default_plan(model, form)))
    return model, stored_dtypes(model, dtype)


@torch.no_grad()
def random_model(
    config: VL2Config,
    form: str,
    dtype: torch.dtype = torch.float32,
    shared: Mapping[str, Tensor] | None = None,
) -> VL2Model:
    """A model of `config` on the CPU, in evaluation mode.

    Args:
        config: how large it is; its own quantisation does not count.
        form: as `form_skeleton` takes it.
        dtype: as `form_skeleton` takes it.
        shared: tensors of another form of the same model; those that are alike are taken over.
    """
    model, dtypes = form_skeleton(replace(config, quantization_config=None), form, dtype)
    given = shared or {}
    norms = _norm_weights(model)
    held, buffers = held_weights(model), {name for name, _ in model.named_buffers()}
    noise, state = _Noise(), {}
    for key, meta in model.state_dict().items():
        other = given.get(key)
        if other is not None and (other.shape, other.dtype) == (meta.shape, dtypes[key]):
            state[key] = other
            continue
        state[key] = torch.empty(meta.shape, dtype=dtypes[key])
        if key in norms:
            state[key].fill_(1.0)
        elif weight := held.get(key.rpartition(".")[0]):
            _fill_held(state[key], key, weight, config, noise)
        elif key in buffers or not (spread := standard_deviation(key, meta.shape, config)):
            state[key].zero_()
        else:
            noise.fill(state[key], spread)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


class _Noise:
    """Hands out random numbers from one pool, each tensor going on where the last one ended."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.normal = torch.randn(POOL_NUMBERS, generator=generator)
        drawn = torch.randint(-127, 128, (POOL_NUMBERS,), generator=generator, dtype=torch.int8)
        self.bytes = {torch.int8: drawn, torch.uint8: drawn.view(torch.uint8)}
        self.place = 0

    def fill(self, target: Tensor, spread: float | None = None) -> None:
        """Numbers of the target's kind; floats of a standard deviation `spread`."""
        flat, done = target.view(-1), 0
        pool = self.normal if spread is not None else self.bytes[target.dtype]
        while done < len(flat):
            piece = pool[self.place : self.place + len(flat) - done]
            room = flat[done : done + len(piece)]
            if spread is None:
                room.copy_(piece)
            elif room.dtype == FLOAT8:
                room.copy_(piece * spread)
            else:
                torch.mul(piece, spread, out=room)
            done += len(piece)
            self.place = (self.place + len(piece)) % len(pool)


def _fill_held(tensor: Tensor, key: str, held: Held, config: VL2Config, noise: _Noise) -> None:
    """Random values or scales that stand for weights of the usual spread."""
    spread = standard_deviation(key.rpartition(".")[0], torch.Size(held.shape), config)
    if not key.endswith(".scale"):
        noise.fill(tensor, FLOAT8_SPREAD if held.kind == "float8" else None)
    elif held.kind != "int4":
        tensor.fill_(spread / (INT8_SPREAD if held.kind == "int8" else FLOAT8_SPREAD))
    else:
        step = spread / INT4_SPREAD
        tensor[..., 0], tensor[..., 1] = step, step / 2  # the mean of a nibble - 8 is -0.5


def _norm_weights(model: nn.Module) -> set[str]:
    norms = ("LayerNorm", "RMSNorm", "LayerNorm2d")
    found = model.named_modules()
    return {f"{name}.weight" for name, module in found if type(module).__name__ in norms}
