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


def is_there(pattern: str) -> bool:
    """Whether a file has that path or is matched by it."""
    try:
        return bool(matching_files(pattern))
    except ValueError:
        return False


_KINDS: tuple[tuple[int, bytes, str, tuple[str, ...]], ...] = (
    (0, b"PAR1", "a Parquet file", ("parquet",)),
    (257, b"ustar", "a tar", ("webdataset",)),
    (0, b"ARROW1", "an Arrow file: write it as Parquet", ()),
    (0, b"\xff\xff\xff\xff", "an Arrow stream: write it as Parquet", ()),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull", ()),
    (0, b"SQLite format 3", "a database of SQLite: write its rows as JSON lines", ()),
    (0, b"\x1f\x8b", "compressed: unpack it with gunzip", ()),
    (0, b"\x28\xb5\x2f\xfd", "compressed: unpack it with zstd -d", ()),
    (0, b"BZh", "compressed: unpack it with bunzip2", ()),
    (0, b"\xfd7zXZ", "compressed: unpack it with unxz", ()),
    (0, b"\xff\xfe", "UTF-16: save it as UTF-8", ()),
    (0, b"\xfe\xff", "UTF-16: save it as UTF-8", ()),
    (0, b"PK\x03\x04", "a zip: unpack it", ()),
)
"""Kinds of files: place and value of some of their bytes, a name, the formats that read them."""

_JSON = ("llava", "text", "interleaved")
_HEAD = 4096


def _has_no_object(head: bytes) -> bool:
    """Whether the whole lines at the start of a file are there, and no row of JSON is among them.

    One broken line alone may be the end of a long row that a file was cut in.
    """
    lines = head.split(b"\n")
    whole = [line.lstrip() for line in (lines if len(head) < _HEAD else lines[:-1])]
    return any(whole) and not any(line[:1] in (b"{", b"[") for line in whole)


def check_format(path: Path, wanted: str) -> None:
    """Refuse a file whose content does not have the format of its source; its name does not count.

    Raises:
        ValueError: it is of another kind, which is named with the format for it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    kinds = [(name, formats) for at, magic, name, formats in _KINDS if head[at:].startswith(magic)]
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        kinds.append(("JSON", _JSON))
    elif not kinds and wanted in _JSON and _has_no_object(head):
        first = head.split(b"\n")[0].decode("utf-8", "replace").strip()
        kinds.append((f"no JSON, it begins with {first[:40]!r}: write a JSON object a line", ()))
    for name, formats in kinds[:1]:
        if wanted not in formats:
            remedy = f": give the source format={' or '.join(formats)}" if formats else ""
            raise ValueError(f"{path} has the format {wanted!r} but is {name}{remedy}")


class Rows:
    """The rows of a source that lies in parts, such as tars, row groups, or one file."""

    def __init__(self, name: str, lengths: Sequence[int], limit: int | None) -> None:
        """Count them: `limit` is `rows` of the configuration, the first so many or None for all."""
        self.name, self._ends = name, np.cumsum([0, *lengths], dtype=np.int64)[1:]
        self._count = min(sum(lengths), sum(lengths) if limit is None else limit)

    def __len__(self) -> int:
        """Number of rows that are used, bad ones included."""
        return self._count

    def find(self, row: int) -> tuple[int, int]:
        """(part, row in the part).

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.name}, which has {len(self)}")
        part = int(np.searchsorted(self._ends, row, side="right"))
        return part, row - (int(self._ends[part - 1]) if part else 0)
