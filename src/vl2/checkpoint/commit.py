"""Steps of a training run on the disk: a step is whole and checked, or it does not count.

    root/.lock                   held by the one process that writes
    root/step-00000020.tmp/      is being written
    root/step-00000020/          the step's files, manifest.json, COMMITTED
    root/step-00000010.damaged/  failed its check and was overtaken; kept for inspection

A step is written under its temporary name: the files, then `manifest.json` with the size and the
sha256 of each, all flushed to the disk; then the folder takes its name, and `COMMITTED`, which
holds the sha256 of the manifest, comes last. What is cut off before that has no `COMMITTED` and is
swept by the next write. Whoever removes a step removes `COMMITTED` first.
No torch here: the order of the operations is tested by killing processes hundreds of times.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vl2.checkpoint.errors import CheckpointError, SaveError
from vl2.checkpoint.lock import take
from vl2.checkpoint.manifest import (
    MANIFEST,
    MARKER,
    PARTIAL,
    STEP,
    flush_folder,
    step_number,
    verify,
    write_manifest,
    write_marker,
)
from vl2.logs import get_logger

log = get_logger(__name__)

LOCK = ".lock"
DAMAGED = ".damaged"


def lock_root(root: Path) -> BinaryIO:
    """Become the only writer below `root`, until the returned file is closed or the process ends.

    Raises:
        ValueError: another store, in this or another process, holds the lock.
        SaveError: the folder cannot be created or locked.
    """
    with _writes(root, "lock"):
        root.mkdir(parents=True, exist_ok=True)
        stream = (root / LOCK).open("a+b", buffering=0)
        try:
            taken = take(stream)
        except OSError:
            stream.close()
            raise
        if not taken:
            stream.seek(0)
            holder = stream.read(20).decode("ascii", "replace")
            stream.close()
            raise ValueError(
                f"{root} is in use by another training run (process {holder or 'unknown'}): "
                "stop that run, or give another folder"
            )
        stream.truncate(0)
        stream.write(str(os.getpid()).encode())
    # The lock goes with the open file, and a forked data worker, which shares it, may outlive us.
    if "register_at_fork" in dir(os):  # Windows does not fork
        os.register_at_fork(after_in_child=stream.close)
    return stream


def write_step(root: Path, step: int, writer: Callable[[Path], None]) -> Path:
    """Write one step: `writer` fills an empty folder, which then becomes the newest step.

    Leftovers of interrupted writes are swept. Folders of this step or of later ones that fail their
    check (training went back to an earlier step) are set aside. Call it under `lock_root`.

    Raises:
        CheckpointError: this or a later step is there and whole.
        SaveError: the disk is too full or cannot be written; the older steps are as they were.
    """
    if step < 0:
        raise ValueError(f"step is {step}: expected 0 or more")
    final, partial = root / f"step-{step:08}", partial_folder(root, step)
    with _writes(root, f"save step {step}"):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        _set_aside_damaged(root, step)
        try:
            partial.mkdir()
            writer(partial)
            digest = write_manifest(partial, step)
            partial.rename(final)
            flush_folder(root)
            write_marker(final, digest)
        except BaseException:
            # Without COMMITTED neither of them counts; what cannot be removed now is swept later.
            with suppress(OSError):
                sweep(root)
            raise
    return final


def partial_folder(root: Path, step: int) -> Path:
    """Folder of a step while it is being written."""
    return root / f"step-{step:08}{PARTIAL}"


def newest_valid(root: Path) -> Path | None:
    """Folder of the newest step that passes `verify`; each one that fails is logged as an error."""
    for folder in reversed(_step_folders(root)):
        try:
            verify(folder)
        except CheckpointError as error:
            log.error("skipped step %d: %s", step_number(folder), error)
            continue
        return folder
    return None


def newest_state(root: Path) -> Path | None:
    """The newest whole step to resume from; None only where no step was ever saved.

    One folder with a manifest and no marker is what an interrupted first save leaves. All else that
    is named like a step was kept once.

    Raises:
        CheckpointError: there are steps, and all of them are damaged.
    """
    if (found := newest_valid(root)) is not None:
        return found
    folders = _step_folders(root)
    cut_off = [f for f in folders if (f / MANIFEST).exists() and not (f / MARKER).exists()]
    if not folders or folders == cut_off[:1]:
        return None
    numbers = ", ".join(str(step_number(folder)) for folder in folders)
    raise CheckpointError(
        f"every saved state in {root} is damaged (steps {numbers}; {_fault(folders[-1])}), and "
        "the run would start again at step 0 with empty metrics: restore the files, give another "
        f"folder (out=FOLDER), or remove {root} to start again"
    )


def committed(root: Path) -> list[Path]:
    """Folders of the steps with a marker, oldest first; they are not checked."""
    return [folder for folder in _step_folders(root) if (folder / MARKER).is_file()]


def keep_last(root: Path, count: int, *, valid: Path | None = None) -> None:
    """Remove all but the `count` newest committed steps, never the newest that is valid.

    `valid` is a step known to be whole, such as the one just written; None looks for one.

    Raises:
        SaveError: a step cannot be removed.
    """
    if count < 1:
        raise ValueError(f"keep is {count}: expected at least 1")
    doomed = committed(root)[:-count]
    if not doomed:
        return
    newest = valid or newest_valid(root)
    with _writes(root, "remove old steps"):
        sweep(root)
        for folder in doomed:
            if newest is None or folder.name != newest.name:
                _remove(folder)


def discard_after(root: Path, step: int) -> None:
    """Remove every committed step later than `step`, newest first: training continues from there.

    Raises:
        SaveError: a step cannot be removed.
    """
    with _writes(root, f"discard the steps after {step}"):
        sweep(root)
        for folder in reversed(committed(root)):
            if step_number(folder) > step:
                log.warning("discarded step %d in %s", step_number(folder), root)
                _remove(folder)


def sweep(root: Path) -> None:
    """Remove what interrupted writes and removals left: temporary folders, steps without marker.

    A folder with neither marker nor manifest is not ours and stays.
    """
    for folder in root.glob("step-*" + PARTIAL):
        log.info("swept %s, left by an interrupted save", folder)
        _delete(folder)
    for folder in _step_folders(root):
        if (folder / MANIFEST).exists() and not (folder / MARKER).exists():
            log.info("swept %s, which was not committed", folder)
            _remove(folder)


@contextmanager
def _writes(root: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise SaveError(
            f"cannot {what} in {root}: {why}; make room, or choose another folder"
        ) from None


def _step_folders(root: Path) -> list[Path]:
    """Entries named like a step, oldest first; an entry that is no folder counts as damaged."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if STEP.fullmatch(p.name)), key=step_number)


def _fault(folder: Path) -> str:
    """The fault of a damaged step, without the advice."""
    try:
        verify(folder)
    except CheckpointError as error:
        return str(error).partition(": the step is")[0]
    return ""


def _set_aside_damaged(root: Path, step: int) -> None:
    """Rename damaged folders from `step` on, and whatever else has the name of `step`.

    Raises:
        CheckpointError: one of them is whole: it would hide the step that is to be written.
    """
    named = [folder for folder in _step_folders(root) if step_number(folder) == step]
    for folder in [*named, *(f for f in committed(root) if step_number(f) > step)]:
        try:
            verify(folder)
        except CheckpointError as error:
            aside = folder.with_name(folder.name + DAMAGED)
            log.warning("set step %d aside as %s: %s", step_number(folder), aside.name, error)
            _delete(aside)
            folder.rename(aside)
            continue
        raise CheckpointError(
            f"cannot save step {step} in {root}: {folder.name} is there and whole; "
            "discard the later steps first, or choose another folder"
        )


def _remove(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)
    flush_folder(folder)
    # Under this name `sweep` knows it when the removal is cut off.
    _delete(folder.rename(folder.with_name(folder.name + PARTIAL)))


def _delete(path: Path) -> None:
    """Remove a folder with all it holds, or a file or link in its place, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
