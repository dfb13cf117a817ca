"""Where vl2 keeps files between runs, and whether a text names a file at all."""

from __future__ import annotations

import os
from pathlib import Path

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Most bytes of one part of a path, and of the whole: the limits of the usual file systems."""


def cache_folder(name: str) -> Path:
    """`$VL2_CACHE/name`, or `~/.cache/vl2/name`; it need not exist.

    Raises:
        RuntimeError: VL2_CACHE is not set and the user has no home.
    """
    return Path(os.environ.get("VL2_CACHE") or Path.home() / ".cache" / "vl2") / name


def names_something(text: str | Path) -> bool:
    """Whether `text` names a file or a folder that is there.

    The file system is not asked about text that cannot be a name: a long question, many lines.
    """
    name = os.fsencode(text)
    parts = name.split(os.sep.encode())
    if not name or b"\0" in name or len(name) > LONGEST_PATH or max(map(len, parts)) > LONGEST_NAME:
        return False
    return Path(text).exists()


def expand(path: str | Path) -> Path:
    """The path with the user's home for `~`; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_folder(name: str | Path, what: str) -> None:
    """Refuse a place where no folder can be made, because it or one above it is a file.

    Raises:
        ValueError: `what` asks for it, with the file's name.
    """
    folder = Path(name)
    for part in (folder, *folder.parents):
        if part.is_dir():
            return
        if part.exists():
            raise ValueError(f"{what} is {folder}: {part} is a file: give a folder to write into")


def check_file(name: str | Path, what: str) -> None:
    """Refuse a place where no file can be written: a folder, or below a file.

    Raises:
        ValueError: `what` asks for it.
    """
    file = Path(name)
    if file.is_dir():
        raise ValueError(f"{what} is {file}: this is a folder: give a file name")
    check_folder(file.parent, what)
