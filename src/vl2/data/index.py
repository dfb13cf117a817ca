"""Tokens and tiles of every row of every source: counted once, cached, what plans are made from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vl2.data.config import DataConfig
from vl2.data.counting import UNUSABLE, Unusable, count_rows
from vl2.data.sources import Source
from vl2.data.substitute import REASONS, DataError, bad_allowed
from vl2.logs import get_logger
from vl2.processing.processor import Processor

log = get_logger(__name__)

_RULES = "3"
"""Counts of other rules are not taken from a cache: raise it when encoding changes."""


class RowIndex:
    """How many tokens and tiles each row has, and what identifies the data.

    Attributes:
        fingerprint: sha256 over everything that decides the samples: content, weights and damage of
            the sources, tokenizer, processor settings, which text is learnt, and the counts, which
            tell missing or resized pictures. Paths and names do not count.
    """

    def __init__(self, sizes: Sequence[np.ndarray], fingerprint: str) -> None:
        """Take what `build` has counted: tokens and tiles [2, rows] of each source."""
        self.fingerprint = fingerprint
        self._sizes = [np.asarray(each, dtype=np.int32) for each in sizes]
        for each in self._sizes:
            each.setflags(write=False)

    @classmethod
    def build(
        cls,
        config: DataConfig,
        sources: Sequence[Source],
        processor: Processor,
        cache: Path | None = None,
        *,
        processes: int = 1,
    ) -> RowIndex:
        """Count tokens and tiles of all rows, or take them from the cache.

        Rows that could not be used are tried again each time, because their pictures may have
        arrived since.

        Args:
            config: of the sources, which text is learnt, and how many rows of a source may be bad:
                so many as of the records that a run meets.
            sources: opened from it, in their order.
            processor: of the model.
            cache: folder of cache files, created when missing; None keeps nothing.
            processes: that count the rows, if there are many; the result is the same.

        Raises:
            DataError: a source has no row that can be used, or more bad ones than allowed. What was
                counted is in the cache by then. Or a process that counts died.
            ValueError: a source wants damaged pictures from a processor that tiles them by their
                content, or the cache cannot be written.
        """
        rules = _rules(processor, config.mask_prompt)
        counts, told = [], [rules]
        for given, source in zip(config.sources, sources, strict=True):
            if given.augment and processor.config.tiling == "content":
                raise ValueError(
                    f"source {source.name!r} has augment = {given.augment} but damage would "
                    "change the tiles of tiling 'content': use 'released', or augment 0"
                )
            content = source.fingerprint()
            places = [_absolute(given.path), _absolute(given.image_root or "")]
            key = _sha256([rules, content, len(source), *places])
            file = cache / f"rows-{key[:32]}.npz" if cache else None
            count = partial(
                count_rows,
                config=given,
                source=source,
                processor=processor,
                mask_prompt=config.mask_prompt,
                processes=processes,
            )
            found, reasons = _counted(source, count, file, key)
            _check_bad(source, reasons, config)
            counts.append(found)
            told += [content, given.weight, given.augment, _sha256([found.tobytes().hex()])]
        return cls(counts, _sha256(told))

    def counts(self, source_index: int) -> np.ndarray:
        """Tokens of each row of a source, int32; -1 where a row cannot be used."""
        return self._sizes[source_index][0]

    def tiles(self, source_index: int) -> np.ndarray:
        """Tiles of each row of a source, int32; 0 for text alone, -1 where a row cannot be used."""
        return self._sizes[source_index][1]


def _counted(
    source: Source,
    count: Callable[[Sequence[int]], tuple[np.ndarray, Unusable]],
    file: Path | None,
    key: str,
) -> tuple[np.ndarray, Counter[str]]:
    """Sizes [2, rows] of one source, and why rows are bad; a cache file gives the good ones."""
    sizes = _read(file, key, len(source)) if file else None
    fresh = sizes is None
    if sizes is None:
        sizes = np.full((2, len(source)), UNUSABLE, dtype=np.int32)
    before = sizes.copy()
    rows = np.flatnonzero(sizes[0] == UNUSABLE)
    sizes[:, rows], unusable = count(rows.tolist())
    reasons = unusable.reasons
    _name_bad(source, unusable)
    if not (sizes != UNUSABLE).any():
        first = next(iter(reasons), "the source is empty")
        raise DataError(
            f"source {source.name!r} has no usable row among {len(source)}: the first reason is: "
            f"{first}"
        )
    if file and (fresh or (before != sizes).any()):
        _write(file, key, sizes)
    return sizes, reasons


def _check_bad(source: Source, reasons: Counter[str], limits: DataConfig) -> None:
    """Refuse a source before training on what is left of it."""
    bad, rows = reasons.total(), len(source)
    allowed = bad_allowed(rows, limits)
    if bad > allowed:
        first = "; ".join(f"{number} x {reason}" for reason, number in [*reasons.items()][:REASONS])
        raise DataError(
            f"source {source.name!r}: {bad} of {rows} rows cannot be used, {int(allowed)} may be "
            f"bad (data.max_bad_rate = {limits.max_bad_rate:g}); first reasons: {first}: repair "
            "the source, or raise the limit"
        )


def _name_bad(source: Source, unusable: Unusable) -> None:
    """Say how many rows are bad and why, and where the first ones are."""
    reasons, named = unusable.reasons, unusable.named
    if not reasons:
        return
    told = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(5))
    bad = reasons.total()
    log.warning("%s: %d of %d rows cannot be used: %s", source.name, bad, len(source), told)
    for row, reason in named:
        log.warning("%s: %s: %s", source.name, source.place(row), reason)
    if bad > len(named):
        log.warning("%s: and %d rows more", source.name, bad - len(named))


def _rules(processor: Processor, mask_prompt: bool) -> str:
    """sha256 of what makes a record's tokens: tokenizer and settings as they are saved."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        saved = [file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir())]
    return _sha256([_RULES, *saved, processor.layout.image_size, mask_prompt])


def _sha256(values: Iterable[str | int | float | bool]) -> str:
    return hashlib.sha256(json.dumps([*values]).encode()).hexdigest()


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _write(file: Path, key: str, sizes: np.ndarray) -> None:
    """Write aside and rename: a cache file is whole or not there."""
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            np.savez(stream, sizes=sizes, digest=_digest(key, sizes))
        aside.replace(file)
    except OSError as error:
        raise ValueError(
            f"cannot write the cache file {file} ({error.strerror}): give another cache folder"
        ) from None


def _read(file: Path, key: str, rows: int) -> np.ndarray | None:
    """The sizes of a cache file; None when it is missing, damaged, or of something else."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            sizes, digest = content["sizes"], content["digest"]
    except Exception:  # a damaged zip raises anything
        log.warning("the cache file %s is damaged: the rows are counted again", file)
        return None
    fits = sizes.shape == (2, rows) and sizes.dtype == np.int32
    if not fits or not np.array_equal(digest, _digest(key, sizes)):
        log.warning("the cache file %s does not fit: the rows are counted again", file)
        return None
    return sizes


def _digest(key: str, sizes: np.ndarray) -> np.ndarray:
    told = hashlib.sha256(key.encode() + sizes.tobytes()).digest()
    return np.frombuffer(told, dtype=np.uint8)
