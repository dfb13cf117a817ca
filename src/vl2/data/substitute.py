"""Records that turn out to be unusable: replaced alike in every run, counted, and limited."""

from __future__ import annotations

import json
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vl2.data.collate import Sample
from vl2.data.config import DataConfig
from vl2.data.plan import RowRef, draw
from vl2.data.records import Record, RecordError
from vl2.data.sources import Source
from vl2.failure import WorkError
from vl2.logs import get_logger
from vl2.processing.inputs import ModelInputs

log = get_logger(__name__)

ATTEMPTS = 100
"""Substitutes that are tried before a place stays empty."""

REASONS = 3
"""First reasons that are kept of each source."""

Encode = Callable[[Record, RowRef], ModelInputs]
"""A record to inputs; all chance in it comes from the row's place in the order."""


class DataError(ValueError):
    """The data cannot be trained on as they are; the message is one line with the remedy."""


class DataWorkError(DataError, WorkError):
    """A process that reads the data died, or reading shows a programming error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crash:
    """A programming error or a broken machine, as opposed to a bad record, as a worker tells it."""

    message: str  # one line
    trace: str

    def error(self) -> DataWorkError:
        """What the trainer raises; the trace goes to the log."""
        log.debug("%s", self.trace)
        return DataWorkError(self.message)


def crash_of(where: str, error: Exception) -> Crash:
    """What is told of an error while it is handled."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Crash(message=f"{where}: {reason}", trace=traceback.format_exc())


def fill(
    ref: RowRef, room: int, source: Source, *, counts: np.ndarray, encode: Encode, seed: int
) -> Sample:
    """The sample of one place: its row, a substitute of the same source that fits, or nothing.

    A substitute depends on the seed, the place and the attempt only.

    Args:
        ref: the planned row.
        room: tokens that the plan gives it.
        source: of the row.
        counts: tokens of each row of the source, -1 where one cannot be used.
        encode: makes inputs of a record.
        seed: of the substitutes.
    """
    found = Sample(source=ref.source, position=ref.position, row=ref.row)
    for row in candidates(ref, room, counts, seed):
        try:
            record = source[row]
            inputs = encode(record, ref)
            tokens = len(inputs.input_ids)
            if tokens > room:
                raise RecordError(
                    f"{tokens} tokens where its index has {room} at most (record {record.id})"
                )
        except RecordError as error:
            reasons = (*found.reasons, str(error))[:REASONS]
            found = replace(found, failed=found.failed + 1, reasons=reasons)
            continue
        return replace(found, row=row, id=record.id, inputs=inputs)
    return found


def samples_text(samples: Sequence[Sample]) -> str:
    """Samples of batches as JSON, for other ranks."""
    return json.dumps([asdict(sample) for sample in samples])


def samples_of(texts: Sequence[str]) -> list[Sample]:
    """The samples of all ranks in the order of their places, which is the same for any ranks."""
    found = [
        Sample(**{**sample, "reasons": tuple(sample["reasons"])})
        for text in texts
        for sample in json.loads(text)
    ]
    return sorted(found, key=lambda sample: sample.position)


def candidates(ref: RowRef, room: int, counts: np.ndarray, seed: int) -> Iterator[int]:
    """The planned row, then up to `ATTEMPTS` others that fit; none comes twice."""
    yield ref.row
    tried = {ref.row}
    fitting = np.flatnonzero((counts > 0) & (counts <= room))
    for attempt in range(1, ATTEMPTS + 1):
        row = int(fitting[draw(seed, "substitute", ref.position, attempt) % len(fitting)])
        if row not in tried:
            tried.add(row)
            yield row


def bad_allowed(tried: int, config: DataConfig) -> float:
    """How many of so many records of a source may be bad.

    Below `bad_rate_window` records it is `max_bad_rate` of them and what chance adds (4 standard
    deviations and 4), so that a broken source is found early and a sound one is not blamed for two
    bad records.
    """
    expected = config.max_bad_rate * tried
    most = config.max_bad_rate * max(tried, config.bad_rate_window)
    return min(most, expected + 4 * expected**0.5 + 4)


@dataclass(kw_only=True, slots=True)
class SourceTally:
    """Counts of good and bad records of one source so far."""

    tried: int = 0  # records, substitutes included
    bad: int = 0  # of them
    replaced: int = 0  # places that hold a substitute
    empty: int = 0  # places for which none was found
    in_a_row: int = 0  # bad records since the last good one
    recent: deque[int] = field(default_factory=deque)  # when bad ones came, in the window
    reasons: list[str] = field(default_factory=list)  # the first few


class Tally:
    """Counts bad records per source, and stops the run when they are too many.

    At most `max_bad_rate` of a source's last `bad_rate_window` records may be bad; while fewer than
    a window were tried, see `bad_allowed`.
    """

    def __init__(self, names: Sequence[str], config: DataConfig) -> None:
        self.names, self.config = tuple(names), config
        self.sources = [SourceTally() for _ in names]

    def add(self, sample: Sample) -> None:
        """Count what one place met, in the order of the places.

        Raises:
            DataError: too many records of its source are bad.
        """
        tally = self.sources[sample.source]
        new = sample.reasons[: REASONS - len(tally.reasons)]
        for reason in new:
            name = self.names[sample.source]
            log.warning("%s: a record cannot be used and is replaced: %s", name, reason)
        tally.reasons.extend(new)
        for _ in range(sample.failed):
            tally.recent.append(tally.tried)
            tally.tried += 1
        tally.bad += sample.failed
        tally.in_a_row += sample.failed
        if sample.failed:
            self._judge(sample.source)
        if sample.id:
            tally.tried += 1
            tally.in_a_row = 0
        tally.replaced += bool(sample.id) and sample.failed > 0
        tally.empty += not sample.id

    def _judge(self, source: int) -> None:
        tally, config = self.sources[source], self.config
        while tally.recent[0] < tally.tried - config.bad_rate_window:
            tally.recent.popleft()
        recent = min(tally.tried, config.bad_rate_window)
        if len(tally.recent) > bad_allowed(recent, config):
            rule = f"{len(tally.recent)} of the last {recent} records are bad (data.max_bad_rate"
            rule = f"{rule} = {config.max_bad_rate:g})"
        elif tally.in_a_row > config.max_bad_in_a_row:
            rule = f"{tally.in_a_row} records in a row are bad (data.max_bad_in_a_row = "
            rule = f"{rule}{config.max_bad_in_a_row})"
        else:
            return
        raise DataError(
            f"source {self.names[source]}: {rule}; first reasons: {'; '.join(tally.reasons)}: "
            "repair the source, build its index again, or raise the limit"
        )

    def state(self) -> dict[str, Any]:
        """The counts as JSON, per source; bounded by the window and the rate."""
        return {
            name: {**asdict(tally), "recent": list(tally.recent)}
            for name, tally in zip(self.names, self.sources, strict=True)
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the counts that `state` gave.

        Raises:
            ValueError: they are of other sources.
        """
        if set(state) != set(self.names):
            raise ValueError(
                f"data state has the sources {sorted(state)}, this run {sorted(self.names)}: "
                "resume with the same sources, or start a new run"
            )
        told = [state[name] for name in self.names]
        self.sources = [
            SourceTally(**{**t, "recent": deque(t["recent"]), "reasons": list(t["reasons"])})
            for t in told
        ]
