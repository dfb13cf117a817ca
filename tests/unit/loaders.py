"""Loaders over records in memory, for the tests of the loader."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from vl2.data.collate import TrainBatch
from vl2.data.config import DataConfig, SourceConfig
from vl2.data.encode import record_size
from vl2.data.index import RowIndex
from vl2.data.loader import TrainLoader
from vl2.data.records import Record, RecordError, Turn
from vl2.data.sources import Source
from vl2.processing.processor import Processor

WORDS = ["a", "red", "dog", "ran", "over", "green", "hills", "and", "saw", "one", "cat", "sleep"]
WORDS += ["under", "two", "trees"]


def png(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 40 % 256, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


class Records:
    """Records in memory, some of which cannot be used."""

    def __init__(self, name: str, records: Sequence[Record], bad: Sequence[int] = ()) -> None:
        self.name, self.records, self.bad = name, records, set(bad)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Record:
        if row in self.bad:
            raise RecordError(f"broken (record {row} of {self.name})")
        return self.records[row]

    def place(self, row: int) -> str:
        return f"{self.name} row {row + 1}"

    def fingerprint(self) -> str:
        return self.name


def talk(
    name: str, row: int, *, pictures: int = 0, words: int = 3, size: tuple[int, int] = (24, 16)
) -> Record:
    turns = (
        Turn(role="user", text="<image>" * pictures + f" what is {row}?"),
        Turn(role="assistant", text=" ".join(WORDS[i % len(WORDS)] for i in range(words))),
    )
    return Record(
        id=f"{name}-{row}",
        source=name,
        images=tuple(png(row + i, size) for i in range(pictures)),
        turns=turns,
    )


def two_sources(rows: int = 12) -> list[Records]:
    seen = [talk("seen", i, pictures=1, words=2 + i) for i in range(rows)]
    read = [talk("read", i, words=4 + 3 * i) for i in range(rows)]
    return [Records("seen", seen), Records("read", read)]


def config_of(sources: Sequence[Source], **settings) -> DataConfig:
    configs = tuple(SourceConfig(path=s.name, name=s.name) for s in sources)
    small = {"sequence_length": 160, "batch_size": 4, "micro_batch": 2}
    return DataConfig(sources=configs, **{**small, **settings})


def loader_of(
    sources: Sequence[Records], processor: Processor, config: DataConfig | None = None, **given
) -> TrainLoader:
    config = config or config_of(sources)
    return TrainLoader(config, processor, sources, index_of(sources, processor), **given)


def index_of(sources: Sequence[Records], processor: Processor) -> RowIndex:
    """Counts of all records, also of those that are bad: that shows when they are read."""
    sizes = []
    for source in sources:
        counted = [record_size(record, processor) for record in source.records]
        sizes.append(np.array([[c.tokens for c in counted], [c.tiles for c in counted]]))
    return RowIndex(sizes, "/".join(source.name for source in sources))


def same(one: TrainBatch, other: TrainBatch) -> bool:
    names = ("samples", "source_names", "tokens", "supervised", "images", "tiles")
    names += ("closes_step", "tile_load")
    equal = one.tensors.keys() == other.tensors.keys() and all(
        getattr(one, name) == getattr(other, name) for name in names
    )
    return (
        equal
        and torch.equal(one.source_ids, other.source_ids)
        and all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)
    )


def take(batches: Iterator[TrainBatch], count: int) -> list[TrainBatch]:
    return list(itertools.islice(batches, count))


def ids(batches: Sequence[TrainBatch]) -> list[tuple[str, str, int]]:
    """Source, id and place of every record."""
    return [
        (b.source_names[s.source], s.id, s.position) for b in batches for s in b.samples if s.id
    ]


# The stream
