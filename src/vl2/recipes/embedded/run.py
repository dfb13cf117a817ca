"""Make the embedded model: `python -m vl2.recipes.embedded.run --out FOLDER`.

Pictures are drawn ahead by a process of low priority. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from pathlib import Path

import torch

from vl2.checkpoint.dcp import CheckpointStore
from vl2.data.make.world import world
from vl2.logs import get_logger, log_to_stderr
from vl2.model.vl2 import VL2Model
from vl2.processing.layout import TileLayout
from vl2.recipes.embedded.see import PlaceReader, SeeTask
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import ShardLoader, write_shard
from vl2.recipes.embedded.tiles import cut_tiles, draw_tiles
from vl2.train.config import CheckpointConfig, GuardConfig, OptimConfig
from vl2.train.metrics import MetricsLog
from vl2.train.optim import Optimizers
from vl2.train.trainer import Trainer

log = get_logger(__name__)

SEED = 20261130
SEE_TILES, SEE_PLACES = 16, 1024
SEE_SHARDS, SEE_STEPS = 60, 20_000
SEE_KINDS = {
    "words": 0.2,
    "lines": 0.35,
    "blocks": 0.15,
    "pages": 0.12,
    "papers": 0.06,
    "tables": 0.06,
    "screens": 0.04,
    "charts": 0.02,
}


def layout() -> TileLayout:
    """How the embedded model's processor cuts pictures."""
    config = embedded()
    return TileLayout(
        candidates=config.candidate_resolutions,
        image_size=config.vision_config.image_size,
        side=-(-config.vision_config.patches_per_side // config.projector_config.downsample_ratio),
    )


def draw(folder: Path) -> None:
    """Draw every shard that is missing, in the order in which they are read."""
    os.nice(15)
    torch.set_num_threads(1)
    for number in range(SEE_SHARDS):
        path = see_shard(folder, number)
        if not path.exists():
            write_shard(path, draw_tiles(number, SEED, SEE_KINDS, world("train"), layout()))


def see_shard(folder: Path, number: int) -> Path:
    """The file of a shard of tiles."""
    return folder / "corpus" / f"tiles-{number:04}.safetensors"


def see(out: Path) -> None:
    """The tower's own stage."""
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(SEED))
    torch.manual_seed(SEED)
    reader = PlaceReader(model)
    optim = OptimConfig(
        optimizer="muon",
        learning_rate=2e-3,
        vision_scale=1.0,
        warmup=200,
        weight_decay=0.05,
        floor=0.1,
    )
    cut = partial(cut_tiles, tiles=SEE_TILES, places=SEE_PLACES)
    shards = [see_shard(out, number) for number in range(SEE_SHARDS)]
    with CheckpointStore(out / "see" / "checkpoints", keep=2) as store:
        Trainer(
            SeeTask(reader, compiled=True),
            ShardLoader(shards, cut, SEED),
            Optimizers(reader, optim, SEE_STEPS),
            store,
            MetricsLog(out, steps=SEE_STEPS, every=20, stage="see"),
            guard=GuardConfig(spike=0.0),
            checkpoint=CheckpointConfig(every=250, keep=2),
        ).run()


def main() -> None:
    """Command line: where to work."""
    parser = argparse.ArgumentParser(description="Train the embedded model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="shards, checkpoints, model")
    out: Path = parser.parse_args().out
    log_to_stderr()
    drawer = multiprocessing.get_context("spawn").Process(target=draw, args=(out,), daemon=True)
    drawer.start()
    see(out)


if __name__ == "__main__":
    main()
