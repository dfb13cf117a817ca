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
