"""The work of a data worker: the records of a plan read, tiled, packed and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import Dataset

from vl2.data.augment import Damage
from vl2.data.collate import Sample, TrainBatch, collate_rows
from vl2.data.config import DataConfig
from vl2.data.encode import encode_record
from vl2.data.plan import MicroPlan, RowRef, draw
from vl2.data.records import Record
from vl2.data.sources import Source, open_source
from vl2.data.substitute import Crash, crash_of, fill
from vl2.processing.inputs import ModelInputs
from vl2.processing.processor import Processor


class RowDecoder(Dataset):
    """Micro batches by plan. Workers get a copy of it, with token counts in shared memory."""

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        sources: Sequence[Source],
        counts: Sequence[np.ndarray],
    ) -> None:
        """Keep what decoding needs; a worker opens the sources itself, from `config`."""
        self.config, self.processor = config, processor
        self.names = tuple(source.name for source in sources)
        self._sources = () if config.workers else tuple(sources)
        self._counts = [torch.from_numpy(np.array(c)) for c in counts]
        if config.workers:
            self._counts = [tensor.share_memory_() for tensor in self._counts]

    def __getitem__(self, plan: MicroPlan) -> TrainBatch | Crash:
        """The batch of a plan, or why there is none."""
        rows: list[list[Sample]] = []
        for sequence in plan.sequences:
            rows.append([])
            for ref, room in zip(sequence.rows, sequence.tokens, strict=True):
                try:
                    rows[-1].append(self._fill(ref, room))
                except Exception as error:
                    where = f"row {ref.row} of {self.names[ref.source]} at position {ref.position}"
                    return crash_of(where, error)
        batch = collate_rows(
            rows,
            pad_id=self.processor.tokenizer.pad_id,
            source_names=self.names,
            isolate_documents=self.config.isolate_documents,
        )
        return replace(
            batch, state=plan.state, closes_step=plan.closes_step, tile_load=plan.tile_load
        )

    def _source(self, number: int) -> Source:
        if not self._sources:
            self._sources = tuple(open_source(config) for config in self.config.sources)
        return self._sources[number]

    def _fill(self, ref: RowRef, room: int) -> Sample:
        return fill(
            ref,
            room,
            self._source(ref.source),
            counts=self._counts[ref.source].numpy(),
            encode=self._encode,
            seed=self.config.seed,
        )

    def _encode(self, record: Record, ref: RowRef) -> ModelInputs:
        share = self.config.sources[ref.source].augment
        seed = draw(self.config.seed, "damage", ref.position)
        return encode_record(
            record,
            self.processor,
            mask_prompt=self.config.mask_prompt,
            damage=Damage(share=share, seed=(seed,)) if share else None,
        )
