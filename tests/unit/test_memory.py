"""Planned memory against what a real step holds, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard

from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.model import moe
from vl2.model.vl2 import VL2Model
from vl2.parallel.activation_checkpoint import Recompute, recompute_activations
from vl2.parallel.config import Layout
from vl2.parallel.fsdp import _placement
from vl2.parallel.pipeline_stage import head_unit
from vl2.recipes.stages import RECIPES
from vl2.train.config import ComputeConfig, InitConfig, OptimConfig, StageKind, TrainConfig
from vl2.train.lora import LoraConfig
from vl2.train.memory import (
    RUNTIME,
    Widths,
    _gathered,
    kept_by_block,
    kept_by_layer,
    lowest_unit,
    most_tiles,
    rank_memory,
    total,
    unit_bytes,
)
from vl2.train.optim import Optimizers
from vl2.train.report import estimate, trained_parts
from vl2.train.select import select

KEPT_TOLERANCE = 0.1  # worst seen: 6 %
MODES = {
    "float32": Widths(weights=4, products=4, autocast=False),
    "bfloat16": Widths(weights=2, products=2, autocast=False),
    "autocast": Widths(weights=4, products=2, autocast=True),
}
GIB = 2**30


def config_of(
    preset: str = "debug_base", lora: LoraConfig | None = None, **compute: object
) -> TrainConfig:
    return TrainConfig(
        name="memory",
        stage="sft",
        steps=1,
        init=InitConfig(preset=preset, tokenizer="nano"),
        compute=replace(ComputeConfig(), **compute),
        lora=lora,
    )


def kept_bytes(run: Callable[[], object], module: nn.Module) -> int:
    """What autograd keeps beside the parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # alive until the storages are counted: an address may be used twice
    assert result is not None
    return sum(seen.values())


def narrow_model(preset: str, layers: int, mode: str, how: Recompute = "none") -> VL2Model:
    """Wide enough that router and norms' statistics do not count."""
    config = VL2Config.preset(preset)
    language = replace(
        config.language_config,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=layers,
        num_experts_per_tok=4,
        vocab_size=64,
    )
    vision = replace(config.vision_config, layers=layers, width=64, heads=4, mlp_ratio=4.0)
    projector = replace(config.projector_config, input_dim=64, n_embed=128)
    model = VL2Model(
        replace(config, language_config=language, vision_config=vision, projector_config=projector)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(torch.bfloat16 if mode == "bfloat16" else torch.float32)
    recompute_activations(model, how, how)
    return model.train()


def difference(kept: Callable[[int, int], int], size: int) -> float:
    """Bytes per row and layer, whatever there is once per model or once per layer."""
    one, two = (kept(layers, 2 * size) - kept(layers, size) for layers in (2, 3))
    return (two - one) / size


def kept_by_language(preset: str, mode: str, how: Recompute = "none") -> float:
    """Per token and MoE layer, in sequences of 64."""

    def kept(layers: int, rows: int) -> int:
        model = narrow_model(preset, layers, mode, how)
        dtype = model.image_newline.dtype
        embeds = torch.randn(rows, 64, 128, dtype=dtype, requires_grad=True)
        segments = torch.ones(rows, 64, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext():
            return kept_bytes(lambda: model.language(embeds, segment_ids=segments), model)

    return difference(kept, 4) / 64


def kept_by_tower(mode: str, how: Recompute = "none") -> float:
    """Per patch and block."""

    def kept(layers: int, tiles: int) -> int:
        model = narrow_model("debug_base", layers, mode, how)
        images = torch.randn(tiles, 3, 56, 56, dtype=model.image_newline.dtype)
        with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else nullcontext():
            return kept_bytes(lambda: model.vision(images), model)

    return difference(kept, 8) / 16


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base"])
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_keeps_what_autograd_keeps(preset: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    """The estimate is of cards, which group experts; CPUs with AMX pad them and keep less."""
    monkeypatch.setattr(moe, "pads_experts", lambda rows: False)
    config = narrow_model(preset, 2, mode).config.language_config
    ours = kept_by_layer(config, 1, "none", 64, MODES[mode])
    assert ours == pytest.approx(kept_by_language(preset, mode), rel=KEPT_TOLERANCE)
    whole = kept_by_layer(config, 1, "full", 64, MODES[mode])
    assert whole == kept_by_language(preset, mode, "full")
    assert whole < kept_by_layer(config, 1, "selective", 64, MODES[mode]) < ours


@pytest.mark.parametrize("mode", MODES)
def test_a_block_keeps_what_autograd_keeps(mode: str):
    config = narrow_model("debug_base", 2, mode).config.vision_config
    ours = kept_by_block(config, "none", MODES[mode])
    assert ours == pytest.approx(kept_by_tower(mode), rel=KEPT_TOLERANCE)
    assert kept_by_block(config, "full", MODES[mode]) == kept_by_tower(mode, "full")
    assert config.width < kept_by_block(config, "selective", MODES[mode]) < ours


OPTIMIZERS = {
    "adamw": OptimConfig(),
    "muon": OptimConfig(optimizer="muon"),
    "compact": OptimConfig(moments="bfloat16"),
}


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_is_what_a_step_leaves(optim: OptimConfig, lora: LoraConfig | None, dtype: str):
    config = config_of(lora=lora)
    config = replace(config, init=replace(config.init, dtype=dtype), optim=optim)
    model = VL2Model(VL2Config.preset("debug_base"))
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(getattr(torch, dtype))
    select(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizers = Optimizers(model, config.optim, 1)
    optimizers.step()
    planned = rank_memory(unit_bytes(model, config), model.config, config)
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(
        p.grad.nbytes for p in model.parameters() if p.grad is not None
    )
    moments = {k: v for k, v in optimizers.state().items() if not k.endswith(".step")}
    assert planned["moments"] == sum(moment.nbytes for moment in moments.values())
    assert planned["runtime"] == RUNTIME


def test_adapters_are_float32_on_a_bfloat16_base():
    config = replace(RECIPES["tiny_lora"](), lora=LoraConfig(rank=8))
    model = build_skeleton(VL2Config.tiny())
    select(model, config)
    parts = trained_parts(model)
    found = estimate(config, VL2Config.tiny(), parts)
    trained = sum(parts["trained"].values())
    frozen = sum(parts["frozen"].values())
    memory = found["memory_bytes"]
    assert memory["weights"] == 2 * frozen + 4 * trained
    assert memory["gradients"] == 4 * trained
    assert memory["moments"] == 8 * trained
    assert memory["casts"] == memory["gathered"] == 0
    assert memory["vision"] == 0  # frozen, and nothing below the adapters: it keeps nothing
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")


def test_dry_runs_say_what_is_computed():
    config = RECIPES["base_sft"]()
    model = build_skeleton(VL2Config.base())
    select(model, config)
    found = estimate(config, VL2Config.base(), trained_parts(model))
    assert found["flops_per_step"] == sum(found["flops_by_part"].values())
    assert 0.3 < found["recomputed_flops_per_step"] / found["flops_per_step"] < 0.34
    assert found["tokens_per_step"] == 64 * 4096
    per_token = found["flops_per_step"] / found["tokens_per_step"]
    # 6 for each parameter that a token meets; the tower meets patches, and attention comes on top
    assert per_token / found["parameters"]["active_per_token"] == pytest.approx(6.9, abs=0.1)


@pytest.mark.parametrize(("shard", "expert"), [(2, 1), (3, 2), (5, 4), (16, 1), (16, 8)])
def test_parts_of_ranks_are_those_of_pytorch(shard: int, expert: int):
    """The fullest rank has the first part, and all send equally many."""
    config, model = config_of(), build_skeleton(VL2Config.preset("debug_base"))
    select(model, config)
    layout = Layout(1, 1, shard, expert)
    found = total(unit_bytes(model, config, layout))
    weights = travels = back = 0
    for name, parameter in model.named_parameters():
        stack = ".experts." in name
        whole = torch.empty(parameter.shape)
        ranks = shard if stack else shard * expert
        local = whole.chunk(expert)[0] if stack else whole
        cut = _placement(nn.Parameter(local), parts=ranks) or Shard(0)
        parts, _ = cut._split_tensor(local, ranks, with_padding=True)
        weights += 4 * local.chunk(ranks, cut.dim)[0].numel()
        travels += 4 * sum(part.numel() for part in parts)
        back += 4 * sum(part.numel() for part in parts) * parameter.requires_grad
    assert found.weights == weights
    assert found.dense_in + found.experts_in == travels
    assert found.dense_out + found.experts_out == back < travels


def test_sharding_divides_the_state_and_gathers_a_block():
    config, model = RECIPES["base_pretrain"](), VL2Config.base()
    skeleton = build_skeleton(model)
    select(skeleton, config)

    def memory(layout: Layout) -> dict[str, int]:
        return rank_memory(unit_bytes(skeleton, config, layout), model, config, layout)

    alone, eight = memory(Layout(1, 1, 1, 1)), memory(Layout(1, 1, 8, 1))
    spread, copies = memory(Layout(1, 1, 1, 8)), memory(Layout(1, 8, 1, 1))
    for name in ("weights", "gradients", "moments"):
        assert eight[name] == pytest.approx(alone[name] / 8, rel=1e-3)
        assert spread[name] == pytest.approx(eight[name], rel=1e-3)
        assert copies[name] == alone[name]
    assert alone["gathered"] == alone["exchange"] == eight["exchange"] == 0
    experts = 72 * 3 * 1536 * 2560
    # two layers' experts in bfloat16, the gradient of one as made and, in float32, as sent
    assert eight["gathered"] > (2 * 2 + 2 + 4) * experts
    assert eight["gathered"] - spread["gathered"] == pytest.approx(
        (2 * 2 + 2 + 4) * experts * 7 / 8, rel=0.1
    )
    assert spread["exchange"] == 4 * 4096 * 6 * 2560 * 2


def test_stages_share_the_model():
    config, model = RECIPES["small_sft"](), VL2Config.small()
    skeleton = build_skeleton(model)
    select(skeleton, config)
    layout = Layout(2, 1, 2, 1)
    parameters = unit_bytes(skeleton, config, layout)
    cut = 40
    stages = [range(cut), range(cut, len(parameters))]
    memories = [
        rank_memory(parameters, model, config, layout, units=units, in_flight=2 - number)
        for number, units in enumerate(stages)
    ]
    assert sum(m["weights"] for m in memories) == total(parameters).weights
    assert memories[0]["logits"] == memories[1]["vision"] == 0 < memories[0]["vision"]
    # the whole stage and its gradients stay until the step is over
    for units, memory in zip(stages, memories, strict=True):
        own = total(parameters[unit] for unit in units)
        assert memory["gathered"] >= own.whole + own.kept
    more = rank_memory(parameters, model, config, layout, units=stages[0], in_flight=3)
    assert more["activations"] > memories[0]["activations"]


def test_what_stands_before_all_that_trains_keeps_nothing():
    config = config_of(lora=LoraConfig(targets=("experts",)))
    model = build_skeleton(VL2Config.preset("debug_base"))
    select(model, config)
    parameters = unit_bytes(model, config)
    assert 0 < lowest_unit(parameters) < len(parameters)
    assert parameters[lowest_unit(parameters)].gradients > 0
    assert all(item.gradients == 0 for item in parameters[: lowest_unit(parameters)])
    assert rank_memory(parameters, model.config, config)["vision"] == 0


def test_bytes_that_a_layout_divides_unevenly_are_the_fullest_rank():
    config, model = RECIPES["base_pretrain"](), build_skeleton(VL2Config.base())
    select(model, config)
    experts = 29 * 3 * 1536 * 2560
    # rows of a stack that a rank has: some ranks have one expert and others none, unless the
    # ranks divide 1536 rows of gate and up, 2560 of down
    for shard, up, down in (
        (72, 1, 1),
        (100, 1, 1),
        (48, 1.5, 2),
        (512, 72 / 512, 72 / 512),
        (1024, 1, 1),
    ):
        found = total(unit_bytes(model, config, Layout(1, 1, shard, 1)))
        assert found.experts_in == 2 * shard * (2 * up + down) / 3 * experts
        turned = (2 * (up % 1 > 0) + (down % 1 > 0)) / 3
        assert found.turned == pytest.approx(2 * 72 * turned * experts)


def test_stacks_that_are_cut_along_their_second_dimension_are_there_once_more():
    config, model = RECIPES["base_pretrain"](), VL2Config.base()
    skeleton = build_skeleton(model)

    def gathered(stage: StageKind, backward: bool) -> int:
        select(skeleton, replace(config, stage=stage))
        parts = [
            _gathered(
                unit_bytes(skeleton, config, layout),
                model,
                layout,
                range(head_unit(model) + 1),
                backward=backward,
            )
            for layout in (Layout(1, 1, 24, 1), Layout(1, 1, 32, 1))
        ]
        return parts[1] - parts[0]

    experts = 2 * 72 * 3 * 1536 * 2560
    assert gathered("align", False) == gathered("pretrain", False) == experts
    assert gathered("align", True) == pytest.approx(experts, rel=0.1)
    assert gathered("pretrain", True) == pytest.approx(0, abs=1e6)  # when a gradient is gone


def test_a_sequence_has_room_for_so_many_tiles():
    assert most_tiles(VL2Config.base(), 4096) == 4096 // 210
    assert most_tiles(VL2Config.base(), 100) == 1
