"""The samples of steps that were thrown away, one JSON line per step, for a person to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vl2.data.collate import TrainBatch


class Quarantine:
    """Appends to a file that is made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, reason: str, batches: Sequence[TrainBatch]) -> None:
        """Note which samples a bad step (counted from 0) was made of."""
        samples = [
            {"source": batch.source_names[s.source], "id": s.id, "position": s.position}
            for batch in batches
            for s in batch.samples
            if s.id
        ]
        line = {"step": step + 1, "reason": reason, "samples": samples}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
