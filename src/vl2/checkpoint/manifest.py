"""What a whole step consists of: its files, a manifest of them, and a marker of the manifest.

`manifest.json` holds the number of the step, and the size and the sha256 of every file;
`COMMITTED` holds the sha256 of the manifest. A step without the marker does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vl2.checkpoint.errors import CheckpointError

MANIFEST = "manifest.json"
MARKER = "COMMITTED"
PARTIAL = ".tmp"
STEP = re.compile(r"step-(\d{8,})")


def step_number(folder: Path) -> int:
    """The step that a folder `step-00000020` holds: 20.

    Raises:
        ValueError: the folder has another name.
    """
    match = STEP.fullmatch(folder.name)
    if match is None:
        raise ValueError(
            f"{folder} is not a saved step: expected a folder named like step-00000020"
        )
    return int(match[1])


def verify(folder: Path) -> None:
    """Check a step to its last bit: marker, manifest, and exactly the manifest's files.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    step = step_number(folder)
    try:
        expected = _read_manifest(folder, step)
        found = {name: path for name, path in _files(folder) if name not in (MANIFEST, MARKER)}
        for name in sorted(expected.keys() - found.keys()):
            raise _bad(folder / name, "is missing")
        for name in sorted(found.keys() - expected.keys()):
            raise _bad(found[name], f"is not in {MANIFEST}")
        for name, entry in sorted(expected.items()):
            if (size := found[name].stat().st_size) != entry["bytes"]:
                raise _bad(found[name], f"has {size} bytes, {MANIFEST} says {entry['bytes']}")
        for name, entry in sorted(expected.items()):
            if _sha256(found[name]) != entry["sha256"]:
                raise _bad(found[name], f"has another sha256 than {MANIFEST} says")
    except OSError as error:
        raise _bad(Path(error.filename or folder), f"cannot be read ({error.strerror})") from None


def write_manifest(folder: Path, step: int) -> str:
    """Flush all files and describe them in the manifest; returns the sha256 of the manifest."""
    files: dict[str, dict[str, Any]] = {}
    for name, path in _files(folder):
        _flush(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    # The number belongs in it: a step under another step's name is not that step.
    data = (json.dumps({"step": step, "files": files}, indent=1) + "\n").encode()
    write_file(folder / MANIFEST, data)
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)
    return hashlib.sha256(data).hexdigest()


def write_marker(folder: Path, digest: str) -> None:
    """Make a step count: `digest` is what `write_manifest` returned."""
    partial = folder / (MARKER + PARTIAL)
    write_file(partial, f"{digest}\n".encode())
    partial.rename(folder / MARKER)
    flush_folder(folder)


def write_file(file: Path, data: bytes) -> None:
    """Write a small file and flush it to the disk."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(file: Path) -> None:
    with file.open("r+b") as stream:  # Windows flushes only what may be written
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder: a file is only safe when its name is as well."""
    if os.name == "nt":  # opens no folders; NTFS keeps names in its journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bad(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} {why}: the step is damaged; use an older one")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name below `folder` and path of each file; anything that is no file or folder is refused."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _bad(path, "is not a regular file")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """The manifest's files, after the marker and the manifest itself are found to be right."""
    if not (folder / MARKER).is_file():
        raise _bad(folder / MARKER, "is missing")
    if not (folder / MANIFEST).is_file():
        raise _bad(folder / MANIFEST, "is missing")
    data = (folder / MANIFEST).read_bytes()
    if (folder / MARKER).read_bytes() != f"{hashlib.sha256(data).hexdigest()}\n".encode():
        raise _bad(folder / MANIFEST, f"is not the one that {MARKER} names")
    try:
        content = json.loads(data)
        found, files = content["step"], content["files"]
        whole = all(
            isinstance(entry["bytes"] + len(entry["sha256"]), int) for entry in files.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole, found, files = False, None, {}
    if not whole:
        raise _bad(folder / MANIFEST, "is not the manifest of a step")
    if found != step:
        raise _bad(folder / MANIFEST, f"belongs to step {found}, not {step}")
    return files
