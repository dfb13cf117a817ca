"""Parquet files in the form of LLaVA-OneVision, Docmatix or The Cauldron, read by row group.

One decoded row group is kept, so that reading in order decodes each once. Reading in random order
decodes one for each row: write small row groups (a hundred rows) for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vl2.data.config import SourceConfig
from vl2.data.records import Record
from vl2.data.source_files import Rows, check_format, matching_files
from vl2.data.source_grounding import is_foreign
from vl2.data.source_llava import ANSWERS, llava_record, row_pictures
from vl2.data.source_record import origin_of

MAX_GROUP_BYTES = 2**31
"""Most bytes of a row group in memory, once it is decompressed."""

COLUMNS = ("id", "image", "images", "system", "bbox_type", *ANSWERS)


class _Group(NamedTuple):
    """A row group."""

    path: Path
    number: int  # in its file
    columns: list[str]  # to read
    first: int  # row of the file
    rows: int


class ParquetSource:
    """Rows with `image` or `images` (paths, bytes or struct{bytes, path}, alone or in lists).

    Answers are in `conversations` list<struct{from, value}>, `messages` list<struct{role,
    content}>, `texts` list<struct{user, assistant}>, `objects` list<struct{label, box}> or
    `caption`; a `system` prompt may stand beside them. Of other columns, only columns that say that
    a row cannot be used are read.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Read the footers.

        Raises:
            ValueError: pyarrow is not installed, no file matches, one is no Parquet, has none of
                the columns, or a row group too large to hold.
        """
        self.name = config.name or Path(config.path).stem
        self._parquet = _pyarrow_parquet()
        self._files = matching_files(config.path)
        self._root = Path(config.image_root).expanduser() if config.image_root else None
        self._groups = [g for path in self._files for g in _row_groups(self._parquet, path)]
        self._rows = Rows(self.name, [group.rows for group in self._groups], config.rows)
        self._held: tuple[int, Any] | None = None

    def __len__(self) -> int:
        """Number of rows, bad ones included."""
        return len(self._rows)

    def __getitem__(self, row: int) -> Record:
        """The record of a row.

        Raises:
            RecordError: it cannot be used.
        """
        part, local = self._rows.find(row)
        try:
            fields = self._table(part).slice(local, 1).to_pylist()[0]
        except (ValueError, OSError, NotImplementedError):  # pyarrow's errors are of these kinds
            raise origin_of(self.name, row).error("the row group is damaged") from None
        origin = origin_of(self.name, row, fields.get("id"))
        root = self._root or self._groups[part].path.parent
        return llava_record(fields, row_pictures(fields, root, origin), origin)

    def place(self, row: int) -> str:
        """The file and the number of a row in it, from 1 on."""
        part, local = self._rows.find(row)
        return f"{self._groups[part].path} row {self._groups[part].first + local + 1}"

    def fingerprint(self) -> str:
        """sha256 of the sizes and the footers of all files (columns, counts, places, ranges)."""
        told = hashlib.sha256(b"parquet")
        for path in self._files:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(size - 8)
                length = int.from_bytes(file.read(4), "little")
                file.seek(size - 8 - length)
                told.update(f"{size} ".encode() + file.read(length))
        return told.hexdigest()

    def _table(self, part: int) -> Any:
        held = self._held
        if held is None or held[0] != part:
            group = self._groups[part]
            self._held = None  # two are never held
            with self._parquet.ParquetFile(group.path) as file:
                table = file.read_row_group(group.number, columns=group.columns, use_threads=False)
                held = part, table
            self._held = held
        return held[1]


def _row_groups(parquet: Any, path: Path) -> Iterator[_Group]:
    """The row groups of a file."""
    check_format(path, "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            footer, names = file.metadata, file.schema_arrow.names
    except (ValueError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} cannot be read as Parquet: {reason}") from None
    if not set(ANSWERS) & set(names):
        raise ValueError(
            f"{path} has the columns {', '.join(names)}: expected one of {', '.join(ANSWERS)}"
        )
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MAX_GROUP_BYTES:
        raise ValueError(
            f"{path} has a row group of {largest} bytes: write it again with row groups below "
            f"{MAX_GROUP_BYTES} bytes, a hundred rows for instance"
        )
    columns = [name for name in names if name in COLUMNS or is_foreign(name)]
    first = 0
    for number, group in enumerate(groups):
        yield _Group(path, number, columns, first, group.num_rows)
        first += group.num_rows


def _pyarrow_parquet() -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError('Parquet needs pyarrow: pip install "vl2[train]"') from None
