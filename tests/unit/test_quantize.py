"""Quantised models: by every way the same bits, and near the floats they were made from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl2.checkpoint import load
from vl2.checkpoint.convert import convert_checkpoint
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.layout import table
from vl2.checkpoint.load import load_model
from vl2.checkpoint.report import describe
from vl2.checkpoint.save import save_model
from vl2.checkpoint.skeleton import build_skeleton
from vl2.cli.convert import convert
from vl2.config import QuantizationConfig, VL2Config
from vl2.engine.quantize import MAX_ERROR, quantize_model
from vl2.model.linear import Linear
from vl2.model.moe import Experts, matrix_layers
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache
from vl2.ops.loss import next_token_loss_ref

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
SCHEMES = ["int8", "float8", "int4"]


def model_of(preset: str) -> VL2Model:
    model = VL2Model(VL2Config.preset(preset))
    model.init_weights(torch.Generator().manual_seed(3))
    return model.eval()


def inputs(model: VL2Model) -> dict[str, torch.Tensor]:
    """One picture of one tile, and text."""
    side, size = model.config.tokens_per_side, model.config.vision_config.image_size
    places = 2 * side * (side + 1) + 1
    ids = torch.randint(5, 2000, (1, places + 9))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2 : 2 + places] = True
    return {
        "input_ids": ids,
        "images": torch.randn(1, 2, 3, size, size).clamp(-1, 1),
        "images_seq_mask": mask,
        "images_spatial_crop": torch.tensor([[[1, 1]]]),
    }


def assert_same(first: VL2Model, second: VL2Model) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    for key, tensor in a.items():
        assert tensor.dtype == b[key].dtype, key
        assert torch.equal(tensor, b[key]), key
    assert first.config.quantization_config == second.config.quantization_config


@pytest.mark.parametrize(("scheme", "least"), [("int8", 0.9995), ("float8", 0.99), ("int4", 0.95)])
@pytest.mark.parametrize("preset", ["debug_tiny", "debug_small", "debug_base"])
def test_quantised_models_answer_nearly_as_floats(preset: str, scheme: str, least: float):
    model = model_of(preset)
    batch = inputs(model)
    with torch.inference_mode():
        wanted = model(**batch).logits
        reports = quantize_model(model, scheme)
        found = model(**batch).logits
    near = torch.cosine_similarity(found.flatten(0, 1), wanted.flatten(0, 1), dim=-1)
    assert float(near.median()) > least  # a near tie between experts may fall the other way
    layers = dict(matrix_layers(model))
    floats = [name for name, layer in layers.items() if layer.kind is None]
    assert floats == [r.name for r in reports if r.scheme == "float"]
    assert all(name.endswith("kv_b_proj") for name in floats)
    assert bool(floats) == (preset != "debug_tiny")
    assert len(layers) == len(reports)
    assert all(layer.kind for layer in layers.values() if isinstance(layer, Experts))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cached_steps_equal_one_pass(scheme: str):
    """The absorbed form reads kv_b_proj as a matrix; int4 rounds activations of short steps."""
    model = model_of("debug_base")
    quantize_model(model, scheme)
    ids = torch.randint(5, 2000, (1, 12))
    language = model.language
    cache = KVCache.empty(model.config.language_config, 1, 12)
    with torch.inference_mode():
        whole = language(language.embed(ids)).hidden
        parts = [language(language.embed(ids[:, :8]), cache=cache).hidden]
        parts += [language(language.embed(ids[:, i : i + 1]), cache=cache).hidden for i in (8, 9)]
    found = torch.cat(parts, dim=1)
    near = torch.cosine_similarity(found, whole[:, :10], dim=-1)
    assert float(near.min()) > (0.9999 if scheme == "int8" else 0.999)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["released", "stacked"])
def test_every_way_to_a_quantised_model_gives_the_same_bits(
    scheme: str, layout: str, tmp_path: Path
):
    source = GOLDEN / "base_like"
    save_model(load_model(source), tmp_path / "source", 200_000, layout=layout)
    model = load_model(tmp_path / "source")
    quantize_model(model, scheme)
    assert_same(model, load_model(tmp_path / "source", quantization=scheme))
    # What is stored is quantised, not what it is rounded to for the dtype of the rest.
    assert_same(model.bfloat16(), load_model(tmp_path / "source", "bfloat16", quantization=scheme))

    convert_checkpoint(
        tmp_path / "source", tmp_path / "converted", "bfloat16",
        quantization=scheme, max_shard_bytes=100_000,
    )  # fmt: skip
    held = load_model(tmp_path / "converted")
    assert_same(model, held)
    assert held.image_newline.dtype == torch.bfloat16

    save_model(held, tmp_path / "saved")
    assert_same(held, load_model(tmp_path / "saved"))
    convert_checkpoint(tmp_path / "saved", tmp_path / "copy", layout=layout)
    assert_same(held, load_model(tmp_path / "copy"))
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["quantization_config"]["quant_method"] == "vl2"
    assert config["quantization_config"]["scheme"] == scheme
    assert not any(p.requires_grad for m in (model, held) for p in m.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_of_a_quantised_model_is_that_of_its_logits(scheme: str):
    model = model_of("debug_base")
    quantize_model(model, scheme)
    assert model.language.lm_head.kind == scheme
    ids = torch.randint(5, 2000, (2, 9))
    labels = ids.masked_fill(torch.arange(9) < 3, -100)
    out = model(ids, labels=labels)
    assert out.loss.item() == pytest.approx(
        next_token_loss_ref(out.logits, labels).item(), rel=0.01
    )


def test_int4_leaves_the_vision_side_and_odd_rows_in_int8():
    model = model_of("debug_tiny")
    mlp = model.language.model.layers[0].mlp
    mlp.down_proj = Linear(56, 64, bias=False)
    schemes = {r.name: (r.scheme, r.reason) for r in quantize_model(model, "int4")}
    higher = (
        "int8",
        "it belongs to the vision tower or adaptor, or its rows do not divide into groups",
    )
    assert schemes["language.model.layers.0.mlp.down_proj"] == higher
    assert schemes["vision.blocks.0.mlp.fc2"] == schemes["projector.layers.0"] == higher
    assert (mlp.down_proj.kind, mlp.up_proj.kind) == ("int8", "int4")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_with_a_large_error_stays_higher(scheme: str, tmp_path: Path):
    """One weight that is far larger than the others of its row leaves no steps for them."""
    model = model_of("debug_base")
    layer = model.language.model.layers[1]
    with torch.no_grad():
        layer.self_attn.o_proj.weight[:, 3] = 1e5
        layer.mlp.shared_experts.down_proj.weight[:, ::32] *= 6
    batch = inputs(model)
    # The large column meets an input of zero, so that what the other weights do is all there is.
    layer.self_attn.o_proj.register_forward_pre_hook(
        lambda m, args: (args[0].index_fill(-1, torch.tensor([3]), 0),)
    )
    reports = {r.name: r for r in quantize_model(model, scheme, lambda: model(**batch))}
    spoilt = reports["language.model.layers.1.self_attn.o_proj"]
    assert spoilt.scheme == "float"
    assert spoilt.error is not None
    assert spoilt.error > MAX_ERROR[scheme]
    assert (
        spoilt.reason == f"its error in {scheme} is {spoilt.error:.3f}, above {MAX_ERROR[scheme]}"
    )
    assert layer.self_attn.o_proj.kind is None
    others = [
        r
        for r in reports.values()
        if r.error is not None and r is not spoilt and r.name.startswith("language")
    ]
    assert len(others) == 20
    assert sum(r.scheme == scheme for r in others) > 0.9 * len(others)
    experts = reports["language.model.layers.1.mlp.experts"]
    assert experts.error is not None
    assert experts.error > 0

    save_model(model, tmp_path)
    assert_same(model, load_model(tmp_path, "float32"))


def test_casts_move_floats_only():
    model = model_of("debug_base")
    quantize_model(model, "int8")
    before = {k: t.clone() for k, t in model.state_dict().items() if not k.endswith("bias")}
    model.bfloat16()
    for key, tensor in model.state_dict().items():
        if key.endswith((".int8", ".scale")):
            assert torch.equal(tensor, before[key]), key
    assert model.image_newline.dtype == torch.bfloat16
    logits = model(torch.randint(5, 2000, (1, 7))).logits
    assert bool(logits.isfinite().all())


def test_wrong_arguments_and_folders_are_refused(tmp_path: Path):
    source = GOLDEN / "base_like"
    with pytest.raises(
        ValueError, match="quantization is 'int2': expected one of int8, float8, int4"
    ):
        load_model(source, quantization="int2")
    with pytest.raises(ValueError, match="quantization is 'int2'"):
        convert_checkpoint(source, tmp_path / "new", quantization="int2")
    assert not (tmp_path / "new").exists()
    convert(str(source), tmp_path / "q", quantization="int8")
    for again in (
        lambda: load_model(tmp_path / "q", quantization="int8"),
        lambda: convert_checkpoint(tmp_path / "q", tmp_path / "qq", quantization="int4"),
        lambda: quantize_model(load_model(tmp_path / "q"), "int8"),
    ):
        with pytest.raises(ValueError, match="quantised to int8 already"):
            again()

    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    section = config.pop("quantization_config")
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\.weight is missing"):
        load_model(tmp_path / "q")
    file.write_text(json.dumps({**config, "quantization_config": {**section, "scheme": "int4"}}))
    with pytest.raises(ValueError, match=r"qkv cannot be held in int4, its rows are \(48,\) long"):
        load_model(tmp_path / "q")
    names = {**section, "modules_int8": ["language.head"]}
    file.write_text(json.dumps({**config, "quantization_config": names}))
    with pytest.raises(ValueError, match=r"names 'language\.head', which is not a linear layer"):
        load_model(tmp_path / "q")
    with pytest.raises(ValueError, match="quant_method is 'awq': expected 'vl2', nothing else"):
        QuantizationConfig(quant_method="awq")


@pytest.mark.parametrize(("scheme", "stored"), [("int8", "I8"), ("float8", "F8_E4M3")])
def test_quantised_weights_must_be_of_their_dtype(scheme: str, stored: str, tmp_path: Path):
    convert_checkpoint(GOLDEN / "base_like", tmp_path, quantization=scheme, max_shard_bytes=None)
    tensors = load_file(tmp_path / "model.safetensors")
    key = f"language.lm_head.weight.{scheme}"
    tensors[key] = tensors[key].float()
    save_file(tensors, tmp_path / "model.safetensors")
    wanted = rf"lm_head\.weight\.{scheme}.* dtype 'F32'.*expected {stored}"
    with pytest.raises(CheckpointError, match=wanted):
        load_model(tmp_path)


def test_float8_of_another_tool_is_not_taken_for_floats(tmp_path: Path):
    save_model(load_model(GOLDEN / "base_like"), tmp_path, None)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language.lm_head.weight"] = tensors["language.lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.* dtype 'F8_E4M3'.*expected F32"):
        load_model(tmp_path)


def test_inspect_counts_parameters_as_of_the_float_model(tmp_path: Path):
    convert_checkpoint(GOLDEN / "base_like", tmp_path / "q", quantization="int4")
    found, wanted = describe(str(tmp_path / "q")), describe(str(GOLDEN / "base_like"))
    assert found["parameters"] == wanted["parameters"]
    assert set(found["files"]["bytes"]) == {"float32", "bfloat16", "uint8", "int8"}


PEAK = """
import re, sys, torch
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
torch.set_num_threads(1)
from vl2.checkpoint.load import load_model
folder, scheme = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
before = peak()
state = load_model(folder, device="cpu", quantization=scheme).state_dict()
size = sum(tensor.nbytes for tensor in state.values())
print(size, (peak() - before) / size)
"""


def empty_checkpoint(folder: Path, config: VL2Config) -> None:
    """Zeros of a model that take no room on the disk."""
    folder.mkdir()
    header, end = {}, 0
    names = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "BF16", torch.bfloat16: "BF16"}
    layout = "stacked" if config.quantization_config else "released"
    state = build_skeleton(config).state_dict()
    for key, slot in table(state, layout):
        dtype = state[slot.key].dtype
        name = "F32" if key.endswith(".scale") and dtype == torch.float32 else names[dtype]
        size = {"BF16": 2, "F32": 4}.get(name, 1)
        offsets = [end, end := end + size * math.prod(slot.shape)]
        header[key] = {"dtype": name, "shape": slot.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    config.save(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("way", ["quantised folder", "while loading"])
def test_peak_memory_is_one_quantised_copy(way: str, tmp_path: Path):
    """Measured: 1.01 of a folder, 1.07 while quantising, whose buffers do not grow with a model."""
    config = VL2Config.from_pretrained(GOLDEN / "base_like")
    sizes = {"hidden_size": 768, "moe_intermediate_size": 768, "n_routed_experts": 160}
    language = replace(config.language_config, vocab_size=4000, **sizes)
    projector = replace(config.projector_config, n_embed=768)
    big = replace(config, language_config=language, projector_config=projector)
    if way == "quantised folder":
        big = replace(big, quantization_config=QuantizationConfig(scheme="int8"))
    empty_checkpoint(tmp_path / "model", big)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "model")]
    command += ["int8"] if way == "while loading" else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, ratio = map(float, done.stdout.split())
    assert size > 500e6
    assert 0.9 < ratio <= 1.15, done.stdout


def test_a_card_is_told_once_that_a_scheme_has_no_kernel_there(caplog):
    load.say_if_slow.cache_clear()
    for scheme in ("int8", "int4", "float8"):
        for device in ("cpu", "cuda", "cuda"):
            load.say_if_slow(scheme, device)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in told] == ["int8", "int4"]
    assert all("slower than bfloat16" in text and "\n" not in text for text in told)


@pytest.mark.parametrize("given", [None, "int4"])
def test_loading_a_quantised_model_looks_whether_it_is_slow(given, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "say_if_slow", lambda *call: asked.append(call))
    load_model("nano", device="cpu")
    if given is None:
        save_model(load_model("nano", device="cpu", quantization="int8"), tmp_path, None)
        asked.clear()
    load_model("nano" if given else tmp_path, device="cpu", quantization=given)
    assert asked == [(given or "int8", "cpu")]


@pytest.mark.gpu
def test_the_card_is_named_when_a_model_is_loaded_onto_it(caplog):
    load.say_if_slow.cache_clear()
    load_model("nano", device="cuda", quantization="int8")
    load_model("nano", device="cuda", quantization="int8")
    assert sum("no kernel on CUDA" in record.getMessage() for record in caplog.records) == 1
