"""Experts spread over ranks compute what one process does with all tokens, expert by expert.

The launched functions return the worst relative difference of each comparison on each rank. Two
launches serve the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from tests.distributed.launch import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from vl2.config import VL2Config
from vl2.model.moe import MoE
from vl2.model.vl2 import VL2Model
from vl2.ops.moe import ExpertChange, LowRank
from vl2.parallel.activation_checkpoint import Recompute, recompute_activations
from vl2.parallel.expert import shard_experts

pytestmark = pytest.mark.slow

WITHIN = 1e-5  # relative, float32; worst measured 5e-7
MATRICES = ("gate_proj", "up_proj", "down_proj")
Figures = dict[str, float]


class Layer(NamedTuple):
    """One MoE layer."""

    tokens: tuple[int, int]  # of each rank
    preset: str = "debug_base"
    skewed: bool = False  # all tokens choose experts of the first rank
    width: int = 32  # of an expert; 33 is not aligned for grouped matmuls
    frozen: bool = False  # no weight is trained, and the second rank's input is no variable
    adapted: bool = False  # with low-rank changes
    autocast: bool = False


LAYERS = {
    "softmax": Layer((13, 7), preset="debug_tiny"),
    "sigmoid": Layer((13, 7)),
    "skewed": Layer((13, 7), skewed=True),
    "no tokens": Layer((13, 0)),
    "no tokens, all experts": Layer((0, 7), skewed=True),
    "no tokens anywhere": Layer((0, 0)),
    "plain twin": Layer((13, 7), width=33),
    "plain twin, skewed": Layer((0, 7), skewed=True, width=33),
    "frozen input": Layer((13, 7), frozen=True),
    "adapted": Layer((13, 7), adapted=True),
    "autocast": Layer((13, 7), autocast=True),
}


class Whole(NamedTuple):
    """One step of a whole model, with its dense gradients added up by hand or by FSDP2."""

    preset: str = "debug_base"
    recompute: Recompute = "none"
    fsdp: bool = False


WHOLE_ON_TWO = {
    "base": Whole(),
    "tiny": Whole("debug_tiny"),
    "full": Whole(recompute="full"),
    "selective": Whole(recompute="selective"),
    "fsdp, base": Whole(fsdp=True),
    "fsdp, tiny, full": Whole("debug_tiny", recompute="full", fsdp=True),
}
WHOLE_ON_FOUR = {
    "fsdp, base": Whole(fsdp=True),
    "fsdp, tiny, selective": Whole("debug_tiny", recompute="selective", fsdp=True),
}


def model_of(preset: str, **changes: int | None) -> VL2Model:
    config = VL2Config.preset(preset)
    language = replace(config.language_config, **changes)
    model = VL2Model(replace(config, language_config=language)).train()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def moe_of(model: VL2Model) -> MoE:
    layer = model.language.model.layers[1].mlp
    assert isinstance(layer, MoE)
    return layer


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(ours: Tensor, wanted: Tensor) -> float:
    """Where zeros are wanted, the size of what is there."""
    assert ours.shape == wanted.shape, (ours.shape, wanted.shape)
    ours, wanted = ours.detach(), wanted.detach()
    scale = float(wanted.norm()) or 1.0
    return float((ours.float() - wanted.float()).norm()) / scale


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def summed(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


# --- one layer


def run_layer(mesh: DeviceMesh, case: Layer) -> Figures:
    """Output and gradients of one layer on this rank's tokens against one process with all."""
    rank, hidden = dist.get_rank(), 64
    first, last = list(pairwise(accumulate(case.tokens, initial=0)))[rank]
    x, cotangent = (random(seed, 1, sum(case.tokens), hidden) for seed in (1, 2))
    model, whole = (model_of(case.preset, moe_intermediate_size=case.width) for _ in range(2))
    for one in (model, whole):
        one.requires_grad_(not case.frozen)
        bias = moe_of(one).gate.e_score_correction_bias
        if case.skewed:
            assert bias is not None
            bias[:4] += 10.0
    shard_experts(model, mesh)
    own = x[:, first:last].clone().requires_grad_(not case.frozen or rank == 0)
    everything = x.clone().requires_grad_()
    ours = run_moe(moe_of(model), own, cotangent[:, first:last], case)
    wanted = run_moe(moe_of(whole), everything, cotangent, case)
    if case.skewed:
        assert int(wanted.pop("experts").max()) < 4
    figures = {"output": relative(ours["output"], wanted["output"][:, first:last])}
    if own.requires_grad:
        figures["input"] = relative(gradient(own), gradient(everything)[:, first:last])
    if not case.frozen:
        figures |= compare_weights(moe_of(model), moe_of(whole), rank)
    for name in [name for name in wanted if name not in ("output", "experts")]:
        figures[name] = relative(summed(ours[name]), wanted[name])
    return figures


def run_moe(layer: MoE, x: Tensor, cotangent: Tensor, case: Layer) -> dict[str, Tensor]:
    """Output, chosen experts, and gradients of the low-rank changes if there are some."""
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        if not case.adapted:
            out, routing = layer(x)
            (out * cotangent).sum().backward()
            return {"output": out.detach(), "experts": routing.experts}
        shapes = {"gate": (32, 64), "up": (32, 64), "down": (64, 32)}
        lows = {
            name: (0.2 * random(3, 8, 8, width), 0.2 * random(4, 8, out, 8))
            for name, (out, width) in shapes.items()
        }
        change = ExpertChange(
            *(LowRank(*(f.requires_grad_() for f in low)) for low in lows.values())
        )
        routing = layer.gate(x[0])
        out = layer.experts(x[0], routing, change)[None]
        (out * cotangent).sum().backward()
    changes = {f"{n} {i}": gradient(f) for n, low in lows.items() for i, f in enumerate(low)}
    return {"output": out.detach(), "experts": routing.experts, **changes}


def compare_weights(ours: MoE, wanted: MoE, rank: int) -> Figures:
    """Gradients of the router, and of each matrix of each expert that this rank has."""
    figures = {"router": relative(summed(gradient(ours.gate.weight)), gradient(wanted.gate.weight))}
    for name in MATRICES:
        part = gradient(ours.experts.get_parameter(name))
        assert isinstance(part, DTensor)
        stack = gradient(wanted.experts.get_parameter(name))
        for place, matrix in enumerate(part.to_local()):
            expert = 4 * rank + place
            figures[f"{name} {expert}"] = relative(matrix, stack[expert])
    return figures


# --- whole models


def run_whole(mesh: DeviceMesh, case: Whole) -> Figures:
    """One step of SGD on a row of tokens per rank, against one process with all rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model, whole = model_of(case.preset), model_of(case.preset)
    shard_experts(model, mesh["expert"])
    recompute_activations(model, case.recompute, "none")
    if case.fsdp:
        wrap(model, mesh)
    loss_of(model, rank).backward()
    torch.stack([loss_of(whole, other) for other in range(world)]).sum().backward()
    if not case.fsdp:
        for parameter in model.parameters():
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)
    figures = {}
    for (name, ours), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (ours.grad is None) == (wanted.grad is None), name
        if ours.grad is not None:
            figures[f"gradient of {name}"] = relative(full(ours.grad), gradient(wanted))
    for one in (model, whole):
        torch.optim.SGD(one.parameters(), lr=0.01, foreach=False).step()
    for (name, ours), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        figures[name] = relative(full(ours), wanted)
    return figures


def loss_of(model: VL2Model, rank: int) -> Tensor:
    """Each rank has a row of another length."""
    length = 11 + 6 * rank
    ids = torch.randint(10, 2000, (1, length), generator=torch.Generator().manual_seed(rank))
    hidden = model(ids, logits="none").language.hidden
    return (hidden * random(10 + rank, *hidden.shape)).sum()


def full(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


def wrap(model: VL2Model, mesh: DeviceMesh) -> None:
    """Routed experts sharded over `shard`, everything else over all ranks; gradients summed."""
    everything = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dense",))
    layers = model.language.model.layers
    stacks = [layer.mlp.experts for layer in layers if isinstance(layer.mlp, MoE)]
    parts: list[nn.Module] = [*stacks, *layers, model]
    for part in parts:
        sharded = fully_shard(part, mesh=mesh["shard"] if part in stacks else everything)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


# --- what else there is to see


def describe(mesh: DeviceMesh) -> dict[str, object]:
    """The parameters of a sharded stack."""
    model = model_of("debug_base")
    names = [name for name, _ in model.named_parameters()]
    stack = moe_of(model).experts.gate_proj.detach().clone()
    moe_of(model).experts.up_proj.requires_grad_(False)
    shard_experts(model, mesh)
    experts = moe_of(model).experts
    part = experts.gate_proj
    assert isinstance(part, DTensor)
    return {
        "same names": names == [name for name, _ in model.named_parameters()],
        "placements": str(part.placements),
        "shapes": (tuple(part.shape), tuple(part.to_local().shape)),
        "bytes": part.to_local().untyped_storage().nbytes(),
        "own experts": torch.equal(part.to_local(), stack.chunk(2)[dist.get_rank()]),
        "whole": torch.equal(part.full_tensor(), stack),
        "trained": [experts.get_parameter(name).requires_grad for name in MATRICES],
    }


class Sent(TorchDispatchMode):
    """Bytes of what a rank puts into exchanges of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "all_to_all_single" in str(func) and args[0].is_floating_point():
            self.bytes += args[0].numel() * args[0].element_size()
        return func(*args, **(kwargs or {}))


def sent_bytes(mesh: DeviceMesh) -> tuple[int, int]:
    """Of all ranks together, in one layer: going forward, and with the way back."""
    model = model_of("debug_base")
    shard_experts(model, mesh)
    with Sent() as sent:
        out, _ = moe_of(model)(random(dist.get_rank(), 1, 10, 64))
        forward = sent.bytes
        out.sum().backward()
    forward, both = summed(torch.tensor([forward, sent.bytes])).tolist()
    return forward, both


def refusals(mesh: DeviceMesh) -> list[str]:
    told = []
    for experts in (9, None):
        with pytest.raises(ValueError, match=r"parallel\.expert") as error:
            shard_experts(model_of("debug_base", n_routed_experts=experts), mesh)
        told.append(str(error.value))
    return told


def two() -> dict[str, object]:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("shard", "expert"))
    found: dict[str, object] = {n: run_layer(mesh["expert"], c) for n, c in LAYERS.items()}
    found |= {f"whole {n}": run_whole(mesh, case) for n, case in WHOLE_ON_TWO.items()}
    others = {"parts": describe, "bytes": sent_bytes, "refusals": refusals}
    return found | {name: run(mesh["expert"]) for name, run in others.items()}


def four() -> dict[str, Figures]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "expert"))
    return {name: run_whole(mesh, case) for name, case in WHOLE_ON_FOUR.items()}


@pytest.fixture(scope="module")
def on_two() -> list[Mapping]:
    return run_ranks(2, two)


@pytest.fixture(scope="module")
def on_four() -> list[Mapping]:
    return run_ranks(4, four)


def check(figures: Figures, within: float = WITHIN) -> None:
    wrong = {name: error for name, error in figures.items() if not error <= within}
    assert not wrong


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_two_ranks_is_the_layer_of_one(on_two: list[Mapping], name: str):
    case = LAYERS[name]
    for rank, found in enumerate(on_two):
        figures = found[name]
        expected = {"output"}
        if not case.frozen:
            own = range(4 * rank, 4 * rank + 4)
            expected |= {"input", "router"} | {f"{m} {e}" for m in MATRICES for e in own}
        elif rank == 0:
            expected |= {"input"}
        if case.adapted:
            expected |= {f"{m} {i}" for m in ("gate", "up", "down") for i in (0, 1)}
        assert figures.keys() == expected
        check(figures, 1e-2 if case.autocast else WITHIN)  # worst measured 2e-3 in bfloat16


@pytest.mark.parametrize("name", WHOLE_ON_TWO)
def test_a_step_of_a_model_on_two_ranks_is_the_step_of_one(on_two: list[Mapping], name: str):
    for found in on_two:
        assert any("layers.1.mlp.experts" in key for key in found[f"whole {name}"])
        check(found[f"whole {name}"])


@pytest.mark.parametrize("name", WHOLE_ON_FOUR)
def test_a_step_of_a_model_on_two_by_two_ranks_is_the_step_of_one(
    on_four: list[Mapping], name: str
):
    for found in on_four:
        check(found[name])


def test_each_rank_keeps_its_own_experts_under_the_same_names(on_two: list[Mapping]):
    for found in on_two:
        assert found["parts"] == {
            "same names": True,
            "placements": "(Shard(dim=0),)",
            "shapes": ((8, 32, 64), (4, 32, 64)),
            "bytes": 4 * 32 * 64 * 4,
            "own experts": True,
            "whole": True,
            "trained": [True, False, True],
        }


def test_bytes_sent_are_the_stated_ones(on_two: list[Mapping]):
    tokens, k, hidden, width = 20, 2, 64, 4
    once = tokens * 2 * k * hidden * width
    for found in on_two:
        assert found["bytes"] == (once, 2 * once)


def test_experts_that_do_not_divide_are_refused(on_two: list[Mapping]):
    for found in on_two:
        assert found["refusals"] == [
            "9 routed experts do not divide over parallel.expert 2: set it to a divisor of 9",
            "parallel.expert is 2, but the model has no routed experts: set it to 1",
        ]
