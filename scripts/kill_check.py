"""Kills and damages a checkpoint store in every way, prints one JSON line with what it survived.

    python scripts/kill_check.py --kills 200

- `kills`: SIGKILLs at uniformly drawn times while a process saves without pause; a tenth of them
  hit the store of tensors, the others the bare protocol of steps. `valid` of them left a newest
  step with exactly the right content, nothing lost that was reported as saved, and the next run
  could lock the folder, save on and leave no leftovers.
- `aborts`: the process ends itself before its n-th open, write, flush, rename or removal, for
  every n that three saves have; `recovered` counts those that pass the same check.
- `corruptions`: bits flipped, pages zeroed, files cut, lengthened, deleted, swapped, and replaced
  by last step's, each in a copy of a whole step. `refused`: found before a tensor changed, with an
  error in the log and the older step as the newest that is valid.

The exit code is 1 if any of the pairs differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from vl2.checkpoint.commit import committed, keep_last, lock_root, newest_valid, write_step
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.manifest import step_number

Ack = Callable[[int], object]
FLIPS = 50
PAGE = 4096
MEMORY_DISK = Path("/dev/shm")
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


class ErrorCount(logging.Handler):
    """Counts errors in the log instead of showing them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.errors += 1


def newest_step(root: Path) -> int:
    """Number of the newest valid step; 0 if there is none."""
    folder = newest_valid(root)
    return step_number(folder) if folder else 0


def content(step: int) -> dict[str, bytes]:
    """What the files of a step of the bare protocol hold."""
    draw = random.Random(step)
    return {name: draw.randbytes(2000) for name in ("a.bin", "b.bin")}


def write_content(folder: Path, step: int) -> None:
    """Write each file in two halves, so that it can be cut off in its middle."""
    for name, data in content(step).items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, data[:1000])
        os.write(descriptor, data[1000:])
        os.close(descriptor)


def save_plain(root: Path, steps: int, ack: Ack) -> None:
    """Save steps after the newest one with the bare protocol, and report each."""
    with lock_root(root):
        first = newest_step(root) + 1
        for step in range(first, first + steps):
            folder = write_step(root, step, lambda folder, step=step: write_content(folder, step))
            ack(step)
            keep_last(root, 2, valid=folder)


def plain_is_right(folder: Path) -> bool:
    """Whether a step of the bare protocol holds what was written."""
    expected = content(step_number(folder))
    return {name: (folder / name).read_bytes() for name in expected} == expected


def state(step: int) -> dict[str, Any]:
    """The tensors of a step of the store."""
    import torch  # noqa: PLC0415 (the processes of the bare protocol are forked without torch)

    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(40, 30, generator=generator), "n": torch.tensor(step)},
        "optimizer": {"m": torch.randn(500, generator=generator).bfloat16()},
    }


def save_store(root: Path, steps: int, ack: Ack) -> None:
    """Save steps with the store, every other one in its thread; report what is on the disk."""
    from vl2.checkpoint.dcp import CheckpointStore  # noqa: PLC0415 (imports torch)

    with CheckpointStore(root, keep=2, max_file_bytes=3000) as store:
        first = newest_step(root) + 1
        for step in range(first, first + steps):
            store.save(step, state(step), {"step": step}, asynchronous=step % 2 == 1)
            if step % 2 == 0:
                ack(step)


def store_is_right(folder: Path) -> bool:
    """Whether a step of the store loads with the values that were saved."""
    import torch  # noqa: PLC0415 (as above)

    from vl2.checkpoint.dcp import load_step  # noqa: PLC0415 (imports torch)

    expected, found = state(step_number(folder)), state(0)
    extra = load_step(folder, found)
    same = [torch.equal(a, b) for part in expected for a, b in pairs(expected[part], found[part])]
    return all(same) and extra == {"step": step_number(folder)}


def pairs(left: dict[str, Any], right: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Values of two dictionaries by key."""
    return ((left[key], right[key]) for key in left)


def fork(work: Callable[[Ack], None], delay: float | None) -> tuple[int, int]:
    """Run `work` in a fork and kill it after `delay`; returns the last report and the status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda step: os.write(writer, step.to_bytes(8, "little")))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writer)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader, "rb") as stream:
        reports = stream.read()
    return int.from_bytes(reports[-8:], "little"), status


def abort_before(number: int) -> None:
    """Let this process end itself before its `number`-th change of the disk."""
    count = 0

    def change() -> None:
        nonlocal count
        count += 1
        if count == number:
            os._exit(9)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opened or event in CHANGES:
            change()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (change(), function(*arguments))[1]

    sys.addaudithook(hook)
    os.fsync, os.write = wrap(os.fsync), wrap(os.write)


def recovers(
    root: Path, saved: int, in_flight: int, save: Any, right: Callable[[Path], bool]
) -> bool:
    """Whether the newest step is right and recent, and the next run works and cleans up."""
    newest = newest_valid(root)
    step = step_number(newest) if newest else 0
    if not saved <= step <= saved + in_flight or (newest and not right(newest)):
        return False
    save(root, 1, lambda _: None)
    names = {path.name for path in root.iterdir()} - {".lock"}
    return newest_step(root) == step + 1 and names == {f.name for f in committed(root)}


def kill(
    root: Path,
    kills: int,
    rng: random.Random,
    save: Callable[[Path, int, Ack], None],
    right: Callable[[Path], bool],
    *,
    longest: float,
    in_flight: int,
) -> int:
    """SIGKILL a process that saves, within `longest` seconds; returns how many kills it survived.

    Up to `in_flight` saves may be whole and not reported.
    """
    survived = 0
    for _ in range(kills):
        before = newest_step(root)
        saved, status = fork(lambda ack: save(root, 10**6, ack), rng.uniform(0, longest))
        good = recovers(root, max(saved, before), in_flight, save, right)
        survived += good and status == -signal.SIGKILL
    return survived


def abort_everywhere(base: Path) -> tuple[int, int]:
    """End three saves before each change of the disk; returns the numbers of aborts, recoveries."""
    recovered = 0
    for number in range(1, 10**6):
        root = base / str(number)

        def work(ack: Ack, root: Path = root, number: int = number) -> None:
            abort_before(number)
            save_plain(root, 3, ack)

        # A report is a write as well: an abort before it leaves a step that was not reported.
        saved, status = fork(work, None)
        if status == 0:
            return number - 1, recovered
        recovered += status == 9 and recovers(root, saved, 1, save_plain, plain_is_right)
    raise AssertionError("three saves do not end")


def edit(file: Path, change: Callable[[bytearray], Any]) -> None:
    """Change a file's bytes in place."""
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


def flip(data: bytearray, bit: int) -> None:
    """Flip one bit."""
    data[bit // 8] ^= 1 << bit % 8


def zero(data: bytearray, start: int) -> None:
    """Zero a page, or what there is of it."""
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))


def swap(left: Path, right: Path) -> None:
    """Swap the contents of two files."""
    first, second = left.read_bytes(), right.read_bytes()
    left.write_bytes(second)
    right.write_bytes(first)


def damages(
    folder: Path, older: Path, rng: random.Random
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and action of every kind of damage to every file of `folder`; undo each before the next.

    `older` is the step before, whose files get mixed in.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for file in files:
        size = file.stat().st_size
        for bit in [rng.randrange(size * 8) for _ in range(FLIPS)]:
            yield f"{file.name} bit {bit}", partial(edit, file, partial(flip, bit=bit))
        page = rng.randrange(-(-size // PAGE)) * PAGE
        yield f"{file.name} page", partial(edit, file, partial(zero, start=page))
        yield f"{file.name} cut", partial(edit, file, bytearray.pop)
        yield f"{file.name} longer", partial(edit, file, lambda data: data.append(0))
        yield f"{file.name} deleted", file.unlink
        yield f"{file.name} stale", partial(shutil.copyfile, older / file.name, file)
    for left, right in combinations(files, 2):
        yield f"{left.name} and {right.name} swapped", partial(swap, left, right)
    stale = partial(shutil.copytree, older, folder, dirs_exist_ok=True)
    yield "the step before under this name", stale
    yield "a file too many", lambda: (folder / "more.safetensors").write_bytes(b"0")


def damage_store(root: Path, rng: random.Random, log: ErrorCount) -> tuple[int, int]:
    """Damage copies of a step of the store; returns the numbers of damages and of refusals."""
    import torch  # noqa: PLC0415 (as above)

    from vl2.checkpoint.dcp import load_step  # noqa: PLC0415 (imports torch)

    save_store(root, 2, lambda _: None)
    older, newest = committed(root)
    whole = root / "whole"
    shutil.copytree(newest, whole)
    tried = refused = 0
    for name, damage in damages(newest, older, rng):
        damage()
        tried += 1
        before, target, errors = state(0), state(0), log.errors
        try:
            load_step(newest, target)
            found = False
        except CheckpointError:
            found = newest_valid(root) == older and log.errors == errors + 1
        same = [torch.equal(a, b) for part in before for a, b in pairs(before[part], target[part])]
        refused += found and all(same)
        if not (found and all(same)):
            sys.stderr.write(f"not refused: {name}\n")
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
    return tried, refused


def main() -> int:
    """Run everything, print the line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    # What a killed process wrote stays, flushed or not: a disk in memory shows the same, sooner.
    fast = str(MEMORY_DISK) if MEMORY_DISK.is_dir() else None
    parser.add_argument("--folder", default=fast, help="where to make a temporary folder")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    log = ErrorCount()
    logging.getLogger("vl2").addHandler(log)
    of_store = options.kills // 10
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        base = Path(name)
        root, count = base / "plain", options.kills - of_store
        valid = kill(root, count, rng, save_plain, plain_is_right, longest=0.04, in_flight=1)
        aborts, recovered = abort_everywhere(base / "aborts")
        # One save in the thread and one after it may be whole and not reported.
        root, count = base / "store", of_store
        valid += kill(root, count, rng, save_store, store_is_right, longest=0.15, in_flight=2)
        corruptions, refused = damage_store(base / "damaged", rng, log)
    line = {"kills": options.kills, "valid": valid, "aborts": aborts, "recovered": recovered}
    line |= {"corruptions": corruptions, "refused": refused}
    print(json.dumps(line))
    return int((options.kills, aborts, corruptions) != (valid, recovered, refused))


if __name__ == "__main__":
    sys.exit(main())
