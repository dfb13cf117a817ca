"""JSON files by row: one object a line, or one list of objects. Rows are read when asked for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vl2.data.config import SourceConfig
from vl2.data.records import Record
from vl2.data.source_files import Rows, check_format
from vl2.data.source_record import MAX_ROW_BYTES, Origin, origin_of

Fields = Mapping[str, Any]

_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**24
_LIST = re.compile(rb"\[\s*[{\]]")
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN, _KEY = re.compile(rb"\{\s*"), re.compile(rb"\s*\"")


class JsonSource:
    """A JSON file as a source. A row that cannot be used fails alone, when it is read.

    Such rows are bad JSON, half a line at the end, bytes that are not UTF-8, NUL bytes. A byte
    order mark at the start of a line is passed over, and empty lines are no rows. A list with
    broken JSON in it has no rows that can be told apart: it is refused as a whole.
    """

    def __init__(
        self, config: SourceConfig, to_record: Callable[[Fields, Origin, Path], Record]
    ) -> None:
        """Find where the rows begin and end; nothing else is kept of the file.

        Args:
            config: of the source.
            to_record: makes a record of the fields of a row; pictures are relative to the folder
                that it gets.

        Raises:
            ValueError: the file does not exist, cannot be read, or is a broken list.
        """
        path = Path(config.path).expanduser()
        root = Path(config.image_root).expanduser() if config.image_root else path.parent
        self.name = config.name or path.stem
        self._path, self._root, self._to_record = path, root, to_record
        self._format = config.format
        try:
            check_format(path, config.format)
            starts, ends = _spans(path)
        except OSError as error:
            raise ValueError(
                f"source {self.name!r}: cannot read {path} ({error.strerror}): give a JSON file"
            ) from None
        self._rows = Rows(self.name, [len(starts)], config.rows)
        self._starts, self._ends = starts[: len(self)], ends[: len(self)]

    def __len__(self) -> int:
        """Number of rows, bad ones included."""
        return len(self._rows)

    def __getitem__(self, row: int) -> Record:
        """The record of a row.

        Raises:
            RecordError: it cannot be used.
        """
        self._rows.find(row)
        fields = self._fields(row)
        return self._to_record(fields, origin_of(self.name, row, fields.get("id")), self._root)

    def place(self, row: int) -> str:
        """The file and the line at which a row begins, from 1 on."""
        line, rest = 1, int(self._starts[row])
        with self._path.open("rb") as file:  # read again: it is asked for a few rows only
            while rest and (chunk := file.read(min(rest, _CHUNK))):
                line, rest = line + chunk.count(b"\n"), rest - len(chunk)
        return f"{self._path} line {line}"

    def fingerprint(self) -> str:
        """sha256 of the format and the whole file, wherever it lies; pictures do not count."""
        with self._path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(f"{self._format} {content}".encode()).hexdigest()

    def _fields(self, row: int) -> Fields:
        origin = origin_of(self.name, row)
        start, end = int(self._starts[row]), int(self._ends[row])
        if end - start > MAX_ROW_BYTES:
            raise origin.error(f"the row is longer than {MAX_ROW_BYTES} bytes")
        try:
            with self._path.open("rb") as file:  # forked workers must not share a position
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise origin.error(f"the row cannot be read: {error.strerror}") from None
        return read_object(data, origin)


def read_object(data: bytes, origin: Origin) -> Fields:
    """The JSON object of some bytes.

    Raises:
        RecordError: no UTF-8, no JSON, or no object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise origin.error("the row is not UTF-8") from None
    except (ValueError, RecursionError):
        raise origin.error("the row is not JSON") from None
    if not isinstance(value, dict):
        raise origin.error("the row is not a JSON object")
    return value


def _spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """First byte of each row, and the byte after its last."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
    # Lines that are lists are no rows, so a .jsonl that begins a list of objects is misnamed.
    if head.startswith(b"[") and (path.suffix != ".jsonl" or _LIST.match(head)):
        return _list_spans(path)
    first, _, rest = head.partition(b"\n")
    if _OPEN.fullmatch(first) and _KEY.match(rest):
        raise ValueError(
            f"{path} is one JSON object over several lines: give a list of rows, or one a line"
        )
    return _line_spans(path)


def _line_spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
    breaks, size = [], 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
            size += len(chunk)
    ends = np.concatenate([*breaks, [size]]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    rows = ends > starts
    with path.open("rb") as file:
        for line in np.flatnonzero(ends - starts == 1).tolist():
            file.seek(int(starts[line]))
            rows[line] = file.read(1) != b"\r"  # which is left of an empty line of CRLF
    return starts[rows], ends[rows]


def _list_spans(path: Path) -> tuple[np.ndarray, np.ndarray]:
    # Latin-1 keeps places as they are, whatever the bytes mean: JSON's own signs are ASCII.
    text = path.read_bytes().decode("latin-1")
    decoder = json.JSONDecoder(strict=False)
    spans: list[tuple[int, int]] = []
    at = _after_space(text, text.index("[") + 1)
    closed = text[at : at + 1] == "]"
    try:
        while not closed:
            _, end = decoder.raw_decode(text, at)
            spans.append((at, end))
            at = _after_space(text, end)
            closed = text[at : at + 1] == "]"
            if not closed and text[at : at + 1] != ",":
                raise ValueError("neither a comma nor the end")
            at = at if closed else _after_space(text, at + 1)
        if _after_space(text, at + 1) != len(text):
            raise ValueError("more text after the end of the list")
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path} is a broken JSON list at byte {at}, after {len(spans)} whole rows: mend it, "
            "or give JSON lines (.jsonl), of which a broken one can be left out"
        ) from None
    pairs = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
