"""Planned time by hand, the paper's own runs, and what fits into eight cards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vl2.config import VL2Config
from vl2.overrides import override
from vl2.parallel.config import Layout, ParallelConfig
from vl2.parallel.pipeline_stage import arrange_unit, head_unit
from vl2.recipes.stages import RECIPES
from vl2.train import cluster
from vl2.train.cluster import (
    EFFICIENCY,
    GPUS,
    HOP_BETWEEN,
    HOP_INSIDE,
    LINK_SHARE,
    GroupLink,
    exchanged_bytes,
    micro_batch_seconds,
    neighbours,
    step_seconds,
)
from vl2.train.flops import flops_by_part
from vl2.train.layouts import DAY, LISTED, LayoutPlanner, plan_training
from vl2.train.memory import UnitBytes, total

PAPER = {"tiny": (16, 7), "small": (33, 10), "base": (42, 14)}
"""Nodes of eight A100, and days (paper, section 4.2)."""
STAGES = ("align", "pretrain", "sft")


def planner_of(recipe: str, *settings: str, gpu: str = "a100", tiles: float = 8) -> LayoutPlanner:
    model = VL2Config.preset(recipe.split("_")[0])
    return LayoutPlanner(override(RECIPES[recipe](), settings), model, gpu, tiles=tiles)


def whole(planner: LayoutPlanner) -> range:
    return range(head_unit(planner.run.model) + 1)


def bytes_of(planner: LayoutPlanner, layout: Layout) -> tuple[UnitBytes, ...]:
    return planner._bytes(layout)


@pytest.mark.parametrize(
    ("world", "ranks", "stride", "expected"),
    [
        (8, 8, 1, 8),
        (6, 6, 1, 6),  # one node holds the whole world
        (16, 16, 1, 8),
        (64, 8, 8, 1),  # one rank in each node
        (64, 4, 2, 4),
        (64, 16, 2, 4),
        (24, 3, 1, 1),  # some group of three stands across two nodes
        (72, 12, 1, 4),
        (64, 1, 8, 1),
    ],
)
def test_neighbours_share_a_node(world: int, ranks: int, stride: int, expected: int):
    assert neighbours(world, ranks, stride) == expected


def test_a_link_by_hand():
    gpu = GPUS["h100"]
    inside = GroupLink.of(gpu, 8, 8)
    assert inside.gather(8e9) == pytest.approx(7e9 / (450e9 * LINK_SHARE) + 7 * HOP_INSIDE)
    assert inside.sum(8e9) == 2 * inside.gather(8e9)
    across = GroupLink.of(gpu, 32, 32)  # four nodes, eight cards of 50 GB/s in each
    hops = 28 * HOP_INSIDE + 3 * HOP_BETWEEN
    assert across.gather(32e9) == pytest.approx(31e9 / (400e9 * LINK_SHARE) + hops)
    alone_in_node = GroupLink.of(gpu, 32, 4, 8)
    assert alone_in_node.gather(4e9) == pytest.approx(3e9 / (50e9 * LINK_SHARE) + 3 * HOP_BETWEEN)
    assert GroupLink.of(gpu, 8, 1).gather(1e12) == across.gather(0) == 0


def test_one_gpu_computes_and_moves_and_nothing_else():
    planner = planner_of("tiny_sft", gpu="h200")
    planned = planner.plan(Layout(1, 1, 1, 1))
    run, sizes = planner.run, planner.run.sizes
    done = sum(
        (item.forward + item.backward + item.again) * sizes[item.per] / EFFICIENCY[item.part]
        for item in run.work
    )
    assert planned.micro_batches == 64
    assert planned.seconds["compute"] == pytest.approx(64 * done / 989e12)
    assert planned.seconds["between"] > 0
    used = {name for name, seconds in planned.seconds.items() if seconds}
    assert used == {"compute", "between", "optimizer"}
    assert planned.exchanged == 0
    state = total(bytes_of(planner, Layout(1, 1, 1, 1)))
    moved = 5 * state.gradients + 2 * state.moments
    assert planned.seconds["optimizer"] == pytest.approx(moved / (4.8e12 * cluster.MEMORY_SHARE))


def test_float32_products_run_at_float32s_peak():
    fast = planner_of("tiny_sft").plan(Layout(1, 1, 1, 1))
    slow = planner_of("tiny_sft", "compute.autocast=false").plan(Layout(1, 1, 1, 1))
    ratio = slow.seconds["compute"] / fast.seconds["compute"]
    assert ratio == pytest.approx(312 / 19.5)


@pytest.mark.parametrize(
    ("recipe", "settings", "ways"),
    [
        ("base_sft", (), 3),  # forward, again, backward
        ("base_align", (), 3),  # experts are frozen, but the gradient passes
        ("base_sft", ("compute.recompute=none",), 2),
        ("base_sft", ("compute.recompute=selective",), 3),
    ],
)
def test_exchanged_bytes_are_the_stated_ones(recipe: str, settings: tuple[str, ...], ways: int):
    planner = planner_of(recipe, *settings)
    sent = exchanged_bytes(planner.run, Layout(1, 1, 1, 8), whole(planner))
    # 29 layers, k copies of a token of 2560 bfloat16 numbers, there and back
    assert sent == ways * 29 * 2 * 6 * 2560 * 2 * 4096 * 7 / 8
    assert exchanged_bytes(planner.run, Layout(1, 1, 8, 1), whole(planner)) == 0
    planned = planner.plan(Layout(1, 1, 1, 8))
    assert planned.exchanged == sent * planned.micro_batches


def test_gathering_by_hand():
    planner = planner_of("base_sft")
    layout = Layout(1, 1, 8, 1)
    parameters, run = bytes_of(planner, layout), planner.run
    first, last = arrange_unit(run.model) + 1, head_unit(run.model)
    blocks = [u for u in whole(planner) if u not in (0, first - 1, last)]
    around = total(parameters[u] for u in whole(planner) if u not in blocks)
    inner = total(parameters[u] for u in blocks)
    size = around.dense_in + around.dense_out
    size += 2 * (inner.dense_in + inner.experts_in) + inner.dense_out + inner.experts_out
    groups = 2 + 3 * (len(blocks) + 29)  # collectives of a micro batch, each with its hops
    expected = size * 7 / 8 / (300e9 * LINK_SHARE) + groups * 7 * HOP_INSIDE
    found = cluster._gather(run, layout, parameters, whole(planner))
    assert found == (pytest.approx(expected), 0.0)
    # experts in bfloat16 two times, their gradients in float32 once; all else in float32
    experts = 29 * 72 * 3 * 1536 * 2560
    assert inner.experts_in == 2 * experts
    assert inner.experts_out == 4 * experts
    assert inner.dense_in == inner.dense_out
    assert around.dense_in > around.dense_out  # the tower's pool head never trains


def test_what_computing_hides_does_not_show():
    planner = planner_of("base_sft")
    layout = Layout(1, 1, 8, 1)
    parameters, run = bytes_of(planner, layout), planner.run
    full, _ = cluster._gather(run, layout, parameters, whole(planner))
    shown = micro_batch_seconds(run, layout, parameters, whole(planner))["gather"]
    assert shown == pytest.approx(full / 57)  # the first and last of 27 blocks and 30 layers
    narrow = replace(run, gpu=replace(run.gpu, nvlink=1e9))
    slow, _ = cluster._gather(narrow, layout, parameters, whole(planner))
    parts = micro_batch_seconds(narrow, layout, parameters, whole(planner))
    assert parts["gather"] == pytest.approx(slow - parts["compute"] - parts["between"])


def test_replicas_add_up_once_per_step():
    planner = planner_of("base_sft", "data.batch_size=64")
    layout = Layout(1, 4, 4, 1)
    parameters = bytes_of(planner, layout)
    slow = replace(planner.run, gpu=replace(planner.run.gpu, network=1e9, nvlink=1e9))
    gather, once = cluster._gather(slow, layout, parameters, whole(planner))
    alone, nothing = cluster._gather(slow, Layout(1, 1, 4, 1), parameters, whole(planner))
    assert gather == pytest.approx(alone)
    # each of four ranks, two on a node, has the sum of its part's gradients
    size = total(parameters).gradients
    expected = 2 * (size * 3 / 4 / (1e9 * LINK_SHARE) + 2 * HOP_INSIDE + HOP_BETWEEN)
    assert (once, nothing) == (pytest.approx(expected), 0.0)
    planned = [
        step_seconds(slow, layout, parameters, [whole(planner)], micro_batches)
        for micro_batches in (1, 4)
    ]
    # computing hides gathering, not the sum behind the last micro batch
    assert [parts["reduce"] for parts in planned] == [pytest.approx(expected)] * 2
    assert planned[1]["gather"] == pytest.approx(4 * planned[0]["gather"])


def test_what_the_last_micro_batch_hides_does_not_show():
    planner = planner_of("base_sft")
    layout = Layout(1, 2, 8, 1)
    parameters, run = bytes_of(planner, layout), planner.run
    gather, once = cluster._gather(run, layout, parameters, whole(planner))
    parts = micro_batch_seconds(run, layout, parameters, whole(planner))
    assert gather + once - parts["compute"] - parts["between"] < once / 57
    assert parts["once"] == pytest.approx(once / 57)


def test_narrow_moments_are_widened_in_the_step():
    seconds, states = {}, {}
    for moments in ("float32", "bfloat16"):
        planner = planner_of("tiny_sft", f"optim.moments={moments}")
        state = total(bytes_of(planner, Layout(1, 1, 1, 1)))
        states[moments] = (state.gradients / 4, state.moments)
        planned = planner.plan(Layout(1, 1, 1, 1))
        seconds[moments] = planned.seconds["optimizer"] * planner.run.gpu.bandwidth
    numbers = states["float32"][0]
    assert states == {"float32": (numbers, 8 * numbers), "bfloat16": (numbers, 4 * numbers)}
    reached = cluster.MEMORY_SHARE
    # gradients and weights; both moments read and written; their float32 copies twice more
    assert seconds["float32"] == pytest.approx((5 * 4 + 2 * 8) * numbers / reached)
    assert seconds["bfloat16"] == pytest.approx((5 * 4 + 2 * 4 + 4 * 8) * numbers / reached)
    bfloat16 = planner_of("tiny_sft", "optim.moments=bfloat16", "init.dtype=bfloat16")
    narrow = bfloat16.plan(Layout(1, 1, 1, 1)).seconds["optimizer"] * bfloat16.run.gpu.bandwidth
    assert narrow == pytest.approx((5 * 2 + 2 * 4) * numbers / reached)


def test_a_pipeline_has_its_bubble():
    planner = planner_of("base_pretrain")
    layout = Layout(4, 1, 8, 1)
    planned = planner.plan(layout)
    assert planned.micro_batches == 3360 // 8
    one = sum(planned.seconds[name] for name in cluster.COMPUTING) / planned.micro_batches
    assert planned.seconds["bubble"] == pytest.approx(3 * one)
    share = planned.seconds["bubble"] / (planned.seconds["bubble"] + one * 420)
    assert share == pytest.approx(3 / (420 + 3))
    stages = planner._cut(4)
    seconds = step_seconds(planner.run, layout, bytes_of(planner, layout), stages, 420)
    assert seconds == planned.seconds
    assert planned.seconds["reduce"] > 0  # gradients travel once, at the end of the step


def test_latency_of_tiny_models_is_the_hosts():
    model = VL2Config.preset("debug_base")
    config = override(
        RECIPES["debug_align"](), ["data.batch_size=2", "data.micro_batch=2", "stage=sft"]
    )
    planned = LayoutPlanner(config, model, "h100").plan(Layout(1, 1, 1, 1))
    assert planned.seconds["launch"] > 10 * planned.seconds["compute"]


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_days_imply_a_plausible_mfu(size: str):
    """All three stages, 8 tiles in a sequence: between 20 and 25 % of 312 TFLOP/s."""
    nodes, days = PAPER[size]
    planners = [planner_of(f"{size}_{stage}") for stage in STAGES]
    done = sum(sum(p.flops.values()) * p.run.config.steps for p in planners)
    mfu = done / (8 * nodes * days * DAY * 312e12)
    assert mfu == pytest.approx({"tiny": 0.249, "small": 0.231, "base": 0.204}[size], abs=0.001)
    # one figure for all three sizes gives each run's days within 15 %
    assert done / (8 * nodes * DAY * 312e12 * 0.218) == pytest.approx(days, rel=0.15)


@pytest.mark.parametrize(
    ("size", "batch", "layout"),
    [
        ("tiny", 2304, Layout(1, 4, 32, 1)),
        ("small", 2376, Layout(1, 33, 4, 2)),  # 264 ranks do not share the paper's 2304
        ("base", 3360, Layout(1, 14, 6, 4)),
    ],
)
def test_one_efficiency_table_gives_the_papers_days(size: str, batch: int, layout: Layout):
    nodes, days = PAPER[size]
    planner = planner_of(f"{size}_pretrain", f"data.batch_size={batch}")
    planned = planner.plan(layout)
    assert layout.world == 8 * nodes
    assert planned.fits
    tokens = planner.run.config.steps * RECIPES[f"{size}_pretrain"]().data.batch_size * 4096
    spent = tokens / planner.report(planned)["tokens_per_day"]
    assert spent == pytest.approx(days, rel=0.15)  # the other stages take 5 to 13 % more


FLAT = [
    Layout(1, copies, 8 // copies // experts, experts)
    for copies in (1, 2, 4, 8)
    for experts in (1, 2, 4, 8)
    if copies * experts <= 8
]
"""Every layout of eight ranks without a pipeline."""


def fitting(recipe: str, *settings: str, gpu: str = "h100") -> set[Layout]:
    planner = planner_of(recipe, *settings, gpu=gpu)
    return {layout for layout in FLAT if planner.plan(layout).fits}


def test_layouts_of_base_that_fit_eight_cards_of_80_gb():
    spread = {Layout(1, 1, 4, 2), Layout(1, 1, 2, 4), Layout(1, 1, 1, 8)}
    everything = {*spread, Layout(1, 1, 8, 1)}
    planned = planner_of("base_pretrain", gpu="h100").layouts(8)
    assert len(planned) == 20
    # one copy of the state; a pipeline's stages stay gathered
    assert {item.layout for item in planned if item.fits} == everything
    assert fitting("base_sft") == everything
    # moments that are twice as wide leave no room to gather all experts of a layer
    wide = planner_of("base_sft", "optim.moments=float32", gpu="h100")
    assert {layout for layout in everything if wide.plan(layout).fits} == spread
    assert everything < fitting("base_sft", "init.dtype=bfloat16")
    assert fitting("base_lora") == set(FLAT)
    assert everything < fitting("base_pretrain", gpu="h200")


def test_expert_parallelism_stops_at_the_node():
    planner = planner_of("base_pretrain", "data.batch_size=4608", gpu="h100")
    inside, across = (planner.plan(Layout(1, 8, 72 // e, e)) for e in (8, 72))
    assert across.seconds["exchange"] > 5 * inside.seconds["exchange"]
    assert across.step > inside.step
    assert across.exchanged / inside.exchanged == pytest.approx((71 / 72) / (7 / 8))


def test_more_gpus_finish_earlier_and_use_each_less():
    planner = planner_of("base_pretrain", "data.batch_size=4096", gpu="h100")
    layouts = [Layout(1, copies, 1, 8) for copies in (1, 4, 32, 512)]
    planned = [planner.plan(layout) for layout in layouts]
    assert all(item.fits for item in planned)
    steps = [item.step for item in planned]
    assert steps == sorted(steps, reverse=True)
    used = [planner.report(item)["mfu"] for item in planned]
    assert used == sorted(used, reverse=True)
    assert 0.1 < used[-1] < used[0] < 0.25


def test_a_plan_is_plain_data_and_adds_up():
    model = VL2Config.tiny()
    found = plan_training(RECIPES["tiny_sft"](), model, gpus=4, gpu="h100")
    assert json.loads(json.dumps(found)) == found
    assert found["layouts_tried"] == 10  # ways to write 4 as a product of four
    assert len(found["layouts"]) == min(LISTED, found["layouts_that_fit"]) > 2
    assert found["flops_per_step"] == sum(found["flops_by_part"].values())
    steps = []
    for layout in found["layouts"]:
        for name in ("memory_bytes", "step_seconds"):
            parts = layout[name]
            assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])
        seconds = layout["step_seconds"]["total"]
        steps.append(seconds)
        assert layout["mfu"] == pytest.approx(found["flops_per_step"] / seconds / 4 / 989e12)
        assert layout["tokens_per_day"] == pytest.approx(64 * 4096 / seconds * DAY)
        days = found["tokens_of_the_run"] / layout["tokens_per_day"]
        assert layout["days"] == pytest.approx(days)
    assert steps == sorted(steps)


def test_the_asked_layout_alone():
    model = VL2Config.tiny()
    found = plan_training(
        RECIPES["tiny_sft"](), model, gpus=8, gpu="a100", layout=ParallelConfig(expert=4)
    )
    [layout] = found["layouts"]
    assert layout["layout"] == {"pipeline": 1, "replicate": 1, "shard": 2, "expert": 4}


def test_gpipe_keeps_the_activations_of_all_micro_batches():
    layout = Layout(2, 1, 1, 1)
    plain = planner_of("tiny_sft").plan(layout)
    gpipe = planner_of("tiny_sft", "parallel.schedule=gpipe").plan(layout)
    assert gpipe.memory["vision"] > plain.memory["vision"]
    short = planner_of("tiny_sft", "data.batch_size=1", "parallel.schedule=gpipe")
    assert short.plan(layout).micro_batches == 1


WRONG = {
    "expert": (Layout(1, 1, 1, 7), "parallel.expert is 7: expected a divisor of .* 64 routed"),
    "batch": (Layout(1, 3, 1, 1), "batch_size is 64: expected a multiple of .* = 1 x 3"),
    "stages": (Layout(64, 1, 1, 1), "parallel.pipeline is 64: this model has 42 units"),
    "micro batches": (Layout(16, 1, 8, 1), "8 micro batches in a step for 16 pipeline stages"),
}


@pytest.mark.parametrize(("layout", "message"), WRONG.values(), ids=WRONG)
def test_a_layout_that_cannot_run_is_refused(layout: Layout, message: str):
    with pytest.raises(ValueError, match=message):
        planner_of("tiny_sft").plan(layout)


def test_wrong_questions_are_refused():
    model, config = VL2Config.base(), RECIPES["base_sft"]()
    with pytest.raises(ValueError, match="gpu is 'v100': expected one of a100, h100, h200"):
        plan_training(config, model, gpus=8, gpu="v100")
    with pytest.raises(ValueError, match="gpus is 0: expected at least 1"):
        plan_training(config, model, gpus=0, gpu="h100")
    with pytest.raises(ValueError, match="tiles is 20: expected 0 to 19"):
        plan_training(config, model, gpus=8, gpu="h100", tiles=20)
    with pytest.raises(ValueError, match=r"79 GPUs cannot share steps of data.batch_size 64"):
        plan_training(config, model, gpus=79, gpu="h100")
    with pytest.raises(ValueError, match=r"8 ranks do not divide into parallel.replicate 1 x exp"):
        plan_training(config, model, gpus=8, gpu="h100", layout=ParallelConfig(expert=3))
    wide = override(config, ["optim.moments=float32"])
    with pytest.raises(ValueError, match=r"h100 is too small: .* shard 8, .* needs 77.0 GiB of 74"):
        plan_training(wide, model, gpus=8, gpu="h100", layout=ParallelConfig())
    with pytest.raises(ValueError, match=r"h100 is too small: .* needs .* take more GPUs"):
        plan_training(config, model, gpus=1, gpu="h100")


def test_parts_of_the_tower_take_none_of_a_run_without_pictures():
    planner = planner_of("tiny_sft", tiles=0)
    assert planner.flops["vision"] == planner.flops["projector"] == 0
    assert flops_by_part(planner.run.work, planner.sizes) == planner.flops
