"""Products with int8 weights that are packed for CPUs with AMX: the fast twin of ops/quant.py.

`torch._int_mm` brings row-major weights into the order of AMX's tiles at every call. Here oneDNN
does it once, and one packed copy serves one row as well as many. Numbers are bit for bit those of
the plain layers (`int8_linear`, `int8_expert_mlp`), which are the `_ref` twins: integer products
are exact, and every float operation has the same operands in the same order. Matrices that read
the same activations are packed as one, so that one product and one rounding serve them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor

from vl2.logs import get_logger
from vl2.ops.moe import Routing, sort_by_expert
from vl2.ops.quant import Int8Weight

log = get_logger(__name__)

TILE_ROWS = 16
"""Rows of an AMX tile: fewer cost as much, and each new number of rows costs oneDNN a millisecond
once, so that activations are padded to a multiple."""
FEW_ROWS = 128
"""Rows up to which a copy of their absolute values stays in the cache."""
GROUP_ROWS = 256
"""Rows that go through a layer at a time where there are many: a few megabytes between steps."""
ONE_ROW_WIDTH = 512
"""Width from which a single row needs no padding: oneDNN leaves AMX for one row of 256 or less."""


class PackedWeight(NamedTuple):
    """An int8 matrix [out, in] in oneDNN's own order; only `unpack` can read its numbers."""

    values: Tensor  # opaque
    scale: Tensor  # float32 [out]
    zero: Tensor  # int32 [out], all 0: oneDNN asks for it

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.scale), self.values.shape[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        """Opaque tensors cannot be copied, so they are packed anew."""
        return pack(unpack(self))


@cache
def has_packed_int8() -> bool:
    """Whether this CPU multiplies packed int8 weights with AMX, exactly: found by a trial.

    Without AMX the packed order depends on the number of rows, and a wrong guess costs a new
    packing at every call. Then the plain layers are the fast ones.
    """
    if not (torch.cpu._is_amx_tile_supported() and torch.backends.mkldnn.is_available()):
        return False
    values = torch.tensor([127, -127], dtype=torch.int8)[:, None].repeat(1, 640)
    product = packed_product(values, pack(Int8Weight(values, torch.ones(2))))
    most = float(127 * 127 * 640)
    exact = product.tolist() == [[most, -most], [-most, most]]
    if not exact:
        log.warning("packed int8 products are not exact on this CPU: weights stay as they are")
    return exact


def pack(*parts: Int8Weight) -> PackedWeight:
    """The matrices, all of one width, one below the other as one packed matrix."""
    values = parts[0].values if len(parts) == 1 else torch.cat([part.values for part in parts])
    scale = torch.cat([part.scale for part in parts])
    # The packing reads memory in order, whatever the strides say.
    packed = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
    return PackedWeight(packed, scale, _zeros(len(scale)))


def unpack(weight: PackedWeight) -> Int8Weight:
    """The same numbers, row-major."""
    return Int8Weight(weight.values.to_dense().t().contiguous(), weight.scale.clone())


@cache
def _zeros(count: int) -> Int[Tensor, " o"]:
    """Zero points, shared by all matrices of a size."""
    return torch.zeros(count, dtype=torch.int32)


def packed_product(steps: Int8[Tensor, "m i"], weight: PackedWeight) -> Float[Tensor, "m o"]:
    """Return steps @ weight.T in float32, still without the scale of the activations."""
    return torch.ops.onednn.qlinear_pointwise.default(
        steps, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], ""
    )


def quantize_rows(
    x: Float[Tensor, "n i"],
) -> tuple[Int8[Tensor, "m i"], Float[Tensor, "n 1"]]:
    """As `quantize_int8`, with the m - n rows behind them that AMX wants, which hold anything.

    Raises:
        ValueError: x is part of a graph; rounding would cut it silently.
    """
    steps, scale = _rounded(x)
    rows = padded_rows(*x.shape)
    if rows == len(x):
        return steps.to(torch.int8), scale
    out = steps.new_empty((rows, x.shape[1]), dtype=torch.int8)
    out[: len(x)].copy_(steps)
    return out, scale


def _rounded(x: Float[Tensor, "n i"]) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n 1"]]:
    """Whole steps between +-127, still as floats, and the size of a step of each row."""
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("packed layers pass no gradients: unpack_model the model, then train it")
    x = x.float()
    scale = _largest(x).div_(127).clamp_min_(1e-30)
    return (x / scale).round_(), scale


def _largest(x: Float[Tensor, "n i"]) -> Float[Tensor, "n 1"]:
    """Largest absolute value of each row: for many rows without a copy of them.

    Both ways are many times faster than `vector_norm`, which is not vectorised along a row.
    """
    if len(x) <= FEW_ROWS:
        return x.abs().amax(-1, keepdim=True)
    return torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())


def padded_rows(count: int, width: int) -> int:
    """Rows to multiply where `count` are wanted."""
    if count == 1 and width >= ONE_ROW_WIDTH:
        return 1
    return -(-count // TILE_ROWS) * TILE_ROWS


def packed_linear(
    x: Float[Tensor, "*lead i"], weight: PackedWeight, bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*lead o"]:
    """As `int8_linear`: x @ weight.T + bias with x quantised per token, in the dtype of x."""
    rows = x.reshape(-1, x.shape[-1])
    out = _by_rows(rows, lambda part: _linear(part, weight, bias), len(weight.scale))
    return out.view(*x.shape[:-1], out.shape[1])


def packed_gelu_mlp(
    x: Float[Tensor, "*lead h"],
    fc1: tuple[PackedWeight, Tensor | None],
    fc2: tuple[PackedWeight, Tensor | None],
) -> Float[Tensor, "*lead h"]:
    """As two `int8_linear` with a tanh-approximated GELU between them; weights with their biases.

    Some rows go all the way before the next ones start.
    """

    def run(part: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
        inner = _linear(part, *fc1).to(x.dtype)
        return _linear(F.gelu(inner, approximate="tanh"), *fc2)

    return _by_rows(x.reshape(-1, x.shape[-1]), run, len(fc2[0].scale)).view(x.shape)


def _by_rows(
    rows: Float[Tensor, "n i"], run: Callable[[Tensor], Tensor], width: int
) -> Float[Tensor, "n {width}"]:
    """Apply a function of rows to some of them at a time, so that its steps meet in the cache."""
    if len(rows) <= 2 * GROUP_ROWS:
        return run(rows).to(rows.dtype)
    out = rows.new_empty((len(rows), width))
    for part, place in zip(rows.split(GROUP_ROWS), out.split(GROUP_ROWS), strict=True):
        place.copy_(run(part))
    return out


def _linear(
    rows: Float[Tensor, "n i"], weight: PackedWeight, bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "n o"]:
    """The product in float32 of rows that are quantised on the way."""
    steps, scale = quantize_rows(rows)
    out = packed_product(steps, weight)[: len(rows)].mul_(scale)
    return out if bias is None else out.add_(bias)


def packed_swiglu(
    x: Float[Tensor, "*lead h"], gate_up: PackedWeight, down: PackedWeight
) -> Float[Tensor, "*lead h"]:
    """As three `int8_linear`: down(silu(gate x) * up x); gate stands above up in `gate_up`."""
    both = packed_linear(x.reshape(-1, x.shape[-1]), gate_up)
    return packed_linear(_gated(both), down).view(x.shape)


def _gated(both: Float[Tensor, "n two_i"]) -> Float[Tensor, "n i"]:
    """Return silu(gate) * up.

    The copy of gate lets silu meet the same vectors as in a matrix of its own: what is left over at
    the end of a row goes through another exponential, which may differ in the last bit.
    """
    gate, up = both.chunk(2, dim=1)
    return F.silu(gate.contiguous()).mul_(up)


def packed_expert_mlp(
    x: Float[Tensor, "n h"],
    routing: Routing,
    gate_up: Sequence[PackedWeight],
    down: Sequence[PackedWeight],
) -> Float[Tensor, "n h"]:
    """As `int8_expert_mlp`, with gate and up of an expert packed as one.

    Some experts at a time, so that what is between two products stays in the cache. Their width is
    a multiple of 32 in every released model; where it is not, hidden numbers may differ in a last
    bit (`_gated` says why), which rounding to int8 hides but for a number between two steps.
    """
    steps, scale = quantize_rows(x)
    return _routed(steps, scale, routing, gate_up, down).to(x.dtype)


def packed_moe(
    x: Float[Tensor, "n h"],
    routing: Routing,
    experts: tuple[Sequence[PackedWeight], Sequence[PackedWeight]],
    shared: tuple[PackedWeight, PackedWeight],
) -> Float[Tensor, "n h"]:
    """Return `packed_expert_mlp` + `packed_swiglu` of the shared experts, with x quantised once.

    Args:
        x: activations.
        routing: of these tokens.
        experts: gate above up, and down, of every routed expert.
        shared: the same of the shared experts, which are one MLP.
    """
    steps, scale = quantize_rows(x)
    routed = _routed(steps, scale, routing, *experts).to(x.dtype)
    both = packed_product(steps, shared[0])[: len(x)].mul_(scale).to(x.dtype)
    return routed.add_(packed_linear(_gated(both), shared[1]))


def _routed(
    steps: Int8[Tensor, "m h"],
    scale: Float[Tensor, "n 1"],
    routing: Routing,
    gate_up: Sequence[PackedWeight],
    down: Sequence[PackedWeight],
) -> Float[Tensor, "n h"]:
    """Weighted float32 sum of each token's experts, over k in a fixed order."""
    if len(scale) == 1:
        return _routed_token(steps, scale, routing, gate_up, down)
    tokens, k = routing.experts.shape
    order, counts = sort_by_expert(routing.experts, len(down))
    token, weights = order // k, routing.weights.flatten()[order, None]
    out = weights.new_empty((tokens * k, steps.shape[1]))
    start = 0
    for chosen, sizes in _groups(counts.tolist()):
        rows = slice(start, start + sum(sizes))
        parts = _padded_parts(steps[token[rows]], sizes)
        matrices = [gate_up[e] for e in chosen], [down[e] for e in chosen]
        part = _swiglus(parts, scale[token[rows]], sizes, *matrices)
        out[order[rows]] = part.mul_(weights[rows])
        start = rows.stop
    return out.view(tokens, k, -1).sum(dim=1)


def _routed_token(
    steps: Int8[Tensor, "m h"],
    scale: Float[Tensor, "1 1"],
    routing: Routing,
    gate_up: Sequence[PackedWeight],
    down: Sequence[PackedWeight],
) -> Float[Tensor, "1 h"]:
    """A token's experts in the order of its choice: nothing to sort."""
    chosen = routing.experts[0].tolist()
    parts, sizes = [steps] * len(chosen), [1] * len(chosen)
    out = _swiglus(parts, scale, sizes, [gate_up[e] for e in chosen], [down[e] for e in chosen])
    return out[None].mul_(routing.weights[..., None]).sum(dim=1)


def _groups(counts: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Experts that have tokens and how many, as many experts at a time as fill the cache."""
    chosen, rows = [], 0
    for expert, count in enumerate(counts):
        if count:
            chosen.append(expert)
            rows += count
        if chosen and (rows >= GROUP_ROWS or expert == len(counts) - 1):
            yield chosen, [counts[e] for e in chosen]
            chosen, rows = [], 0


def _swiglus(
    parts: Sequence[Int8[Tensor, "_ h"]],
    scale: Float[Tensor, "s 1"],
    sizes: list[int],
    gate_up: Sequence[PackedWeight],
    down: Sequence[PackedWeight],
) -> Float[Tensor, "m h"]:
    """The rows of each part, of which the first `sizes` count, through the part's expert."""
    steps, scale = _rounded(_gated(_products(parts, gate_up, sizes).mul_(scale)))
    return _products(_padded_parts(steps.to(torch.int8), sizes), down, sizes).mul_(scale)


def _padded_parts(steps: Int8[Tensor, "m i"], sizes: list[int]) -> Sequence[Int8[Tensor, "_ i"]]:
    """The rows of each expert, each followed by the rows that AMX wants."""
    rows = [padded_rows(size, steps.shape[1]) for size in sizes]
    if rows == sizes:
        return steps.split(sizes)
    parts = steps.new_empty((sum(rows), steps.shape[1])).split(rows)
    for whole, part in zip(parts, steps.split(sizes), strict=True):
        whole[: len(part)].copy_(part)
    return parts


def _products(
    parts: Sequence[Int8[Tensor, "_ i"]], weights: Sequence[PackedWeight], sizes: list[int]
) -> Float[Tensor, "m o"]:
    """Each part times its matrix, without the padding."""
    outs = [packed_product(part, weight) for part, weight in zip(parts, weights, strict=True)]
    return torch.cat([out[:size] for out, size in zip(outs, sizes, strict=True)])
