"""Memory of one rank in training, by part: formulas, not measurements.

Bytes per number: b of weights and residual stream (`init.dtype`), p of what products give (2 in
bfloat16 or under autocast, else 4). A parameter of shape [n, ...] lies on its ranks in parts of
ceil(n / ranks) rows. A stack [n, m, ...], of n = E / expert experts, is cut along m instead if the
ranks divide m and not n (`parallel/fsdp.py`). For sequences of T tokens, R of them per forward
pass, hidden size H, h heads of width d (values v), k experts of width I per token, a shared MLP or
dense layer of width S, patches of width W with an MLP of width M:

    weights      own part * b; adapters are float32. What a run holds in int8 or int4 lies whole on
                 its rank, with scales, and is neither gathered nor cast; floats of it are there 32
                 MiB at a time, which the runtime covers
    gradients    the same of what trains
    moments      twice that with AdamW, in at most the width of `optim.moments`; once for the
                 matrices that Muon moves
    gathered     what lies around the blocks, whole; the largest block twice, for the one that runs
                 and the next, and what is cut along m once more while it is put in order. Going
                 backward also the gradient of what lies around, and that of the largest block,
                 once as made and once as sent. Experts travel in p bytes, their gradients in 4
                 under autocast. A pipeline's stage stays gathered to the end of the step, and so
                 do its gradients, in the width in which they are sent
    casts        under autocast: 2 bytes per number of every dense matrix, to the end of the forward
                 pass if layers are recomputed whole (then only of what trains), else of the
                 backward pass; without other ranks also of the experts, or of one layer's
    activations  R T * kept by each layer * micro batches in flight, and going backward one layer's
                 without recomputing and half of it again for gradients, going forward that half
                 alone; layers in front of all that trains keep nothing
        kept, none        H (2b + 12 + 2p) + p (4 h d + h v + T) + rank (8 + p)        attention
                          + k (H p + 4 I p + 4 H) + 4 S p        MLP; int8 experts: 4 I 4
        kept, selective   H b + p (2 h d + h v + 2 H + key and value projections)
                          + p (k (2 I + H) + 2 S + H)
        kept, full        H b
    vision       the same over patches: 2 W b + p (6 W + 2 M), or W b if recomputed; of as many
                 tiles as fit into the tokens of the rows
    exchange     with expert parallelism: 4 R T k H p, copies of tokens sent and received
    logits       1024 * vocabulary * 12, and 4 more under bfloat16: one chunk of the loss
    runtime      4 GiB for CUDA, NCCL and workspaces

Meant is the fuller of the forward and the backward pass. Without recomputing, kept bytes agree with
what autograd holds for small models within a tenth (tests/unit/test_memory.py). Fused attention is
assumed; the allocator's waste is not counted, nor the wide copies of bfloat16 moments in the
optimiser's step (`train/adamw.py`): activations and what was gathered, which were more, are gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vl2.config import LanguageConfig, VisionConfig, VL2Config
from vl2.model.quantized import default_scheme, held_bytes, held_weights, quantizable
from vl2.model.vl2 import VL2Model
from vl2.parallel.config import Layout
from vl2.parallel.pipeline_stage import arrange_unit, head_unit
from vl2.train.config import TrainConfig
from vl2.train.flops import LOOKED_UP, UNUSED, place_of
from vl2.train.optim import OUTER
from vl2.train.origin import FLOAT_IN_TRAINING

RUNTIME = 4 * 2**30
LOGITS_CHUNK = 1024
SINGLE = Layout(1, 1, 1, 1)

WIDTHS = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """Bytes of the numbers of a run, see the module."""

    weights: int
    products: int
    autocast: bool
    moments: int = WIDTHS["float32"]  # at most; never wider than the parameter
    wide_experts: bool = False  # experts in int8 give float32, whatever they are given

    @classmethod
    def of(cls, config: TrainConfig) -> Widths:
        """The widths that a configuration asks for."""
        weights = WIDTHS[config.init.dtype]
        autocast = config.compute.autocast and weights == WIDTHS["float32"]
        scheme = None if config.lora is None else config.lora.quantization
        # Quantised layers give what they are given: autocast does not know their products.
        products = WIDTHS["bfloat16"] if autocast and scheme is None else weights
        return cls(
            weights=weights,
            products=products,
            autocast=autocast,
            moments=WIDTHS[config.optim.moments],
            wide_experts=scheme == "int8",
        )


class UnitBytes(NamedTuple):
    """Bytes that the parameters of one unit, or of several, take on a rank."""

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    whole: int = 0  # gathered
    turned: int = 0  # of these, what is cut along the second dimension
    made: int = 0  # gradients of the whole, as the backward pass makes them
    kept: int = 0  # the same in the width in which they are sent
    dense_in: int = 0  # travels when the dense parameters are gathered
    dense_out: int = 0  # travels when their gradients are summed
    experts_in: int = 0
    experts_out: int = 0
    casts: int = 0  # bfloat16 copies of dense matrices that train
    frozen_casts: int = 0
    expert_casts: int = 0


def unit_bytes(
    model: VL2Model, config: TrainConfig, layout: Layout = SINGLE
) -> tuple[UnitBytes, ...]:
    """Bytes of the parameters of each unit on the rank that has most of them.

    Args:
        model: whole, on any device, what trains in it marked. What is quantised in it counts as it
            is, a float base as `lora.quantization` will hold it.
        config: gives dtypes and optimiser.
        layout: only `shard` and `expert` count.
    """
    found: list[list[UnitBytes]] = [[] for _ in range(head_unit(model.config) + 1)]
    muon = config.optim.optimizer == "muon"
    held = _held(model, config)
    for name, size in held.items():
        found[place_of(name, model.config)[0]].append(UnitBytes(weights=size))
    for name, parameter in model.named_parameters():
        if name in held:
            continue
        inner = muon and parameter.ndim in (2, 3) and not any(part in name for part in OUTER)
        unit = place_of(name, model.config)[0]
        found[unit].append(
            _parameter_bytes(
                name,
                tuple(parameter.shape),
                layout,
                Widths.of(config),
                moments=(1 if inner else 2) * parameter.requires_grad,
            )
        )
    return tuple(total(items) for items in found)


def _held(model: VL2Model, config: TrainConfig) -> dict[str, int]:
    """Bytes of the weights that are quantised, or will be, by name."""
    found = {
        name: held_bytes(weight.kind, weight.shape) for name, weight in held_weights(model).items()
    }
    scheme = None if config.lora is None else config.lora.quantization
    if scheme is None:
        return found
    for path, module in quantizable(model):
        plain = path.removesuffix(".base")
        own = default_scheme(plain, module, scheme, kept=FLOAT_IN_TRAINING)
        for name, weight in module.named_parameters(recurse=False):
            if own is not None and name != "bias":
                found[f"{path}.{name}"] = held_bytes(own, tuple(weight.shape))
    return found


def total(items: Iterable[UnitBytes]) -> UnitBytes:
    """Bytes of all of them."""
    return UnitBytes(*map(sum, zip(UnitBytes(), *items, strict=True)))


def rank_memory(
    parameters: Sequence[UnitBytes],
    model: VL2Config,
    config: TrainConfig,
    layout: Layout = SINGLE,
    *,
    units: range | None = None,
    in_flight: int = 1,
) -> dict[str, int]:
    """Bytes of one rank by part.

    Args:
        parameters: of each unit of the whole model, under this layout.
        model: its configuration.
        config: of the run.
        layout: of the ranks.
        units: of this rank's stage; None is the whole model.
        in_flight: micro batches whose activations the stage keeps at a time.
    """
    units = units or range(len(parameters))
    learning = range(max(units.start, lowest_unit(parameters)), units.stop)
    own = total(parameters[unit] for unit in units)
    passes = [
        {
            "gathered": _gathered(parameters, model, layout, units, backward=backward),
            "casts": _casts(parameters, config, layout, units, backward=backward),
            **_activations(model, config, layout, learning, in_flight, backward=backward),
        }
        for backward in (False, True)
    ]
    fuller = max(passes, key=lambda parts: sum(parts.values()))
    state = {"weights": own.weights, "gradients": own.gradients, "moments": own.moments}
    return {**state, **fuller, "runtime": RUNTIME}


def lowest_unit(parameters: Sequence[UnitBytes]) -> int:
    """The first unit in which something trains; gradients pass through all units after it."""
    training = (unit for unit, item in enumerate(parameters) if item.gradients)
    return next(training, len(parameters))


def is_block(unit: int, model: VL2Config) -> bool:
    """Whether a unit is a block or a layer, which FSDP gathers by itself."""
    return unit not in (0, arrange_unit(model), head_unit(model))


def kept_by_layer(c: LanguageConfig, layer: int, how: str, length: int, widths: Widths) -> int:
    """Bytes per token that a layer keeps for its backward pass.

    Args:
        c: of the language model.
        layer: from 0; the first ones may have no experts.
        how: none, selective or full recomputing.
        length: of the sequence: the mask has a column for each token.
        widths: of the run.
    """
    hidden, b, p = c.hidden_size, widths.weights, widths.products
    if how == "full":
        return hidden * b
    value, rank = (c.v_head_dim, c.kv_lora_rank or 0) if c.use_mla else (c.head_dim, 0)
    heads, keys = c.num_attention_heads, c.num_attention_heads * c.head_dim
    moe = c.is_moe_layer(layer)
    k = (c.num_experts_per_tok or 0) if moe else 0
    inner = c.moe_intermediate_size
    fixed = inner * (c.n_shared_experts or 0) if moe else c.intermediate_size
    if how == "selective":
        projections = c.cache_width + (heads * (c.qk_nope_head_dim + value) if c.use_mla else 0)
        attention = 2 * keys + heads * value + hidden + projections
        return hidden * b + p * (attention + k * (2 * inner + hidden) + 2 * fixed + hidden)
    attention = p * (4 * keys + heads * value + length) + rank * (8 + p)
    wide = WIDTHS["float32"] if widths.wide_experts else p
    experts = k * (p * hidden + wide * 4 * inner + 4 * hidden)
    return hidden * (2 * b + 12 + 2 * p) + attention + experts + 4 * fixed * p


def kept_by_block(c: VisionConfig, how: str, widths: Widths) -> int:
    """Bytes per patch that a block of the tower keeps for its backward pass."""
    b, p = widths.weights, widths.products
    if how == "full":
        return c.width * b
    if how == "selective":
        return c.width * b + p * (6 * c.width + c.mlp_hidden)
    return 2 * c.width * b + p * (6 * c.width + 2 * c.mlp_hidden)


def _parameter_bytes(
    name: str, shape: tuple[int, ...], layout: Layout, widths: Widths, *, moments: int
) -> UnitBytes:
    """Bytes of one parameter; `moments` is 0 if it does not train."""
    adapter = ".lora_" in name
    expert = ".experts." in name and not adapter  # adapters are sharded with their layer
    width = WIDTHS["float32"] if adapter else widths.weights
    dealt = (shape[0] // layout.expert, *shape[1:]) if expert else shape
    ranks = layout.shard * (1 if expert else layout.expert)
    turned = len(dealt) == 3 and dealt[0] % ranks > 0 and dealt[1] % ranks == 0
    whole = math.prod(dealt)
    own = whole // ranks if turned else -(-dealt[0] // ranks) * math.prod(dealt[1:])
    travels = own * ranks  # every rank sends equally many
    gathered = min(width, widths.products) if expert else width
    trains = moments > 0
    multiplied = len(shape) > 1 and name not in LOOKED_UP and not name.startswith(UNUSED)
    cast = 2 * whole * (widths.autocast and multiplied)
    return UnitBytes(
        weights=own * width,
        gradients=own * width * trains,
        moments=own * min(width, widths.moments) * moments,
        whole=whole * gathered,
        turned=whole * gathered * turned,
        made=whole * gathered * trains,
        kept=whole * width * trains,
        dense_in=travels * gathered * (not expert),
        dense_out=travels * width * trains * (not expert),
        experts_in=travels * gathered * expert,
        experts_out=travels * width * trains * expert,
        casts=cast * trains * (not expert),
        frozen_casts=cast * (not trains) * (not expert),
        expert_casts=cast * expert,
    )


def _gathered(
    parameters: Sequence[UnitBytes],
    model: VL2Config,
    layout: Layout,
    units: range,
    *,
    backward: bool,
) -> int:
    """Whole parameters and gradients, see the module."""
    if layout.world == 1:
        return 0
    blocks = [parameters[unit] for unit in units if is_block(unit, model)]
    around = total(parameters[unit] for unit in units if not is_block(unit, model))
    if layout.pipeline > 1:
        own = total(parameters[unit] for unit in units)
        sent = max((item.dense_out + item.experts_out for item in blocks), default=0)
        return own.whole + own.kept + max(sent, around.dense_out) * backward
    largest = max((item.whole for item in blocks), default=0)
    if not backward:
        return around.whole + 2 * largest + max((item.turned for item in blocks), default=0)
    # the next block is put in order when the last one's gradient is on its way
    beside = (max(b.made, b.turned) + b.dense_out + b.experts_out for b in blocks)
    return around.whole + 2 * largest + around.made + max(beside, default=0)


def _casts(
    parameters: Sequence[UnitBytes],
    config: TrainConfig,
    layout: Layout,
    units: range,
    *,
    backward: bool,
) -> int:
    """Bytes of the bfloat16 copies that autocast makes of float32 matrices."""
    own = [parameters[unit] for unit in units]
    alone = layout.world == 1
    if config.compute.recompute != "full":
        everything = total(own)
        return everything.casts + everything.frozen_casts + everything.expert_casts * alone
    of_one = max((item.expert_casts for item in own), default=0) * alone
    dense = [item.casts for item in own]
    return of_one + (max(dense, default=0) if backward else sum(dense))


def _activations(
    model: VL2Config,
    config: TrainConfig,
    layout: Layout,
    units: range,
    in_flight: int,
    *,
    backward: bool,
) -> dict[str, int]:
    """Bytes of activations, vision, exchange and logits of the units that keep any."""
    c, data, widths = model.language_config, config.data, Widths.of(config)
    tokens = data.micro_batch * data.sequence_length
    first = arrange_unit(model) + 1
    layers = [unit - first for unit in units if first <= unit < head_unit(model)]
    blocks = [unit for unit in units if 1 <= unit < first - 1]
    tiles = data.micro_batch * most_tiles(model, data.sequence_length)
    patches = tiles * model.vision_config.patches_per_side**2

    def layer(number: int, how: str) -> int:
        return kept_by_layer(c, number, how, data.sequence_length, widths)

    def block(how: str) -> int:
        return kept_by_block(model.vision_config, how, widths)

    def running(kept: Iterable[int]) -> int:
        return max(kept, default=0) * (3 if backward else 1) // 2

    compute = config.compute
    kept = sum(layer(number, compute.recompute) for number in layers)
    kept_vision = len(blocks) * block(compute.recompute_vision)
    routed = layout.expert > 1 and any(map(c.is_moe_layer, layers))
    chosen = (c.num_experts_per_tok or 0) if routed else 0
    logit = 12 + (4 if widths.products == WIDTHS["bfloat16"] else 0)
    return {
        "activations": tokens * (in_flight * kept + running(layer(n, "none") for n in layers)),
        "vision": patches * (in_flight * kept_vision + running(block("none") for _ in blocks)),
        "exchange": 4 * tokens * chosen * c.hidden_size * widths.products,
        "logits": LOGITS_CHUNK * c.vocab_size * logit if head_unit(model) in units else 0,
    }


def most_tiles(model: VL2Config, length: int) -> int:
    """Tiles whose tokens fill a sequence; at least one, because text alone encodes a blank one."""
    side = model.tokens_per_side
    return max(length // (side * (side + 1)), 1)
