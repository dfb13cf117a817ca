"""Time of a training step on many GPUs, on paper: formulas over facts and assumptions stated here.

Planned, not measured. For a layout of pipeline p x replicate r x shard s x expert e, whose ranks
stand in this order with e innermost, 8 to a node, the slowest stage of the pipeline takes for one
micro batch

    compute   sum over parts of operations (`train/flops.py`, recomputed ones among them)
              / (peak * EFFICIENCY), the peak of bfloat16 or, without autocast on float32 weights,
              of float32; times TILE_IMBALANCE for the tower if ranks have samples of their own,
              times EXPERT_IMBALANCE for the experts if they are dealt out
    between   what lies between products, written and read once per pass: 2 * kept bytes without
              recomputing (`train/memory.py`) * passes (1 forward, 1 again, 2 backward)
              / (bandwidth of memory * MEMORY_SHARE)
    launch    what LAUNCHES seconds per block and pass exceed compute and between
    exchange  expert parallelism: 2 k H p bytes per token and MoE layer forward, again, and
              backward, of which (e - 1) / e leave the rank; never hidden
    gather    FSDP: each block, each stack of experts and what lies around them is gathered going
              forward and again going backward (what lies around once), gradients are reduced and
              scattered for each micro batch. Only what exceeds compute and between shows, and at
              least a share of 1 / blocks: the first and the last
    send      pipeline: activations forward and their gradients back, to one neighbour

and the step (m + p - 1) times that for m micro batches, a bubble of (p - 1) / (m + p - 1), plus

    reduce    gradients summed over r copies, once per step: what of it the last micro batch does
              not hide. In a pipeline a stage is gathered once per micro batch, and all of its
              gradients travel once per step, hidden by nothing
    optimizer reads and writes its state; bfloat16 moments of float32 weights are widened for it

What FSDP copies in memory between its buffers and the parameters is not counted. It grows with what
is gathered, so it is least where experts are dealt out, and it doubles where stacks are cut along
their second dimension.

A collective over n ranks on N nodes, of B bytes when gathered, takes B (n - 1) / n / bandwidth
(twice that if summed everywhere) + (n - N) * HOP_INSIDE + (N - 1) * HOP_BETWEEN. The bandwidth is
NVLink's within a node, else that of the network cards of the ranks of the group that share a
node, at most NVLink's; both times LINK_SHARE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vl2.config import VL2Config
from vl2.parallel.config import Layout
from vl2.parallel.pipeline_stage import arrange_unit, head_unit
from vl2.train.config import TrainConfig
from vl2.train.flops import Work
from vl2.train.memory import (
    WIDTHS,
    UnitBytes,
    Widths,
    is_block,
    kept_by_block,
    kept_by_layer,
    total,
)

NODE = 8
"""GPUs that NVLink joins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """Facts of one GPU in a node of eight; bytes and operations per second."""

    name: str
    memory: float
    flops: float  # dense bfloat16
    flops_float32: float
    bandwidth: float  # of its memory
    nvlink: float  # in one direction
    network: float  # of its network card, in one direction


GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        name="A100 SXM 80 GB, DGX A100",
        memory=80e9,
        flops=312e12,
        flops_float32=19.5e12,
        bandwidth=2.039e12,
        nvlink=300e9,
        network=25e9,
    ),
    "h100": Gpu(
        name="H100 SXM 80 GB, DGX H100",
        memory=80e9,
        flops=989e12,
        flops_float32=66.9e12,
        bandwidth=3.35e12,
        nvlink=450e9,
        network=50e9,
    ),
    "h200": Gpu(
        name="H200 SXM 141 GB, DGX H200",
        memory=141e9,
        flops=989e12,
        flops_float32=66.9e12,
        bandwidth=4.8e12,
        nvlink=450e9,
        network=50e9,
    ),
}
"""NVIDIA's data sheets of the GPUs, and of the DGX systems for the network: one card of 200 Gb/s
(A100) or 400 Gb/s per GPU. A card shows about 6 % more memory than its name says; that is left to
the allocator."""

EFFICIENCY: dict[str, float] = {
    "vision": 0.45,
    "projector": 0.45,
    "language": 0.45,
    "experts": 0.35,
    "attention": 0.30,
    "head": 0.55,
}
"""Share of the dense bfloat16 peak that each part's products reach. Assumed: large products alone
reach 0.8 (790 of 989 TFLOP/s on an H200), products of 1152 to 2560 columns less, grouped ones over
tens of experts still less, attention under a mask least."""

MEMORY_SHARE = 0.9  # of the memory's bandwidth that is reached: 4.3 of 4.8 TB/s on an H200
LINK_SHARE = 0.8  # of a link's bandwidth that a collective reaches; assumed
HOP_INSIDE, HOP_BETWEEN = 3.4e-6, 14e-6  # seconds per hop of a ring, NCCL 2.2x's tuning table
LAUNCHES = 5e-4  # seconds that the host takes to start a block's kernels once; assumed
TILE_IMBALANCE = 1.1  # tiles of the fullest rank / mean
EXPERT_IMBALANCE = 1.1  # tokens of the busiest rank's experts / mean; assumed

COMPUTING = ("compute", "between", "launch", "exchange", "gather", "send")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLink:
    """The connection between the ranks of one group."""

    ranks: int
    nodes: int
    bandwidth: float  # of one rank

    @classmethod
    def of(cls, gpu: Gpu, world: int, ranks: int, stride: int = 1) -> GroupLink:
        """The link between `ranks` ranks of a world, whose numbers are `stride` apart."""
        beside = neighbours(world, ranks, stride)
        nodes = -(-ranks // beside)
        bandwidth = gpu.nvlink if nodes == 1 else min(gpu.nvlink, beside * gpu.network)
        return cls(ranks=ranks, nodes=nodes, bandwidth=bandwidth * LINK_SHARE)

    def gather(self, size: float) -> float:
        """Seconds until every rank has `size` bytes, or each has its part of their sum."""
        if self.ranks == 1 or not size:
            return 0.0
        hops = (self.ranks - self.nodes) * HOP_INSIDE + (self.nodes - 1) * HOP_BETWEEN
        return size * (self.ranks - 1) / self.ranks / self.bandwidth + hops

    def sum(self, size: float) -> float:
        """Seconds until every rank has the sum of `size` bytes of each."""
        return 2 * self.gather(size)


def neighbours(world: int, ranks: int, stride: int = 1) -> int:
    """How many ranks of a group share a node, in the group that has it worst."""
    if world <= NODE:
        return ranks
    return min(ranks, max(math.gcd(ranks * stride, NODE) // stride, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything of a run that does not depend on the layout."""

    config: TrainConfig
    model: VL2Config
    work: tuple[Work, ...]
    sizes: Mapping[str, float]  # of one micro batch of one rank
    lowest: int  # the first unit in which something trains
    gpu: Gpu

    @property
    def tokens(self) -> int:
        """Tokens of one micro batch of one rank."""
        return self.config.data.micro_batch * self.config.data.sequence_length

    def passes(self, unit: int) -> tuple[int, int, int]:
        """How often a unit is run: forward, recomputed, and backward."""
        compute, vision = self.config.compute, unit < arrange_unit(self.model)
        how = compute.recompute_vision if vision else compute.recompute
        learns = int(unit >= self.lowest)
        return 1, learns * (how != "none"), learns


def micro_batch_seconds(
    run: Run, layout: Layout, parameters: Sequence[UnitBytes], units: range
) -> dict[str, float]:
    """Seconds of one micro batch in one stage, by what they are spent on."""
    compute, between = _compute(run, layout, units), _between(run, units)
    gather, once = _gather(run, layout, parameters, units)
    blocks = [unit for unit in units if is_block(unit, run.model)]
    started = LAUNCHES * sum(sum(run.passes(unit)) for unit in blocks)

    def shown(seconds: float) -> float:
        return max(seconds - compute - between, seconds / max(len(blocks), 1))

    return {
        "compute": compute,
        "between": between,
        "launch": max(started - compute - between, 0.0),
        "exchange": _exchange(run, layout, units),
        "gather": shown(gather),
        "send": _send(run, layout, units),
        "once": once if layout.pipeline > 1 else shown(gather + once) - shown(gather),
    }


def step_seconds(
    run: Run,
    layout: Layout,
    parameters: Sequence[UnitBytes],
    stages: Sequence[range],
    micro_batches: int,
) -> dict[str, float]:
    """Seconds of an optimiser step by what they are spent on; their sum is the step.

    Args:
        run: what is run.
        layout: of the ranks.
        parameters: bytes of each unit under this layout.
        stages: units of each stage of the pipeline.
        micro_batches: of a rank in a step.
    """
    slowest = max(
        (micro_batch_seconds(run, layout, parameters, units) for units in stages),
        key=lambda parts: sum(parts[name] for name in COMPUTING),
    )
    found = {name: slowest[name] * micro_batches for name in COMPUTING}
    one = sum(slowest[name] for name in COMPUTING)
    states = [total(parameters[unit] for unit in units) for units in stages]
    own = max(_state_bytes(run.config, state) for state in states)
    return {
        **found,
        "bubble": one * (layout.pipeline - 1),
        "reduce": slowest["once"],
        "optimizer": own / (run.gpu.bandwidth * MEMORY_SHARE),
    }


def exchanged_bytes(run: Run, layout: Layout, units: range) -> float:
    """Bytes that a rank sends to other ranks' experts for one micro batch."""
    c = run.model.language_config
    first = arrange_unit(run.model) + 1
    layers = [u for u in units if first <= u < head_unit(run.model) and c.is_moe_layer(u - first)]
    ways = sum(sum(run.passes(unit)) for unit in layers)
    copies = (c.num_experts_per_tok or 0) * run.tokens
    sent = 2 * copies * c.hidden_size * Widths.of(run.config).products
    return sent * ways * (layout.expert - 1) / layout.expert


def _compute(run: Run, layout: Layout, units: range) -> float:
    uneven = {
        "vision": TILE_IMBALANCE if layout.data > 1 else 1.0,
        "experts": EXPERT_IMBALANCE if layout.expert > 1 else 1.0,
    }
    seconds = 0.0
    for item in run.work:
        if item.unit in units:
            done = (item.forward + item.backward + item.again) * run.sizes[item.per]
            seconds += done * uneven.get(item.part, 1.0) / EFFICIENCY[item.part]
    narrow = Widths.of(run.config).products == WIDTHS["bfloat16"]
    return seconds / (run.gpu.flops if narrow else run.gpu.flops_float32)


def _between(run: Run, units: range) -> float:
    model, widths = run.model, Widths.of(run.config)
    length = run.config.data.sequence_length
    patches = run.sizes["encoded_tiles"] * model.vision_config.patches_per_side**2
    first = arrange_unit(model) + 1
    moved = 0.0
    for unit in units:
        if 1 <= unit < first - 1:
            kept = kept_by_block(model.vision_config, "none", widths) * patches
        elif first <= unit < head_unit(model):
            layer = unit - first
            kept = kept_by_layer(model.language_config, layer, "none", length, widths) * run.tokens
        else:
            continue
        forward, again, backward = run.passes(unit)
        moved += 2 * kept * (forward + again + 2 * backward)
    return moved / (run.gpu.bandwidth * MEMORY_SHARE)


def _exchange(run: Run, layout: Layout, units: range) -> float:
    if layout.expert == 1:
        return 0.0
    sent = exchanged_bytes(run, layout, units) * EXPERT_IMBALANCE
    beside = neighbours(layout.world, layout.expert) - 1
    inside = sent * beside / (layout.expert - 1)
    return max(inside / run.gpu.nvlink, (sent - inside) / run.gpu.network) / LINK_SHARE


def _gather(
    run: Run, layout: Layout, parameters: Sequence[UnitBytes], units: range
) -> tuple[float, float]:
    """Seconds of what ranks gather and reduce, for each micro batch and once per step."""
    inner = layout.shard * layout.expert
    dense = GroupLink.of(run.gpu, layout.world, inner)
    experts = GroupLink.of(run.gpu, layout.world, layout.shard, layout.expert)
    copies = GroupLink.of(run.gpu, layout.world, layout.replicate, inner)
    piped = layout.pipeline > 1
    around = total(parameters[unit] for unit in units if not is_block(unit, run.model))
    gathered = dense.gather(around.dense_in)
    reduced = dense.gather(around.dense_out)
    summed = copies.sum(sum(parameters[unit].gradients for unit in units))
    for unit in units:
        if is_block(unit, run.model):
            item, times = parameters[unit], 1 if piped or unit < run.lowest else 2
            one = dense.gather(item.dense_in) + experts.gather(item.experts_in)
            gathered += one * times
            reduced += dense.gather(item.dense_out) + experts.gather(item.experts_out)
    return (gathered, reduced + summed) if piped else (gathered + reduced, summed)


def _send(run: Run, layout: Layout, units: range) -> float:
    """Seconds to hand activations on, and gradients back."""
    if layout.pipeline == 1 or units.stop > head_unit(run.model):
        return 0.0
    width = WIDTHS[run.config.init.dtype]
    size = run.tokens * run.model.language_config.hidden_size * width
    if units.stop <= arrange_unit(run.model):
        vision = run.model.vision_config
        size = run.sizes["encoded_tiles"] * vision.patches_per_side**2 * vision.width * width
    near = neighbours(layout.world, layout.pipeline, layout.data) > 1
    return 2 * size / ((run.gpu.nvlink if near else run.gpu.network) * LINK_SHARE)


def _state_bytes(config: TrainConfig, own: UnitBytes) -> float:
    """What clipping and the optimiser read and write: gradients three times, all else twice.

    Moments narrower than their parameters get a wide copy: written, read and written by the update,
    and read again to be rounded.
    """
    wide = 2 * own.gradients if config.optim.moments == "bfloat16" else 0
    return 5 * own.gradients + 2 * own.moments + 4 * wide * (wide > own.moments)
