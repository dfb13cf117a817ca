"""What a run learns from: sources and their weights, how samples become sequences and batches."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = ("llava", "webdataset", "parquet", "text", "interleaved", "synthetic")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One data set."""

    path: str  # file; for webdataset a file or a glob of tars; for synthetic a kind of pictures
    format: str = "llava"  # one of FORMATS
    name: str = ""  # in logs and reports; empty takes the file's stem
    weight: float = 1.0  # share of the tokens, relative to the other sources
    image_root: str | None = None  # where relative picture paths start; None: beside the file
    augment: float = 0.0  # share of the pictures that are damaged: blur, JPEG, noise, low light
    rows: int | None = None  # use only the first so many; for synthetic, how many are drawn

    def __post_init__(self) -> None:
        """Check the numbers and the format."""
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}: expected one of {', '.join(FORMATS)}")
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}: expected a number above 0")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}: expected at least 1, or null for all")
        if not 0 <= self.augment <= 1:
            raise ValueError(f"augment is {self.augment}: expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Everything that decides which tokens a step sees."""

    sources: tuple[SourceConfig, ...] = ()
    sequence_length: int = 4096
    batch_size: int = 8  # sequences per optimiser step, over all ranks
    micro_batch: int = 1  # sequences per forward pass
    packing: bool = True  # several samples in one sequence
    balance_tiles: bool = True  # sequences that are computed at the same time are alike in tiles
    isolate_documents: bool = True  # samples in one sequence do not see each other
    mask_prompt: bool = True  # learn answers only
    workers: int = 0  # processes that decode and tile; 0 does it in the trainer's own
    prefetch: int = 2  # batches that each worker prepares ahead
    seed: int = 0
    max_bad_rate: float = 0.01  # of a source, over `bad_rate_window` samples
    bad_rate_window: int = 10_000
    max_bad_in_a_row: int = 100

    def __post_init__(self) -> None:
        """Check the numbers that have to fit each other."""
        for name in ("sequence_length", "batch_size", "micro_batch", "prefetch", "bad_rate_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: expected 0 or more")
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size is {self.batch_size}: expected a multiple of micro_batch = "
                f"{self.micro_batch}"
            )
