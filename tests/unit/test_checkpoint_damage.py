"""Damaged and wrong checkpoints: one clear error that names file and key, and no memory taken."""

from __future__ import annotations

import json
import random
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl2.checkpoint import load as load_module
from vl2.checkpoint.convert import convert_checkpoint
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.load import load_model, open_checkpoint
from vl2.checkpoint.save import save_model

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
INDEX = "model.safetensors.index.json"
KEY = "language.model.layers.1.mlp.experts.3.up_proj.weight"
BIAS = "projector.layers.0.bias"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in one file without index."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / "base_like" / name).read_bytes())
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A whole model in several shards with an index."""
    save_model(load_model(GOLDEN / "base_like"), tmp_path, max_shard_bytes=300_000)
    return tmp_path


def read(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def write(file: Path, header: object, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def refuse(folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load must end with this message, in one line, before any memory is taken."""

    def allocate(*_: object) -> None:
        pytest.fail("memory was taken before the headers were checked")

    monkeypatch.setattr(load_module, "_allocate", allocate)
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.pop(KEY), rf"{KEY} is missing in .*: expected shape \[32, 64\]"),
        (lambda t: t.pop("view_seperator"), "view_seperator is missing in"),
        (
            lambda t: t.update({BIAS: torch.zeros(63)}),
            rf"{BIAS} in .*model\.safetensors has shape \[63\]: .*expect.* \[64\]",
        ),
        (
            lambda t: t.update({KEY: torch.zeros(64, 32)}),
            rf"{KEY} in .* has shape \[64, 32\]: .*expect.* \[32, 64\]",
        ),
        (
            lambda t: t.update({"language.extra": torch.zeros(2)}),
            r"'language\.extra' in .*model\.safetensors is not a tensor of the model",
        ),
        (
            lambda t: t.update({KEY.replace(".3.", ".8."): torch.zeros(32, 64)}),
            r"experts\.8\.up_proj\.weight' in .* is not a tensor of the model",
        ),
        (
            lambda t: t.update({BIAS: torch.zeros(64, dtype=torch.int8)}),
            rf"'{BIAS}' in .*model\.safetensors has dtype 'I8', which cannot be loaded: .*F32",
        ),
        (
            lambda t: t.update({BIAS: torch.zeros(64, dtype=torch.float8_e4m3fn)}),
            rf"'{BIAS}' in .* has dtype 'F8_E4M3'",
        ),
    ],
)
def test_wrong_tensors(change: Change, pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    refuse(folder, pattern, monkeypatch)


def renamed(change: Callable[[str], str]) -> Change:
    """All keys by other names."""

    def apply(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[change(key)] = tensors.pop(key)

    return apply


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda k: f"_orig_mod.{k}", r"133 of 133 keys have '_orig_mod\.' .*torch\.compile"),
        (lambda k: f"module.{k}", r"133 of 133 keys have 'module\.' .*DataParallel"),
        (lambda k: f"model.{k}", r"133 of 133 keys have 'model\.' .*take 'model\.' out"),
        (lambda k: f"module._orig_mod.{k}", r"have 'module\._orig_mod\.' before"),
        (lambda k: f"student.vl.{k}", r"have 'student\.vl\.' before .* a wrapper writes"),
        (
            lambda k: k.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
            r" of 133 keys have '_checkpoint_wrapped_module\.' .*activation checkpointing",
        ),
        (
            lambda k: f"model.{k.replace('self_attn.', 'self_attn._fsdp_wrapped_module.')}",
            r"have 'model\.' before",
        ),
        (
            lambda k: "".join(reversed(k)),
            r"none of its 133 tensors, such as '.*', belongs to a DeepSeek-VL2: .* architecture",
        ),
        (lambda k: k.replace("q_proj.", "q_proj.base_layer."), "adapters that are not merged"),
        (lambda k: k.replace("q_proj.weight", "q_proj.qweight"), "another tool quantised it"),
    ],
)
def test_names_that_tell_the_cause(
    change: Callable[[str], str], pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    renamed(change)(tensors)
    save_file(tensors, file)
    refuse(folder, pattern, monkeypatch)


def overlap(header: dict[str, Any]) -> None:
    begin, end = header[BIAS]["data_offsets"]
    header[BIAS]["data_offsets"] = [begin - 256, end - 256]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (overlap, "overlaps the tensor before it"),
        (lambda h: h.pop(BIAS), "follows a hole"),
        (lambda h: h[BIAS].update(shape=[2**62, 4]), f"{BIAS}' of .* takes .* bytes but has"),
        (lambda h: h[BIAS].update(shape=[-64]), f"shape of '{BIAS}' is .*expected a list of"),
        (lambda h: h[BIAS].update(shape=[64.0]), f"shape of '{BIAS}'"),
        (lambda h: h[BIAS].update(shape=[True]), f"shape of '{BIAS}'"),
        (lambda h: h[BIAS].update(shape=[1] * 10**5), f"shape of '{BIAS}'"),
        (lambda h: h[BIAS].update(shape=None), f"shape of '{BIAS}'"),
        (lambda h: h[BIAS].update(data_offsets=[0]), f"{BIAS}' of .* but has offsets"),
        (lambda h: h[BIAS].update(data_offsets=[0, 10**400]), f"data_offsets of '{BIAS}'"),
        (lambda h: h[BIAS].update(dtype="F33"), "has dtype 'F33'"),
        (lambda h: h[BIAS].update(dtype=["F32"]), "has dtype"),
        (lambda h: h.update({BIAS: 7}), f"the entry of '{BIAS}' is 7"),
    ],
)
def test_wrong_headers(
    change: Callable[[dict[str, Any]], object],
    pattern: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    file = folder / "model.safetensors"
    header, data = read(file)
    change(header)
    write(file, header, data)
    refuse(folder, pattern, monkeypatch)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "its header should take 0 bytes, the file has 0"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"\x07\0\0", "is not an intact safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "its header should take 9223372036854775808 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "its header is list, expected an object"),
        ((2).to_bytes(8, "little") + b"{", "header should take 2 bytes"),
        ((4).to_bytes(8, "little") + b"{\xff\xff}", "its header cannot be read"),
        ((10**6).to_bytes(8, "little") + b"[" * 10**6, "its header cannot be read"),
        ((19).to_bytes(8, "little") + b'{"a": {}, "a": {}} ', "the key 'a' is in it twice"),
        ((5010).to_bytes(8, "little") + b'{"a": [' + b"9" * 5000 + b"]} ", "cannot be read"),
        (b"<html>404 Not Found</html>" * 9, "is not an intact safetensors file"),
    ],
)
def test_files_that_are_no_safetensors(
    content: bytes, pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "model.safetensors").write_bytes(content)
    refuse(folder, rf"model\.safetensors .*{pattern}", monkeypatch)


def test_truncated_and_padded_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 5000, 8):
        file.write_bytes(whole[:size])
        refuse(folder, r"model\.safetensors is not an intact safetensors file", monkeypatch)
    file.write_bytes(whole + b"\0")
    refuse(folder, "its tensors end at byte", monkeypatch)


def test_a_header_of_a_gigabyte_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((2**30).to_bytes(8, "little") + b'{"a": ')
        stream.truncate(2**31)
    tracemalloc.start()
    refuse(folder, "its header takes 1073741824 bytes, at most", monkeypatch)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_file_that_shrinks_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file, allocate = folder / "model.safetensors", load_module._allocate

    def shrink(*arguments: Any) -> dict[str, torch.Tensor]:
        with file.open("r+b") as stream:
            stream.truncate(500_000)
        return allocate(*arguments)

    monkeypatch.setattr(load_module, "_allocate", shrink)
    with pytest.raises(CheckpointError, match=r"it ended inside '.*' while it was read"):
        load_model(folder)


def test_fuzzed_headers_never_load_something_else(folder: Path):
    """200 mutations: a clean error, or tensors of the same names, shapes and dtypes."""
    file, model = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    model["language_config"]["num_hidden_layers"] = model["vision_config"]["layers"] = 1
    (folder / "config.json").write_text(json.dumps(model))
    deeper = re.compile(r".*\.(layers|blocks)\.[12]\..*")
    tensors = load_file(file)
    kept = {k: t for k, t in tensors.items() if k.startswith("projector") or not deeper.match(k)}
    save_file(kept, file)
    header, data = read(file)
    expected = [tensor for tensor, _ in open_checkpoint(folder).places]
    text = json.dumps(header).encode()
    dice = random.Random(0)
    refused = 0
    for _ in range(200):
        mutant, length = bytearray(text), len(text)
        kind = dice.randrange(5)
        if kind == 0:
            length = dice.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
        elif kind == 1:
            for _ in range(dice.randrange(1, 4)):
                mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        elif kind == 2:
            at = dice.randrange(len(mutant))
            del mutant[at : at + dice.randrange(1, 200)]
        else:
            mutant = bytearray(json.dumps(mutated(header, dice)).encode())
        write(file, bytes(mutant), data, length if kind == 0 else None)
        try:
            found = [tensor for tensor, _ in open_checkpoint(folder).places]
        except CheckpointError:
            refused += 1
            continue
        places = [(t.key, t.shape, t.dtype, t.nbytes) for t in found]
        assert places == [(t.key, t.shape, t.dtype, t.nbytes) for t in expected]
    assert refused > 150


def mutated(header: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """The header with one field of one tensor replaced."""
    copy = json.loads(json.dumps(header))
    entry = copy[dice.choice([key for key in copy if key != "__metadata__"])]
    odd = [None, -1, 0, 1.5, 2**63, 10**30, "", "F16", "F64", "BOOL", [], {}, [0], [0, 0], True]
    field = dice.choice(["dtype", "shape", "data_offsets", "shape element", "offset", "drop"])
    if field == "drop":
        entry.pop(dice.choice(list(entry)))
    elif field == "shape element":
        entry["shape"][dice.randrange(len(entry["shape"]))] = dice.choice(odd)
    elif field == "offset":
        entry["data_offsets"][dice.randrange(2)] += dice.choice([-4, 4, 1, 10**9, -(10**9), 2**64])
    else:
        entry[field] = dice.choice(odd)
    return copy


def test_index_is_checked(sharded: Path, monkeypatch: pytest.MonkeyPatch):
    file = sharded / INDEX
    index = json.loads(file.read_text())
    places = index["weight_map"]
    shard = places[KEY]
    other = next(name for name in places.values() if name != shard)

    def with_map(**changes: object) -> None:
        file.write_text(json.dumps({**index, "weight_map": {**places, **changes}}))

    with_map(**{KEY: other})
    refuse(sharded, rf"{shard} holds '{KEY}' but .*index\.json says {other}", monkeypatch)
    with_map(ghost=shard)
    refuse(sharded, rf"'ghost' is missing: {INDEX} places it in .*{shard}", monkeypatch)
    for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", 7, "x.bin", ""):
        with_map(ghost=name)
        refuse(sharded, r"places 'ghost' in .*: expected NAME\.safetensors", monkeypatch)
    with_map(ghost="none.safetensors")
    refuse(sharded, r"none\.safetensors is missing but .* names it", monkeypatch)
    for text in ("[]", "{}", '{"weight_map": []}'):
        file.write_text(text)
        refuse(sharded, "has no weight_map", monkeypatch)
    for text in ("{", "[" * 10**5):
        file.write_text(text)
        refuse(sharded, "cannot be read as JSON", monkeypatch)


def test_missing_and_doubled_shards(sharded: Path, monkeypatch: pytest.MonkeyPatch):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    gone = second.read_bytes()
    second.unlink()
    refuse(sharded, f"{second.name} is missing but", monkeypatch)
    kept = first.read_bytes()
    first.unlink()
    refuse(sharded, rf"lacks 2 of the \d+ files that .* names \({first.name}, ", monkeypatch)
    first.write_bytes(kept)
    (sharded / INDEX).unlink()
    refuse(sharded, "shards of a model of .* and no index", monkeypatch)
    second.write_bytes(gone)
    for shard in sharded.glob("*.safetensors"):
        shard.rename(shard.with_name(f"x{shard.name}"))
    (sharded / "y.safetensors").write_bytes((sharded / f"x{first.name}").read_bytes())
    refuse(sharded, rf"is in .*x{first.name} and in y\.safetensors", monkeypatch)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "model.safetensors").rename(folder / name)
    refuse(folder, rf"only pickled weights \({name}\).*convert them to safetensors", monkeypatch)
    (folder / name).unlink()
    refuse(folder, r"no \*\.safetensors in .*: give a folder with weights", monkeypatch)


def test_config_of_another_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(GOLDEN / "tiny_like" / "config.json", folder)
    refuse(folder, "config.json describes another model|different models", monkeypatch)
    config = json.loads((GOLDEN / "base_like" / "config.json").read_text())
    config["language_config"]["num_hidden_layers"] = 900
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, "asks for 900 layers but the files hold 133", monkeypatch)
    config["language_config"] |= {"num_hidden_layers": 3, "n_routed_experts": 65536}
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, "asks for 65536 experts but the files hold 133", monkeypatch)


def test_float16_does_not_overflow_silently(folder: Path, tmp_path: Path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[BIAS][3] = 70000.0
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"{BIAS} has values beyond float16's 65504: use bf"):
        load_model(folder, dtype="float16")
    with pytest.raises(CheckpointError, match=rf"{BIAS} has values beyond float16's 65504: use bf"):
        convert_checkpoint(folder, tmp_path / "half", "float16")
    assert not list((tmp_path / "half").iterdir())
    assert load_model(folder, dtype="bfloat16").projector.layers[0].bias[3] > 69000
