"""The store of a training run: exact, checked before a tensor changes, honest about failures."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vl2.checkpoint import dcp as dcp_module
from vl2.checkpoint.commit import committed, step_number
from vl2.checkpoint.dcp import CheckpointStore, load_step, read_extra
from vl2.checkpoint.errors import CheckpointError, SaveError
from vl2.checkpoint.peers import Peers

EXTRA = {"step": 1, "loader": {"next": 640}, "rng": [1, 2**63], "loss": 0.1, "note": "ä", "x": None}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path) as opened:
        yield opened


def small(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((3, 4), float(value))}, "n": torch.tensor(int(value))}


def equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Same keys, dtypes and bits, at every depth."""
    if left.keys() != right.keys():
        return False
    return all(
        equal(value, right[key])
        if isinstance(value, Mapping)
        else value.dtype == right[key].dtype and torch.equal(value, right[key])
        for key, value in left.items()
    )


def test_every_kind_of_tensor_comes_back_exactly(tmp_path: Path):
    tied = torch.randn(5, 6)
    saved = {
        "float32": tied,
        "tied": tied,
        "bfloat16": torch.randn(7).bfloat16(),
        "float64": torch.tensor(1 / 3, dtype=torch.float64),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.arange(200, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(4, 6).t(),
        "strided": torch.randn(20)[::3],
        "special": torch.tensor([float("inf"), -0.0, 1e-45]),
        "deep": {"er": {"parameter": nn.Parameter(torch.randn(3))}},
    }
    with CheckpointStore(tmp_path, max_file_bytes=100) as store:
        store.save(1, saved, EXTRA)
        folder = store.newest()
        assert folder is not None
        assert len(list(folder.glob("*.safetensors"))) > 3
        loaded = {k: torch.zeros_like(v) for k, v in saved.items() if isinstance(v, Tensor)}
        loaded |= {"deep": {"er": {"parameter": nn.Parameter(torch.zeros(3))}}}
        assert store.load(folder, loaded) == EXTRA
    assert equal(loaded, saved)
    assert read_extra(folder) == EXTRA


def test_nothing_is_pickled(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("unpickled")

    store.save(1, small(1), EXTRA)
    folder = store.root / "step-00000001"
    suffixes = {p.suffix for p in folder.iterdir()}
    assert suffixes == {".safetensors", ".json", ""}
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    target = small(0)
    load_step(folder, target)
    assert equal(target, small(1))


def test_old_steps_go(tmp_path: Path):
    with CheckpointStore(tmp_path, keep=2) as store:
        for step in (1, 2, 3, 4):
            store.save(step, small(step), {}, asynchronous=step % 2 == 0)
        store.wait()
        assert [step_number(folder) for folder in committed(tmp_path)] == [3, 4]
        store.discard_after(3)
        assert store.newest() == tmp_path / "step-00000003"


class Gate:
    """Holds the writer thread until it is opened; counts how many writes run at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.running = self.most = 0
        write = dcp_module._write_tensors

        def wait(folder: Path, state: dict[str, Tensor], most: int, peers: Peers) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            assert self.open.wait(20)
            write(folder, state, most, peers)
            self.running -= 1

        monkeypatch.setattr(dcp_module, "_write_tensors", wait)


def test_an_asynchronous_save_holds_what_was_there_when_it_began(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    weight = nn.Parameter(torch.randn(4, 4).t())
    buffer, extra = torch.arange(3), {"losses": [1.0]}
    before = {"weight": weight.detach().clone(), "buffer": buffer.clone()}
    store.save(1, {"weight": weight, "buffer": buffer}, extra, asynchronous=True)
    with torch.no_grad():
        weight.zero_()
    buffer.zero_()
    extra["losses"].append(2.0)
    assert committed(store.root) == []
    gate.open.set()
    store.wait()
    target = {"weight": torch.zeros(4, 4), "buffer": torch.zeros(3, dtype=torch.int64)}
    assert load_step(store.root / "step-00000001", target) == {"losses": [1.0]}
    assert equal(target, before)


def test_one_save_is_in_flight(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch):
    gate = Gate(monkeypatch)
    store.save(1, small(1), {}, asynchronous=True)
    opener = threading.Timer(0.2, gate.open.set)
    opener.start()
    began = time.perf_counter()
    store.save(2, small(2), {}, asynchronous=True)
    assert time.perf_counter() - began > 0.1
    store.close()
    opener.join()
    assert gate.most == 1
    assert [step_number(folder) for folder in committed(store.root)] == [1, 2]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A switch that lets every flush fail, the ones inside DCP included."""
    fsync, full = os.fsync, False

    def fail(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    def switch(state: bool) -> None:
        nonlocal full
        full = state

    monkeypatch.setattr(os, "fsync", fail)
    return switch


def test_a_failed_save_is_reported_and_harmless(
    store: CheckpointStore, full_disk: Callable[[bool], None]
):
    message = f"cannot save step 2 in {store.root}: No space left on device"
    store.save(1, small(1), {})
    full_disk(True)
    with pytest.raises(SaveError, match=message):
        store.save(2, small(2), {})
    store.save(2, small(2), {}, asynchronous=True)
    with pytest.raises(SaveError, match=message):
        store.wait()
    store.save(2, small(2), {}, asynchronous=True)
    with pytest.raises(SaveError, match=message):
        store.save(3, small(3), {})
    assert {p.name for p in store.root.iterdir()} == {".lock", "step-00000001"}
    full_disk(False)
    store.save(3, small(3), {})
    assert store.newest() == store.root / "step-00000003"


def test_closing_reports_a_failed_save(tmp_path: Path, full_disk: Callable[[bool], None]):
    store = CheckpointStore(tmp_path)
    full_disk(True)
    store.save(1, small(1), {}, asynchronous=True)
    with pytest.raises(SaveError, match="No space left"):
        store.close()
    store.close()
    with pytest.raises(ValueError, match="is closed"):
        store.save(1, small(1), {})
    full_disk(False)
    CheckpointStore(tmp_path).close()


def test_a_failed_save_does_not_hide_the_error_of_the_block(
    tmp_path: Path, full_disk: Callable[[bool], None], caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        with CheckpointStore(tmp_path) as store:
            full_disk(True)
            store.save(1, small(1), {}, asynchronous=True)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()
    assert "the last save failed as well" in caplog.text


def test_a_second_store_is_refused(store: CheckpointStore):
    with pytest.raises(ValueError, match="in use by another training run"):
        CheckpointStore(store.root)
    store.close()
    CheckpointStore(store.root).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(b=torch.zeros(1)), "b is not in"),
        (lambda t: t.pop("n"), "holds n, which has no place"),
        (lambda t: t["model"].update(w=torch.zeros(4, 3)), r"model\.w is \[3, 4\] torch\.float32"),
        (lambda t: t["model"].update(w=torch.zeros(3, 4).half()), r"expected .* torch\.float16"),
        (lambda t: t.update(n=torch.zeros(1, dtype=torch.int64)), r"n is \[\] torch\.int64"),
    ],
)
def test_other_tensors_are_refused_before_one_changes(
    store: CheckpointStore, change: Callable[[dict[str, Any]], object], message: str
):
    store.save(1, small(1), {})
    target, before = small(0), small(0)
    change(target)
    change(before)
    with pytest.raises(CheckpointError, match=message):
        store.load(store.root / "step-00000001", target)
    assert equal(target, before)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("number", range(5))
def test_damage_is_found_before_a_tensor_changes_and_the_older_step_taken(
    store: CheckpointStore,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    number: int,
):
    store.max_file_bytes = 1  # a file for each of the two tensors
    for step in (1, 2):
        store.save(step, small(step), {"step": step})
    newest = store.newest()
    assert newest is not None
    files = sorted(newest.iterdir())
    assert len(files) == 5
    damage(files[number])
    target = small(0)
    with pytest.raises(CheckpointError, match="the step is damaged"):
        store.load(newest, target)
    assert equal(target, small(0))
    older = store.root / "step-00000001"
    assert store.newest() == older
    assert "skipped step 2" in caplog.text
    assert load_step(older, target) == {"step": 1}
    assert equal(target, small(1))


@pytest.mark.parametrize(
    ("tensors", "extra", "message"),
    [
        ({"a": {"b": 1}}, {}, r"a\.b is int, no tensor"),
        ({"a": {0: torch.zeros(1)}}, {}, "the key 0"),
        ({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, {}, r"a\.b names two tensors"),
        ({}, {"rng": [(1, 2)]}, r"extra\.rng\[0\] is tuple"),
        ({}, {"a": {1: 2}}, r"extra\.a has the key 1"),
        ({}, {"t": torch.zeros(1)}, r"extra\.t is Tensor"),
    ],
)
def test_what_would_not_come_back_is_refused(
    store: CheckpointStore, tensors: dict[str, Any], extra: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        store.save(1, tensors, extra)
    assert committed(store.root) == []


def test_a_process_group_is_left_alone_and_its_shards_are_refused(store: CheckpointStore):
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        store.save(1, small(1), {})
        target = small(0)
        load_step(store.root / "step-00000001", target)
        assert equal(target, small(1))
        mesh = init_device_mesh("cpu", (1,))
        with pytest.raises(ValueError, match="is distributed over ranks"):
            store.save(2, {"w": distribute_tensor(torch.zeros(2), mesh, [Replicate()])}, {})
    finally:
        dist.destroy_process_group()


def test_an_empty_state_is_a_step(store: CheckpointStore):
    store.save(0, {}, {"only": "extra"})
    assert load_step(store.root / "step-00000000", {}) == {"only": "extra"}


@pytest.mark.parametrize("bad", [{"keep": 0}, {"max_file_bytes": 0}])
def test_bad_settings(tmp_path: Path, bad: dict[str, int]):
    with pytest.raises(ValueError, match="expected at least 1"):
        CheckpointStore(tmp_path, **bad)
    CheckpointStore(tmp_path).close()
