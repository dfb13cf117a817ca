"""Sources of records by number: what each is, and the one way to open one."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

from vl2.data.config import FORMATS, SourceConfig
from vl2.data.records import Record


@runtime_checkable
class Source(Protocol):
    """Records by row number. It holds places in files and no pictures.

    A worker process opens its own from the same `SourceConfig`.
    """

    name: str

    def __len__(self) -> int:
        """Number of rows, bad ones included."""
        ...

    def __getitem__(self, row: int) -> Record:
        """The record of a row; `RecordError` when it cannot be used, `IndexError` beyond."""
        ...

    def place(self, row: int) -> str:
        """Where a row stands, for messages: the file, and the line or number in it from 1 on."""
        ...

    def fingerprint(self) -> str:
        """sha256 of what decides the content, the same wherever the files lie."""
        ...


def open_source(config: SourceConfig) -> Source:
    """Open a source by its format, whose module is imported here: a run loads what it reads.

    Raises:
        ValueError: files are missing or cannot be used as a whole; what is wrong with single rows
            shows when they are read.
    """
    return resolve_name(FORMATS[config.format])(config)
