"""Figures of a run: a line every few steps on stderr and in `metrics.jsonl`, TensorBoard.

MFU is the model's operations of a step (`train/flops.py`), recomputing left out, as a share of what
the devices could do in its time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vl2.data.balance_tiles import TileLoad
from vl2.data.collate import PAD_SEGMENT, TrainBatch
from vl2.logs import get_logger
from vl2.train.flops import document_pairs

log = get_logger(__name__)

PEAK_FLOPS: dict[str, float] = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}
"""Dense bfloat16 peak of devices by a part of their name; MFU is left out for others."""


def batch_size(batches: Sequence[TrainBatch]) -> dict[str, int]:
    """Sizes of a step, which add up over ranks.

    Tokens without padding, supervised tokens, pictures, tiles; `encoded_tiles`, of which a picture
    of one tile has one because its two views are equal; `pairs` of a token and one that it sees.
    """
    names = ("tokens", "supervised", "images", "tiles")
    sizes = {name: sum(getattr(batch, name) for batch in batches) for name in names}
    sizes["encoded_tiles"] = sum(map(_encoded_tiles, batches))
    sizes["pairs"] = sum(map(_pairs, batches))
    return sizes


def _encoded_tiles(batch: TrainBatch) -> int:
    crops = batch.tensors.get("images_spatial_crop")
    return batch.tiles - (0 if crops is None else int((crops == 1).all(dim=-1).sum()))


def _pairs(batch: TrainBatch) -> int:
    """Pairs in the documents of each row; without segments a row is one. 0 without tokens."""
    segments, ids = batch.tensors.get("segment_ids"), batch.tensors.get("input_ids")
    if segments is None:
        return 0 if ids is None else document_pairs([ids.shape[1]] * len(ids))
    lengths = (row[row != PAD_SEGMENT].unique(return_counts=True)[1] for row in segments)
    return sum(document_pairs(counts.tolist()) for counts in lengths)


def tile_figures(batches: Sequence[TrainBatch]) -> dict[str, float]:
    """Tiles of the fullest rank and of a mean one.

    `MetricsLog` writes their ratio: that of a window's sums, as one step may have a lone picture.
    """
    if (load := batches[-1].tile_load) is None:
        return {}
    return {"tiles_most": float(load.most), "tiles_mean": float(load.mean)}


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of the device, where its name is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class MetricsLog:
    """Collects figures per step; every `every` steps it writes their means."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        every: int,
        tensorboard: bool = False,
        stage: str = "",
        flops: Callable[[Mapping[str, int]], float] | None = None,
        peak: float = 1.0,
    ) -> None:
        """Set up the outputs.

        Args:
            folder: gets `metrics.jsonl`, and `tensorboard/` when asked.
            steps: of the run.
            every: steps between two lines, each the mean over them.
            tensorboard: write its event files too.
            stage: stands in every line.
            flops: operations of a step by what it had; None leaves out the MFU.
            peak: FLOP/s of all devices together, which the MFU is a share of.
        """
        self.path, self.every, self.stage, self.steps = (
            folder / "metrics.jsonl",
            every,
            stage,
            steps,
        )
        self.board = _open_board(folder / "tensorboard") if tensorboard else None
        self.pending: list[Mapping[str, float]] = []
        self.flops, self.peak = flops, peak
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bar = self.progress.add_task(stage, total=steps, figures="")

    def start(self, step: int) -> None:
        """Show the bar from `step` on, and drop lines of steps that will be taken again."""
        _cut_after(self.path, self.stage, step)
        self.started = time.monotonic()
        self.progress.start()
        self.progress.update(self.bar, completed=step)

    def add(
        self,
        step: int,
        values: Mapping[str, float],
        sizes: Mapping[str, int],
        *,
        started: float,
        waited: float,
    ) -> None:
        """Take one step's figures (`step` counts from 1); write when it is time.

        Args:
            step: steps taken so far.
            values: loss and what else the task reports.
            sizes: of the batch, see `batch_size`.
            started: when the step began (`time.monotonic`), with the wait for its data.
            waited: seconds of that wait.
        """
        taken = max(time.monotonic() - started, 1e-9)
        speed = {f"{name}_per_s": sizes[name] / taken for name in ("tokens", "images")}
        values = {**values, **speed, "data_wait": waited / taken}
        if self.flops is not None and sizes["tokens"]:
            values["mfu"] = self.flops(sizes) / taken / self.peak
        self.pending.append(values)
        self.progress.update(self.bar, completed=step, figures=_short(values))
        if step % self.every == 0 or step == self.steps:
            self._write(step)

    def state(self) -> list[dict[str, float]]:
        """Figures that are not written yet, for a checkpoint."""
        return [dict(values) for values in self.pending]

    def restore(self, state: Sequence[Mapping[str, float]]) -> None:
        """Take over what `state` gave, so that the next line is the mean over all its steps."""
        self.pending = list(state)

    def close(self) -> None:
        """Take the bar off the screen and end the files."""
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def _write(self, step: int) -> None:
        names = {name: None for values in self.pending for name in values}
        line: dict[str, Any] = {"stage": self.stage, "step": step}
        for name in names:
            seen = [values[name] for values in self.pending if name in values]
            line[name] = _rounded(sum(seen) / len(seen))
        if (most := line.pop("tiles_most", None)) is not None:
            load = TileLoad(most=most, mean=line.pop("tiles_mean"))
            line["tile_imbalance"] = _rounded(load.imbalance)
        line["seconds"] = round(time.monotonic() - self.started, 1)
        self.pending.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name in line.keys() - {"stage", "step"}:
                self.board.add_scalar(f"{self.stage}/{name}", line[name], step)
        log.info("%s", " ".join(f"{k}={v}" for k, v in line.items()))


class SilentMetrics:
    """The metrics of a rank that is not the main one, which writes for all."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def start(self, step: int) -> None:
        """Nothing to show."""

    def add(
        self, step: int, values: Mapping[str, float], sizes: Mapping[str, int], **_: float
    ) -> None:
        """The main rank has the same figures."""

    def state(self) -> list[dict[str, float]]:
        """The main rank's counts."""
        return []

    def restore(self, state: Sequence[Mapping[str, float]]) -> None:
        """Nothing is waiting to be written."""

    def close(self) -> None:
        """Nothing is open."""


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else value


def _short(values: Mapping[str, float]) -> str:
    wanted = {
        "loss": "loss {:.3f}",
        "grad_norm": "norm {:.2f}",
        "tokens_per_s": "{:,.0f} tok/s",
        "images_per_s": "{:.1f} img/s",
        "mfu": "MFU {:.1%}",
        "data_wait": "data {:.0%}",
    }
    return "  ".join(form.format(values[name]) for name, form in wanted.items() if name in values)


def _cut_after(path: Path, stage: str, step: int) -> None:
    """Drop the lines of later steps of this stage, and incomplete lines."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and (line.get("stage") != stage or line.get("step", 0) <= step):
            kept.append(text + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise ValueError('tensorboard=true needs the package: pip install "vl2[train]"') from None
    return SummaryWriter(str(folder))
