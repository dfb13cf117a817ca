"""Loading and saving: bitwise, in place, in every dtype and layout, without a second copy."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl2.checkpoint import save as save_module
from vl2.checkpoint.convert import convert_checkpoint
from vl2.checkpoint.errors import CheckpointError, SaveError
from vl2.checkpoint.layout import ours, table
from vl2.checkpoint.load import load_model
from vl2.checkpoint.save import save_model
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import SamConfig, VL2Config
from vl2.model.vl2 import VL2Model

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
FOLDERS = sorted(folder for folder in GOLDEN.iterdir() if folder.is_dir())
BIAS = "language.model.layers.1.mlp.gate.e_score_correction_bias"
SHARD = re.compile(r"model-\d{5}-of-\d{6}\.safetensors")


def random_model(dtype: torch.dtype = torch.bfloat16) -> VL2Model:
    """A Base-like model with nothing left at a default: biases and norms are random, too."""
    config = VL2Config.from_pretrained(GOLDEN / "base_like")
    language = replace(config.language_config, num_hidden_layers=2, n_routed_experts=4)
    vision = replace(config.vision_config, layers=1)
    model = VL2Model(replace(config, language_config=language, vision_config=vision))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
    return model.to(dtype)


def assert_same(first: VL2Model, second: VL2Model) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    for key, tensor in a.items():
        assert tensor.dtype == b[key].dtype, key
        assert torch.equal(tensor, b[key]), key


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_released_tensors_land_in_their_places(folder: Path):
    model = load_model(folder)
    state = model.state_dict()
    released = load_file(folder / "model.safetensors")
    for key, expected in released.items():
        name, expert = ours(key)
        found = state[name] if expert is None else state[name][expert]
        assert torch.equal(found, expected), key
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for t in released.values())
    assert not model.training
    assert all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_released_file_comes_back_bitwise(folder: Path, tmp_path: Path):
    save_model(load_model(folder), tmp_path, max_shard_bytes=None)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(".attn_pool." in key for key in after)


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "nano"])
def test_table_and_its_inverse_agree(preset: str):
    state = build_skeleton(getattr(VL2Config, preset)()).state_dict()
    slots = dict(table(state))
    assert all(ours(key) == (slot.key, slot.expert) for key, slot in slots.items())
    assert {slot.key for slot in slots.values()} == set(state)
    assert list(dict(table(state, "stacked"))) == list(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_model_loads_bitwise(dtype: torch.dtype, tmp_path: Path):
    model = random_model(dtype)
    save_model(model, tmp_path, max_shard_bytes=100_000)
    assert_same(model, load_model(tmp_path))

    shards = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert all(SHARD.fullmatch(shard.name) for shard in shards)
    held = {key: shard.name for shard in shards for key in load_file(shard)}
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DeepseekVLV2ForCausalLM"]
    assert config["torch_dtype"] == str(dtype)[6:]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["config.json", "model.safetensors.index.json", *(s.name for s in shards)]
    )


def test_other_libraries_read_and_write_the_same_files(tmp_path: Path):
    model = random_model()
    save_model(model, tmp_path / "ours", max_shard_bytes=None)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    (tmp_path / "theirs").mkdir()
    shutil.copy(tmp_path / "ours" / "config.json", tmp_path / "theirs")
    keys = sorted(tensors, reverse=True)
    for name, part in (("b.safetensors", keys[::2]), ("a.safetensors", keys[1::2])):
        save_file({key: tensors[key] for key in part}, tmp_path / "theirs" / name)
    assert_same(model, load_model(tmp_path / "theirs"))


def test_stacked_layout_loads_bitwise(tmp_path: Path):
    model = random_model()
    save_model(model, tmp_path, layout="stacked")
    shard = tmp_path / "model-00001-of-000001.safetensors"
    assert sorted(load_file(shard)) == sorted(model.state_dict())
    assert_same(model, load_model(tmp_path))


def test_unnumbered_shards_and_numbered_ones_need_no_index(tmp_path: Path):
    model = random_model()
    save_model(model, tmp_path, max_shard_bytes=100_000)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same(model, load_model(tmp_path))
    for number, shard in enumerate(sorted(tmp_path.glob("*.safetensors"))):
        shard.rename(tmp_path / f"part{number}.safetensors")
    assert_same(model, load_model(tmp_path))


def test_dtype_follows_argument_config_and_files(tmp_path: Path):
    save_model(random_model(torch.float32), tmp_path)
    assert load_model(tmp_path).image_newline.dtype == torch.float32
    half = load_model(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.state_dict()[BIAS].dtype == torch.float32
    exact = load_model(tmp_path).state_dict()
    assert torch.equal(half.state_dict()[BIAS], exact[BIAS])
    for key, parameter in half.named_parameters():
        assert torch.equal(parameter, exact[key].to(torch.bfloat16)), key

    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "torch_dtype": "float16"}))
    assert load_model(tmp_path).image_newline.dtype == torch.float16
    del config["torch_dtype"]
    file.write_text(json.dumps(config))
    assert load_model(tmp_path).image_newline.dtype == torch.float32


def test_wrong_arguments_name_the_remedy():
    folder = GOLDEN / "base_like"
    with pytest.raises(
        ValueError, match="quantization is 'int2': expected one of int8, float8, int4"
    ):
        load_model(folder, quantization="int2")
    with pytest.raises(ValueError, match="dtype is int8: expected auto, float32"):
        load_model(folder, dtype="int8")
    with pytest.raises(ValueError, match=r"dtype is torch\.float64"):
        load_model(folder, dtype=torch.float64)
    with pytest.raises(ValueError, match="device is 'gpu': expected auto, cpu, cuda"):
        load_model(folder, device="gpu")
    with pytest.raises(ValueError, match="layout is 'fused': expected one of released, stacked"):
        save_model(random_model(), "unused", layout="fused")
    with pytest.raises(ValueError, match=r"torch\.float64: only torch\.float32"):
        save_model(random_model().to(torch.float64), "unused")


def test_hybrid_tower_round_trips(tmp_path: Path):
    config = random_model().config
    sam = SamConfig(
        image_size=128, width=32, layers=2, heads=2, window_size=4,
        global_attn_indexes=(0, 1), neck_channels=8, downsample_channels=(16, 16),
    )  # fmt: skip
    hybrid = replace(config, vision_config=replace(config.vision_config, tower="hybrid", sam=sam))
    model = VL2Model(hybrid)
    model.init_weights(torch.Generator().manual_seed(0))
    assert any(key.startswith("vision_high.") for key in model.state_dict())
    save_model(model, tmp_path)
    assert_same(model, load_model(tmp_path))


@pytest.mark.gpu
def test_cuda_holds_the_same_bits(tmp_path: Path):
    save_model(random_model(), tmp_path)
    for dtype in ("bfloat16", "float32"):
        here = load_model(tmp_path, dtype=dtype, device="cpu").state_dict()
        there = load_model(tmp_path, dtype=dtype, device="auto")
        assert all(tensor.is_cuda for tensor in there.state_dict().values())
        assert all(torch.equal(here[key], t.cpu()) for key, t in there.state_dict().items())
    save_model(there, tmp_path / "copy")
    assert_same(load_model(tmp_path, "float32", "cpu"), load_model(tmp_path / "copy", device="cpu"))


def test_progress_counts_every_byte(tmp_path: Path):
    heard: list[tuple[int, int]] = []
    model = load_model(GOLDEN / "base_like", on_progress=lambda *step: heard.append(step))
    size = sum(t.nbytes for t in model.state_dict().values())
    assert heard[-1] == (size, size)
    assert heard == sorted(heard)
    heard.clear()
    save_model(model, tmp_path, on_progress=lambda *step: heard.append(step))
    assert heard[-1] == (size, size)


def test_code_beside_the_weights_is_not_run(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN / "tiny_like", tmp_path / "model"))
    mark = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (folder / "modeling.py").write_text(code)
    (folder / "__init__.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)
    convert_checkpoint(folder, tmp_path / "converted")
    assert not mark.exists()
    assert not list((tmp_path / "converted").glob("*.py"))


PEAK = """
import re, sys, torch
from pathlib import Path
# What ru_maxrss reports, but that starts at the parent's peak when a process is spawned.
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
before = peak()
from vl2.checkpoint.load import load_model
for dtype in sys.argv[2:]:
    state = load_model(sys.argv[1], dtype=dtype, device="cpu").state_dict()
    assert all(bool(tensor.flatten()[-1] == 0) for tensor in state.values())
    size = sum(tensor.nbytes for tensor in state.values())
    print(size, (peak() - before) / size)
    del state
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_is_one_copy(tmp_path: Path):
    """Measured ratios: 1.06 (bfloat16 read as it is) and 1.05 (converted to float32)."""
    config = VL2Config.from_pretrained(GOLDEN / "base_like")
    sizes = {"hidden_size": 768, "moe_intermediate_size": 768, "n_routed_experts": 40}
    language = replace(config.language_config, vocab_size=4000, **sizes)
    projector = replace(config.projector_config, n_embed=768)
    big = replace(config, language_config=language, projector_config=projector)
    header, end = {}, 0
    for key, slot in table(build_skeleton(big).state_dict()):
        offsets = [end, end := end + 2 * math.prod(slot.shape)]
        header[key] = {"dtype": "BF16", "shape": slot.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)  # zeros that take no room on the disk
    big.save(tmp_path)

    command = [sys.executable, "-c", PEAK, str(tmp_path), "bfloat16", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        size, ratio = map(float, line.split())
        assert size > 300e6
        assert 0.95 < ratio <= 1.15, done.stdout


def test_interrupted_commit_never_mixes_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = random_model(), random_model()
    rename = Path.replace
    outcomes = set()
    for stop in range(7):
        folder = tmp_path / str(stop)
        save_model(old, folder, max_shard_bytes=200_000)
        done = 0

        def interrupted(self: Path, target: Path, stop: int = stop) -> Path:
            nonlocal done
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", interrupted)
        try:
            save_model(new, folder, max_shard_bytes=250_000)
            outcomes.add("saved")
        except KeyboardInterrupt:
            outcomes.add("interrupted")
        monkeypatch.setattr(Path, "replace", rename)
        try:
            assert_same(new, load_model(folder))
            outcomes.add("new")
        except CheckpointError:
            outcomes.add("refused")
        save_model(new, folder)
        assert_same(new, load_model(folder))
        assert not list(folder.glob("*partial"))
    assert outcomes == {"saved", "interrupted", "new", "refused"}


def test_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = random_model()
    save_model(old, tmp_path, max_shard_bytes=100_000)
    before = sorted(tmp_path.iterdir())
    write, count = save_module.write_tensors, 0

    def full(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(save_module, "write_tensors", full)
        with pytest.raises(SaveError, match=r"cannot save into .*: No space left on device"):
            save_model(random_model(), tmp_path, max_shard_bytes=100_000)
    assert sorted(tmp_path.iterdir()) == before
    assert_same(old, load_model(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
        with pytest.raises(SaveError, match=r"1 B free but the model takes .* KiB"):
            save_model(old, tmp_path)
    assert_same(old, load_model(tmp_path))
