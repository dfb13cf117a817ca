"""What a run learns from: sources and their weights, how samples become sequences and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vl2.ranges import Range, check_ranges

FORMATS = {
    "llava": "vl2.data.source_llava:open_llava",
    "webdataset": "vl2.data.source_webdataset:WebDatasetSource",
    "parquet": "vl2.data.source_parquet:ParquetSource",
    "text": "vl2.data.source_text:open_text",
    "interleaved": "vl2.data.source_text:open_interleaved",
    "synthetic": "vl2.data.source_synthetic:SyntheticSource",
}
"""Formats of sources and what opens each, for `data.sources.open_source`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One data set."""

    path: str  # file; for webdataset a file or a glob of tars; for synthetic a kind of pictures
    format: str = "llava"  # one of FORMATS
    name: str = ""  # in logs and reports; empty takes the file's stem
    # share of the tokens, relative to the other sources
    weight: Annotated[float, Range(above=0)] = 1.0
    image_root: str | None = None  # where relative picture paths start; None: beside the file
    # share of the pictures that are damaged: blur, JPEG, noise, low light
    augment: Annotated[float, Range(least=0, most=1)] = 0.0
    # use only the first so many, None all; for synthetic, how many are drawn
    rows: Annotated[int | None, Range(least=1)] = None

    def __post_init__(self) -> None:
        """Check the numbers and the format."""
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}: expected one of {', '.join(FORMATS)}")
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Everything that decides which tokens a step sees."""

    sources: tuple[SourceConfig, ...] = ()
    sequence_length: Annotated[int, Range(least=1)] = 4096
    # sequences per optimiser step, over all ranks
    batch_size: Annotated[int, Range(least=1)] = 8
    micro_batch: Annotated[int, Range(least=1)] = 1  # sequences per forward pass
    packing: bool = True  # several samples in one sequence
    balance_tiles: bool = True  # sequences that are computed at the same time are alike in tiles
    isolate_documents: bool = True  # samples in one sequence do not see each other
    mask_prompt: bool = True  # learn answers only
    # processes that decode and tile; 0 does it in the trainer's own
    workers: Annotated[int, Range(least=0, most=1024)] = 0
    prefetch: Annotated[int, Range(least=1)] = 2  # batches that each worker prepares ahead
    seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0
    # of a source, over `bad_rate_window` samples
    max_bad_rate: Annotated[float, Range(least=0, most=1)] = 0.01
    bad_rate_window: Annotated[int, Range(least=1)] = 10_000
    max_bad_in_a_row: Annotated[int, Range(least=0)] = 100

    def __post_init__(self) -> None:
        """Check the numbers that have to fit each other."""
        check_ranges(self)
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size is {self.batch_size}: expected a multiple of micro_batch = "
                f"{self.micro_batch}"
            )
