"""Rows for the tests of sources, and what is read of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl2.data.records import Record, RecordError
from vl2.data.sources import Source


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def talk(question: str = "<image>\nWhat?", answer: Any = "Red.") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def texts(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in record.turns]


def refused(source: Source, row: int = 0) -> str:
    with pytest.raises(RecordError) as caught:
        source[row]
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(")")
    assert f"#{row} of {source.name}" in message
    return message


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path
