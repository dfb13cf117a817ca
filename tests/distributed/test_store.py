"""The store of a run on two ranks: every layout, every failure, and the death of a rank."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.distributed.launch import rank_envs, run_ranks
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from vl2.checkpoint import commit, dcp
from vl2.checkpoint.commit import newest_valid
from vl2.checkpoint.dcp import CheckpointStore, load_step
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.manifest import step_number
from vl2.parallel.config import ParallelConfig
from vl2.parallel.mesh import Ranks, join, leave

pytestmark = pytest.mark.slow

EXTRA = {"loader": {"next": 640}, "note": "ä"}
SHAPES = {
    "even": (4, 6),
    "uneven": (5, 3),
    "single": (1,),  # less than there are ranks
    "none": (0, 3),
    "vector": (6,),
    "scalar": (),
}
LAYOUTS: dict[str, Callable[[str], Any]] = {
    "rows": lambda _: Shard(0),
    "columns": lambda name: Shard(len(SHAPES[name]) - 1),
    "copies": lambda _: Replicate(),
    "mixed": lambda name: Replicate() if name == "vector" else Shard(0),
}


def numbers(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def spread(tensors: dict[str, Tensor], layout: str, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Tensors with dimensions in parts, and one that every rank has whole."""
    return {
        name: distribute_tensor(tensor.clone(), mesh, [LAYOUTS[layout](name)])
        if tensor.ndim
        else tensor.clone()
        for name, tensor in tensors.items()
    }


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# --- what runs on the two ranks


def every_layout(store: CheckpointStore, mesh: DeviceMesh) -> dict[str, bool]:
    """Each layout saved, and read into every other one and into whole tensors."""
    found: dict[str, bool] = {}
    for step, saved in enumerate(LAYOUTS, start=1):
        store.save(step, {"model": spread(numbers(step), saved, mesh)}, EXTRA)
        folder = store.newest()
        assert folder is not None
        for wanted in LAYOUTS:
            target = spread(numbers(0), wanted, mesh)
            extra = store.load(folder, {"model": target})
            same = extra == EXTRA and equal(whole(target), numbers(step))
            found[f"{saved} to {wanted}"] = same
        target = numbers(0)
        store.load(folder, {"model": target})
        found[f"{saved} to whole"] = equal(target, numbers(step))
    return found


def later_changes(store: CheckpointStore, mesh: DeviceMesh) -> dict[str, bool]:
    """A save in the background, whose tensors change before a byte is written."""
    state, extra = spread(numbers(7), "rows", mesh), {"losses": [1.0]}
    store.save(7, state, extra)
    write, changed = dcp._write_tensors, threading.Event()

    def late(*arguments: Any) -> None:
        assert changed.wait(20)
        write(*arguments)

    with mock.patch.object(dcp, "_write_tensors", late):
        store.save(8, state, extra, asynchronous=True)
        for tensor in state.values():
            tensor.zero_()
        extra["losses"].append(2.0)
        changed.set()
        store.wait()
    one, two = (store.root / f"step-{step:08}" for step in (7, 8))
    kept, expected = numbers(0), numbers(0)
    extra, _ = load_step(two, kept), load_step(one, expected)
    return {"tensors": equal(kept, expected), "extra": extra == {"losses": [1.0]}}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def broken(place: str, here: bool) -> Iterator[None]:
    """No room: for the tensors of a rank, or for what the main one does before and behind them."""
    where = {"folder": (commit, "sweep"), "manifest": (commit, "write_manifest")}
    owner, name = where.get(place, (os, "fsync"))
    with mock.patch.object(owner, name, full) if here else mock.patch.object(dcp, "EXTRA"):
        yield


FAILURES = [
    ("folder", 0),
    ("tensors", 0),
    ("tensors", 1),
    ("manifest", 0),
]


def failing_save(
    store: CheckpointStore, state: dict[str, Tensor], how: str, step: int = 10
) -> Exception:
    try:
        store.save(step, state, EXTRA, asynchronous=how != "at once")
        if how == "waited for":
            store.wait()
        elif how == "met by the next save":
            store.save(step + 1, state, EXTRA)
    except Exception as error:
        return error
    pytest.fail("nothing failed")


def every_failure(store: CheckpointStore, mesh: DeviceMesh, ranks: Ranks) -> list[list[str]]:
    """What each failing save says on this rank; behind each one the store is as before."""
    told = []
    state = spread(numbers(9), "rows", mesh)
    store.save(9, state, EXTRA)
    for place, culprit in FAILURES:
        for how in ("at once", "waited for", "met by the next save"):
            with broken(place, ranks.rank == culprit):
                error = failing_save(store, state, how)
            newest = store.newest()
            assert newest is not None
            there = " ".join(sorted(path.name for path in store.root.glob("step-*")))
            told.append([type(error).__name__, str(error), newest.name, there])
            ranks.barrier()
    store.save(10, state, EXTRA)
    return told


def old_step_that_stays(store: CheckpointStore, mesh: DeviceMesh, ranks: Ranks) -> list[str]:
    """The main rank cannot remove a step that is too old; the new one is there nevertheless."""
    store.keep = 1
    with mock.patch.object(commit, "_remove", full if ranks.is_main else None):
        error = failing_save(store, spread(numbers(9), "rows", mesh), "at once", step=11)
    newest = store.newest()
    assert newest is not None
    return [str(error), newest.name]


def damage(store: CheckpointStore, mesh: DeviceMesh, ranks: Ranks) -> list[str]:
    """A step that is read is checked by the main rank, for all."""
    newest = store.newest()
    assert newest is not None
    ranks.barrier()
    if ranks.is_main:
        file = max(newest.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1])
    ranks.barrier()
    target = spread(numbers(0), "rows", mesh)
    with pytest.raises(CheckpointError) as error:
        store.load(newest, target)
    older = store.newest()
    assert older is not None
    return [str(error.value), str(equal(whole(target), numbers(0))), older.name]


def two(root: str) -> dict[str, Any]:
    ranks = join(ParallelConfig(), "cpu")
    assert ranks.meshes is not None
    mesh = ranks.meshes.dense["shard"]
    with CheckpointStore(root, keep=20, max_file_bytes=50, peers=ranks.apart()) as store:
        found = {
            "layouts": every_layout(store, mesh),
            "later changes": later_changes(store, mesh),
            "failures": every_failure(store, mesh, ranks),
            "old step": old_step_that_stays(store, mesh, ranks),
        }
    with CheckpointStore(root, peers=ranks.apart()) as store:
        with pytest.raises(ValueError, match="in use by another") as error:
            CheckpointStore(root, peers=ranks.apart())
        found["damage"] = damage(store, mesh, ranks)
    leave()
    return {**found, "locked": str(error.value)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def found(root: Path) -> list[dict[str, Any]]:
    return run_ranks(2, two, str(root), group=False)


def test_every_layout_is_read_into_every_other_one(found: list[dict[str, Any]]):
    for rank in found:
        assert len(rank["layouts"]) == len(LAYOUTS) * (len(LAYOUTS) + 1)
        assert all(rank["layouts"].values()), rank["layouts"]


def test_what_two_ranks_saved_is_read_by_one(found: list[dict[str, Any]], root: Path):
    assert found
    for step, layout in enumerate(LAYOUTS, start=1):
        target = numbers(0)
        assert load_step(root / f"step-{step:08}", {"model": target}) == EXTRA
        assert equal(target, numbers(step)), layout
    names = [path.name for path in (root / "step-00000001").glob("*.safetensors")]
    assert len({name.partition("-model")[0] for name in names}) == 2  # both ranks wrote


def test_a_save_in_the_background_holds_what_was_there_when_it_began(found: list[dict[str, Any]]):
    assert all(rank["later changes"] == {"tensors": True, "extra": True} for rank in found)


def test_a_failed_save_is_one_error_on_all_ranks_and_harmless(
    found: list[dict[str, Any]], root: Path
):
    before = " ".join(f"step-{step:08}" for step in (1, 2, 3, 4, 7, 8, 9))
    message = f"cannot save step 10 in {root}: No space left on device; make room, or choose"
    for main, other in zip(*(rank["failures"] for rank in found), strict=True):
        for kind, text, newest, there in (main, other):
            assert kind in ("SaveError", "PeerError"), (kind, text)
            assert text.startswith(message), text
            assert (newest, there) == ("step-00000009", before)


def test_a_damaged_step_is_refused_by_all_ranks_before_a_tensor_changes(
    found: list[dict[str, Any]], root: Path
):
    for told, unchanged, older in (rank["damage"] for rank in found):
        assert "the step is damaged" in told
        assert (unchanged, older) == ("True", "step-00000010")


def test_an_old_step_that_cannot_be_removed_is_an_error_on_all_ranks(found: list[dict[str, Any]]):
    for told, newest in (rank["old step"] for rank in found):
        assert "cannot remove old steps" in told
        assert newest == "step-00000011"


def test_a_folder_in_use_is_refused_by_all_ranks(found: list[dict[str, Any]]):
    assert all("in use by another training run" in rank["locked"] for rank in found)


# --- the death of a rank


KILLS = 6


def state_of(step: int) -> Tensor:
    return torch.arange(60_000, dtype=torch.float32) + step


def save_until_killed(root: str, env: dict[str, str], log: str) -> None:
    """Save step after step, every second one in the background, and note what is there."""
    os.environ.update(env)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    ranks = join(ParallelConfig(), "cpu")
    assert ranks.meshes is not None
    mesh = ranks.meshes.dense["shard"]
    store = CheckpointStore(root, peers=ranks.apart())
    newest = store.newest()
    first = step_number(newest) + 1 if newest else 1
    for step in range(first, first + 1000):
        state = {"w": distribute_tensor(state_of(step), mesh, [Shard(0)]), "n": torch.tensor(step)}
        store.save(step, state, {"step": step}, asynchronous=step % 2 == 0)
        if ranks.is_main and step % 2:
            with Path(log).open("a") as file:
                file.write(f"{step}\n")


def kill_a_rank(root: str, log: str, victim: int, delay: float) -> list[int | bool]:
    """Newest step that was reported, newest valid one, and whether the other rank ended."""
    context = multiprocessing.get_context("fork")
    envs = rank_envs(2)
    ranks = [context.Process(target=save_until_killed, args=(root, env, log)) for env in envs]
    before = len(Path(log).read_text().splitlines())
    for rank in ranks:
        rank.start()
    while len(Path(log).read_text().splitlines()) == before:
        assert all(rank.is_alive() for rank in ranks)
        time.sleep(0.01)
    time.sleep(delay)
    ranks[victim].kill()
    ranks[1 - victim].join(10)
    ended = not ranks[1 - victim].is_alive()
    for rank in ranks:
        rank.kill()
        rank.join()
    reported = int(Path(log).read_text().splitlines()[-1])
    newest = newest_valid(Path(root))
    assert newest is not None
    target = {"w": state_of(0), "n": torch.tensor(0)}
    step = load_step(newest, target)["step"]
    whole = torch.equal(target["w"], state_of(step)) and int(target["n"]) == step
    return [reported, step if whole else -1, ended]


def kills(root: str, log: str) -> list[list[int | bool]]:
    """Ranks are forked from here, where torch is imported already."""
    Path(log).touch()
    rng = random.Random(0)
    return [kill_a_rank(root, log, number % 2, rng.uniform(0, 0.2)) for number in range(KILLS)]


def test_a_rank_that_is_killed_leaves_a_valid_step_and_no_rank_that_waits(tmp_path: Path):
    [found] = run_ranks(1, kills, str(tmp_path / "root"), str(tmp_path / "log"), group=False)
    assert len(found) == KILLS
    for reported, valid, ended in found:
        assert valid in (reported, reported + 1, reported + 2), found
        assert ended, found
