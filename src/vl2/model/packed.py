"""Packed twins of the int8 layers, and how a quantised model gets them and loses them again.

For inference on CPUs with AMX alone: no gradient passes, and nothing can be loaded into a packed
layer. What is saved is the plain quantised model, key by key: `state_dict` unpacks.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.logs import get_logger
from vl2.model import siglip
from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.moe import Mlp, MoE
from vl2.model.quantized import QuantExperts, QuantLinear, QuantWeight
from vl2.ops.moe import Routing
from vl2.ops.packed import (
    PackedWeight,
    has_packed_int8,
    pack,
    packed_expert_mlp,
    packed_gelu_mlp,
    packed_linear,
    packed_moe,
    packed_swiglu,
    unpack,
)
from vl2.ops.quant import Int8Weight

log = get_logger(__name__)

MLP = ("gate_proj", "up_proj", "down_proj")
LEAST_NUMBERS = 2**18
"""Numbers of a matrix from which packing pays: a call into oneDNN takes 20 microseconds, which is
what the plain product of a smaller one takes. Those of the released models are 4 times larger."""


class PackedMatrices(nn.Module):
    """Packed weights of a layer; no buffers, because PyTorch can neither move nor cast them."""

    def __init__(self, weights: Sequence[PackedWeight]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedMatrices:
        """Casts of a model are about its floats, moves are refused."""
        device = fn(torch.empty(0)).device
        if device.type != "cpu":
            raise ValueError(f"packed weights cannot go to {device}: unpack_model the model first")
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuse: the numbers would have to be packed."""
        error_msgs.append(f"{prefix[:-1]} is packed: unpack_model the model, then load")


class PackedLinear(nn.Module):
    """A packed `QuantLinear`."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.matrix = PackedMatrices([pack(_int8(layer.weight))])
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Per token."""
        return packed_linear(x, self.matrix.weights[0], self.bias)

    def plain(self) -> QuantLinear:
        """The layer this was made from."""
        return _plain_linear(unpack(self.matrix.weights[0]), self.bias)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the plain layer."""
        return self.plain().state_dict(*args, **kwargs)


class PackedJoint(nn.Module):
    """Layers without biases that read the same input, as one matrix.

    What it holds is saved by its parts, which stand in the places of the layers.
    """

    def __init__(self, layers: Sequence[QuantLinear]) -> None:
        super().__init__()
        self.matrix = PackedMatrices([pack(*(_int8(layer.weight) for layer in layers))])
        self.sizes = [layer.out_features for layer in layers]

    def forward(self, x: Float[Tensor, "*lead i"]) -> tuple[Float[Tensor, "*lead _"], ...]:
        """The output of each layer."""
        return packed_linear(x, self.matrix.weights[0]).split(self.sizes, dim=-1)

    def parts(self) -> list[PackedRows]:
        """Modules for the places of the layers."""
        stops = itertools.accumulate(self.sizes)
        spans = [(stop - size, stop) for size, stop in zip(self.sizes, stops, strict=True)]
        return [PackedRows(self.matrix.weights[0], *span) for span in spans]


class PackedRows(nn.Module):
    """One layer of a joint matrix, which runs as a whole even when this layer alone is called."""

    def __init__(self, whole: PackedWeight, start: int, stop: int) -> None:
        super().__init__()
        self.whole, self.start, self.stop = whole, start, stop

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Per token."""
        return packed_linear(x, self.whole)[..., self.start : self.stop]

    def plain(self) -> QuantLinear:
        """The layer this was made from."""
        return _plain_linear(_rows(unpack(self.whole), self.start, self.stop), None)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the plain layer."""
        return self.plain().state_dict(*args, **kwargs)


class PackedMlp(nn.Module):
    """A packed `Mlp`: gate and up are one matrix."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        gate, up, down = (_int8(getattr(mlp, name).weight) for name in MLP)
        self.matrices = PackedMatrices((pack(gate, up), pack(down)))

    def forward(self, x: Float[Tensor, "*lead h"]) -> Float[Tensor, "*lead h"]:
        """Per token."""
        return packed_swiglu(x, *self.matrices.weights)

    def plain(self) -> Mlp:
        """The module this was made from."""
        gate_up, down = map(unpack, self.matrices.weights)
        hidden, inner = down.values.shape
        with torch.device("meta"):
            mlp = Mlp(hidden, inner)
        parts = _rows(gate_up, 0, inner), _rows(gate_up, inner, 2 * inner), down
        for name, weight in zip(MLP, parts, strict=True):
            setattr(mlp, name, _plain_linear(weight, None))
        return mlp

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the plain module."""
        return self.plain().state_dict(*args, **kwargs)


class PackedVisionMlp(nn.Module):
    """A packed `Mlp` of the vision tower, whose rows go through both layers some at a time."""

    def __init__(self, mlp: siglip.Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = (PackedLinear(_layer(mlp, name)) for name in ("fc1", "fc2"))

    def forward(self, x: Float[Tensor, "n p w"]) -> Float[Tensor, "n p w"]:
        """Per patch."""
        layers = ((layer.matrix.weights[0], layer.bias) for layer in (self.fc1, self.fc2))
        return packed_gelu_mlp(x, *layers)

    def plain(self) -> siglip.Mlp:
        """The module this was made from."""
        width, hidden = self.fc1.matrix.weights[0].shape[::-1]
        with torch.device("meta"):
            mlp = siglip.Mlp(width, hidden)
        mlp.set_submodule("fc1", self.fc1.plain())
        mlp.set_submodule("fc2", self.fc2.plain())
        return mlp


class PackedExperts(nn.Module):
    """Packed `QuantExperts`: gate and up of an expert are one matrix."""

    def __init__(self, experts: QuantExperts) -> None:
        super().__init__()
        gates, ups, downs = (_stack(getattr(experts, name)) for name in MLP)
        both = [pack(gate, up) for gate, up in zip(gates, ups, strict=True)]
        self.gate_up, self.down = PackedMatrices(both), PackedMatrices(list(map(pack, downs)))

    def forward(self, x: Float[Tensor, "n h"], routing: Routing) -> Float[Tensor, "n h"]:
        """Weighted sum over each token's experts."""
        return packed_expert_mlp(x, routing, self.gate_up.weights, self.down.weights)

    def plain(self) -> QuantExperts:
        """The module this was made from."""
        hidden, inner = self.down.weights[0].shape
        count = len(self.down.weights)
        experts = QuantExperts("int8", experts=count, hidden=hidden, inner=inner)
        gates, ups, downs = (_stack(getattr(experts, name)) for name in MLP)
        pairs = zip(self.gate_up.weights, self.down.weights, strict=True)
        for e, (gate_up, down) in enumerate(pairs):
            both = unpack(gate_up)
            _copy(gates[e], _rows(both, 0, inner))
            _copy(ups[e], _rows(both, inner, 2 * inner))
            _copy(downs[e], unpack(down))
        return experts

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the plain module."""
        return self.plain().state_dict(*args, **kwargs)


class PackedMoE(nn.Module):
    """Routed and shared experts as one step that quantises their input once.

    What it holds is saved by the modules that it was made of.
    """

    def __init__(self, experts: PackedExperts, shared: PackedMlp) -> None:
        super().__init__()
        self.experts = experts.gate_up.weights, experts.down.weights
        gate_up, down = shared.matrices.weights
        self.shared = gate_up, down

    def forward(self, x: Float[Tensor, "n h"], routing: Routing) -> Float[Tensor, "n h"]:
        """Sum of the chosen experts and the shared ones."""
        return packed_moe(x, routing, self.experts, self.shared)


PACKED = PackedLinear | PackedRows | PackedMlp | PackedVisionMlp | PackedExperts


def pack_model(model: nn.Module) -> None:
    """Pack the int8 layers of a model in place, one after the other; without AMX do nothing.

    At most one layer is held twice. Layers in floats or int4, and small ones, stay as they are.

    Raises:
        ValueError: the model has adapters, which packed layers know nothing of.
    """
    if not has_packed_int8():
        return
    adapted = next((name for name, _ in model.named_parameters() if ".lora_" in name), None)
    if adapted is not None:
        raise ValueError(f"the model has adapters ({adapted}): merge them, then pack")
    start = time.perf_counter()
    _replace(model, _packed)
    log.info("packed the int8 layers in %.1f s", time.perf_counter() - start)


def unpack_model(model: nn.Module) -> None:
    """Undo `pack_model`: the same bits in the same places, one layer after the other."""
    _replace(model, _unpacked)


def _replace(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `make` returns in the place of a child; where it returns None, look inside."""
    for name in [name for name, _ in module.named_children()]:
        child = module.get_submodule(name)
        made = make(child)
        if made is None:
            _replace(child, make)
        else:
            setattr(module, name, made.train(child.training))


def _packed(module: nn.Module) -> nn.Module | None:
    if isinstance(module, QuantLinear) and _fits(module):
        return PackedLinear(module)
    if isinstance(module, Mlp) and _fits(module):
        return PackedMlp(module)
    if isinstance(module, siglip.Mlp) and _fits(module):
        return PackedVisionMlp(module)
    if isinstance(module, QuantExperts) and _fits(module):
        return PackedExperts(module)
    if isinstance(module, MultiHeadAttention | LatentAttention):
        _join(module)
    if isinstance(module, MoE) and module.joint is None:
        _replace(module, _packed)
        experts, shared = module.experts, module.shared_experts
        if isinstance(experts, PackedExperts) and isinstance(shared, PackedMlp):
            module.joint = PackedMoE(experts, shared)
    return None


def _unpacked(module: nn.Module) -> nn.Module | None:
    if isinstance(module, PACKED):
        return module.plain()
    if isinstance(module, MultiHeadAttention | LatentAttention | MoE):
        module.joint = None
    return None


def _join(attention: MultiHeadAttention | LatentAttention) -> None:
    """Make one matrix of the projections that read the attention's input, if all are int8."""
    if isinstance(attention, MultiHeadAttention):
        names = ["q_proj", "k_proj", "v_proj"]
    else:
        low_rank = attention.config.q_lora_rank is not None
        names = ["q_a_proj" if low_rank else "q_proj", "kv_a_proj_with_mqa"]
    found = [attention.get_submodule(name) for name in names]
    layers = [layer for layer in found if isinstance(layer, QuantLinear) and _fits(layer)]
    if len(layers) < len(names) or any(layer.bias is not None for layer in layers):
        return
    attention.joint = PackedJoint(layers)
    for name, part in zip(names, attention.joint.parts(), strict=True):
        setattr(attention, name, part)


def _fits(module: nn.Module) -> bool:
    """Whether all of a module is held in int8, in matrices large enough that packing pays."""
    floats = any(isinstance(child, nn.Linear) for child in module.modules())
    weights = [child for child in module.modules() if isinstance(child, QuantWeight)]
    large = (math.prod(weight.shape[-2:]) >= LEAST_NUMBERS for weight in weights)
    int8 = bool(weights) and all(weight.scheme == "int8" for weight in weights)
    return int8 and not floats and all(large)


def _layer(module: nn.Module, name: str) -> QuantLinear:
    layer = module.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer


def _int8(weight: QuantWeight) -> Int8Weight:
    data = weight.data
    assert isinstance(data, Int8Weight)
    return data


def _stack(weight: QuantWeight) -> list[Int8Weight]:
    """Views of the matrices of all experts."""
    return [Int8Weight(*parts) for parts in zip(*_int8(weight), strict=True)]


def _rows(weight: Int8Weight, start: int, stop: int) -> Int8Weight:
    return Int8Weight(weight.values[start:stop], weight.scale[start:stop])


def _copy(target: Int8Weight, source: Int8Weight) -> None:
    target.values.copy_(source.values)
    target.scale.copy_(source.scale)


def _plain_linear(weight: Int8Weight, bias: nn.Parameter | None) -> QuantLinear:
    """A layer with these tensors; rows of a larger matrix are copied, so that it can go."""
    rows, width = weight.values.shape
    layer = QuantLinear("int8", width, rows, bias=False)
    _copy(_int8(layer.weight), weight)
    layer.bias = bias
    return layer
