"""Files of a source: which there are, which row is in which, and how many rows count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def matching_files(pattern: str) -> list[Path]:
    """The file of that path, or the files that a glob matches, by name.

    Raises:
        ValueError: there is none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    found: list[Path] = []
    if set("*?[") & set(pattern):
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    files = [each for each in found if each.is_file()]
    if not files:
        raise ValueError(f"no file matches {pattern}: give a file or a glob such as 'train-*.tar'")
    return files


def ends_of(lengths: Sequence[int]) -> np.ndarray:
    """Number of rows up to the end of each part."""
    return np.cumsum(np.array([*lengths], dtype=np.int64))


def locate(ends: np.ndarray, row: int) -> tuple[int, int]:
    """(part, row in the part) of a row that exists."""
    part = int(np.searchsorted(ends, row, side="right"))
    return part, row - (int(ends[part - 1]) if part else 0)


def row_count(whole: int, limit: int | None) -> int:
    """Rows that are used of those that there are: `rows` of the configuration, or all."""
    return whole if limit is None else min(limit, whole)


def check_row(row: int, rows: int, source: str) -> None:
    """Hold a row's number against the number of rows of a source.

    Raises:
        IndexError: there is no such row.
    """
    if not 0 <= row < rows:
        raise IndexError(f"row {row} of {source}, which has {rows}")
