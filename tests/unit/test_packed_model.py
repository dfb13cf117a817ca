"""Models whose int8 layers are packed: the same bits, and the way there and back."""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vl2.checkpoint.hf import save_model
from vl2.config import VL2Config
from vl2.model import packed as packed_layers
from vl2.model.attention import LatentAttention
from vl2.model.moe import Mlp
from vl2.model.packed import (
    PackedExperts,
    PackedLinear,
    PackedMatrices,
    PackedMlp,
    PackedRows,
    pack_model,
    unpack_model,
)
from vl2.model.quantized import (
    QuantExperts,
    QuantLinear,
    QuantWeight,
    default_plan,
    quantize_modules,
)
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache
from vl2.ops.packed import has_packed_int8, pack
from vl2.ops.quant import Int8Weight

needs_amx = pytest.mark.skipif(not has_packed_int8(), reason="this CPU has no AMX int8 products")
PRESETS = ["nano", "debug_tiny", "debug_small"]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def quantized(preset: str, scheme: str = "int8") -> VL2Model:
    model = VL2Model(VL2Config.preset(preset))
    model.init_weights(torch.Generator().manual_seed(3))
    quantize_modules(model, default_plan(model, scheme))
    return model.eval()


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_layers, "LEAST_NUMBERS", 0)


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def outputs(model: VL2Model) -> list[Tensor]:
    """Vision features, logits of a prompt, and logits of a decoded token behind it."""
    config = model.config.language_config
    side = model.config.vision_config.image_size
    embeds = random(2, 21, config.hidden_size)
    cache = KVCache.empty(config, 2, 21)
    with torch.inference_mode():
        features = model.vision(random(2, 3, side, side))
        prompt = model.language(embeds[:, :20], cache=cache).hidden
        token = model.language(embeds[:, 20:], cache=cache).hidden
        single = model.language(embeds[:1, :1]).hidden
        logits = [model.language.logits(hidden) for hidden in (prompt, token, single)]
    return [features, model.projector(features), *logits]


@needs_amx
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.usefixtures("any_size")
def test_a_packed_model_gives_the_same_bits_and_comes_back(preset: str) -> None:
    model = quantized(preset)
    kinds = [type(module) for module in model.modules()]
    wanted, before = outputs(model), copy.deepcopy(model.state_dict())
    pack_model(model)
    assert not any(isinstance(m, QuantLinear | QuantExperts | Mlp) for m in model.modules())
    found = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert same_state(model.state_dict(), before)
    unpack_model(model)
    assert [type(module) for module in model.modules()] == kinds
    assert same_state(model.state_dict(), before)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), wanted, strict=True))


@needs_amx
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("any_size")
def test_a_packed_model_in_short_floats_gives_the_same_bits(dtype: torch.dtype) -> None:
    model = quantized("debug_tiny").to(dtype)
    embeds = random(1, 5, model.config.language_config.hidden_size).to(dtype)
    with torch.inference_mode():
        wanted = model.language(embeds).hidden
        pack_model(model)
        assert torch.equal(model.language(embeds).hidden, wanted)


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_a_model_can_be_packed_before_its_floats_are_cast() -> None:
    first, second = quantized("debug_tiny"), quantized("debug_tiny")
    pack_model(first)
    first.to(torch.bfloat16)
    second.to(torch.bfloat16)
    assert same_state(first.state_dict(), second.state_dict())


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_query_compression_is_joined_as_well() -> None:
    config = VL2Config.preset("nano")
    language = replace(config.language_config, q_lora_rank=32)
    model = VL2Model(replace(config, language_config=language)).eval()
    model.init_weights(torch.Generator().manual_seed(3))
    quantize_modules(model, default_plan(model, "int8"))
    wanted, before = outputs(model), model.state_dict()
    pack_model(model)
    attention = next(m for m in model.modules() if isinstance(m, LatentAttention))
    assert attention.joint is not None
    assert isinstance(attention.q_b_proj, PackedLinear)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), wanted, strict=True))
    assert same_state(model.state_dict(), before)


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_saving_a_packed_model_writes_the_plain_one(tmp_path: Path) -> None:
    model = quantized("debug_small")
    save_model(model, tmp_path / "plain")
    pack_model(model)
    save_model(model, tmp_path / "packed")
    names = sorted(file.name for file in (tmp_path / "plain").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "packed").iterdir())
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_only_int8_layers_are_packed() -> None:
    model = quantized("nano", "int4")
    wanted = outputs(model)
    pack_model(model)
    assert isinstance(model.vision.blocks[0].attn.qkv, PackedLinear)
    assert isinstance(model.language.lm_head, QuantLinear)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), wanted, strict=True))


@needs_amx
def test_small_layers_stay_as_they_are() -> None:
    model = quantized("nano")
    pack_model(model)
    assert isinstance(model.language.lm_head, PackedLinear)
    assert not any(isinstance(m, PackedExperts | PackedMlp) for m in model.modules())


def test_without_amx_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_layers, "has_packed_int8", lambda: False)
    monkeypatch.setattr(packed_layers, "LEAST_NUMBERS", 0)
    model = quantized("debug_tiny")
    modules, before = list(model.modules()), dict(model.state_dict())
    pack_model(model)
    assert list(model.modules()) == modules
    assert same_state(model.state_dict(), before)


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_packing_twice_or_a_float_model_changes_nothing() -> None:
    model = VL2Model(VL2Config.preset("debug_tiny"))
    modules = list(model.modules())
    pack_model(model)
    assert list(model.modules()) == modules
    model = quantized("debug_tiny")
    pack_model(model)
    modules = list(model.modules())
    pack_model(model)
    assert list(model.modules()) == modules


def row_major(model: VL2Model) -> dict[weakref.ref, tuple[str, int]]:
    """Layer and size of each int8 matrix, or stack, by a reference that does not keep it."""
    return {
        weakref.ref(module.get_buffer("int8")): (name.rpartition(".")[0], math.prod(module.shape))
        for name, module in model.named_modules()
        if isinstance(module, QuantWeight)
    }


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_at_most_one_layer_is_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized("debug_tiny")
    sizes = row_major(model)
    total, done, most = sum(size for _, size in sizes.values()), 0, 0

    def counting(*parts: Int8Weight):
        nonlocal done, most
        done += sum(part.values.numel() for part in parts)
        alive = sum(size for values, (_, size) in sizes.items() if values() is not None)
        most = max(most, alive + done - total)
        return pack(*parts)

    monkeypatch.setattr(packed_layers, "pack", counting)
    pack_model(model)
    layers: dict[str, int] = {}
    for name, size in sizes.values():
        layers[name] = layers.get(name, 0) + size
    assert done == total
    assert all(values() is None for values in sizes)
    assert 0 < most <= max(layers.values())


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_a_copy_of_a_packed_model_is_whole() -> None:
    model = quantized("debug_tiny")
    pack_model(model)
    other = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), outputs(model), strict=True))
    mine = {id(w) for m in model.modules() if isinstance(m, PackedMatrices) for w in m.weights}
    theirs = [w for m in other.modules() if isinstance(m, PackedMatrices) for w in m.weights]
    assert not any(id(weight) in mine for weight in theirs)


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_a_packed_model_refuses_to_load_and_to_move() -> None:
    model = quantized("debug_tiny")
    state = model.state_dict()
    pack_model(model)
    with pytest.raises(RuntimeError, match="is packed: unpack_model the model, then load"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="packed weights cannot go to meta"):
        model.to("meta")


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_a_part_of_a_joint_matrix_runs_alone() -> None:
    model = quantized("debug_tiny")
    attention = model.language.model.layers[0].self_attn
    assert isinstance(attention, nn.Module)
    x = random(1, 3, model.config.language_config.hidden_size)
    wanted = [attention.get_submodule(name)(x) for name in ("q_proj", "k_proj", "v_proj")]
    pack_model(model)
    found = [attention.get_submodule(name)(x) for name in ("q_proj", "k_proj", "v_proj")]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_amx
def test_a_model_with_adapters_is_refused() -> None:
    model = quantized("debug_tiny")
    model.language.lm_head.lora_A = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"has adapters \(language.lm_head.lora_A\): merge them"):
        pack_model(model)


@needs_amx
@pytest.mark.usefixtures("any_size")
def test_an_mlp_that_is_partly_float_is_packed_layer_by_layer() -> None:
    model = VL2Model(VL2Config.preset("debug_tiny")).eval()
    model.init_weights(torch.Generator().manual_seed(3))
    plan = default_plan(model, "int8")
    kept = ("language.model.layers.0.mlp.up_proj", "language.model.layers.0.self_attn.k_proj")
    quantize_modules(model, replace(plan, modules_to_not_convert=kept))
    wanted, before = outputs(model), model.state_dict()
    pack_model(model)
    layer = model.language.model.layers[0]
    assert isinstance(layer.mlp.down_proj, PackedLinear)
    assert isinstance(layer.self_attn.q_proj, PackedLinear)
    assert isinstance(layer.self_attn.k_proj, nn.Linear)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), wanted, strict=True))
    assert same_state(model.state_dict(), before)


@needs_amx
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.usefixtures("any_size")
def test_projections_of_one_input_are_one_product(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(preset)
    pack_model(model)
    monkeypatch.delattr(PackedRows, "forward")
    outputs(model)
