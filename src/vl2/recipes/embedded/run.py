"""Make the embedded model: `python -m vl2.recipes.embedded.run --out FOLDER`.

Stages: "see" teaches the tower alone, "read" trains everything at a constant rate for as long as it
may, "release" branches off its newest state, lets the rate fall, learns answers alone and gives the
model. Pictures are drawn ahead by a process of low priority. A stopped run resumes where it was. A
run without a state starts from the model that is shipped, if that has the same shape.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vl2.checkpoint.commit import newest_state
from vl2.checkpoint.dcp import CheckpointStore, load_step, read_extra
from vl2.checkpoint.load import load_model
from vl2.checkpoint.save import save_model
from vl2.config import VL2Config
from vl2.data.make.world import world
from vl2.engine.engine import Engine
from vl2.failure import WorkError
from vl2.folders import check_folder
from vl2.logs import get_logger, log_to_stderr
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.recipes.embedded.answers import cut_answers, draw_answers
from vl2.recipes.embedded.exam import SKILLS, draw_items, examine
from vl2.recipes.embedded.mixture import READ_KINDS, SEE_KINDS
from vl2.recipes.embedded.see import PlaceReader, SeeTask, named_share
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import Cut, ShardLoader, Tensors, Window, draw_ahead
from vl2.recipes.embedded.tiles import cut_tiles, draw_tiles
from vl2.recipes.embedded.tokenizer import save_tokenizer
from vl2.train.config import BalanceConfig, CheckpointConfig, GuardConfig, OptimConfig
from vl2.train.metrics import MetricsLog
from vl2.train.optim import Optimizers
from vl2.train.task import LanguageTask, Task
from vl2.train.trainer import STOPPED, Trainer, TrainingStopped, model_state

log = get_logger(__name__)

SEED = 20261130
EXAM_SEED = 77_000_000
"""Far from the seeds of the shards."""
EXAM_ITEMS = 100
"""Of each skill, and of tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage: what it reads, how it moves, and how often it is examined."""

    name: str
    draw: Callable[[Path, int], Tensors]
    cut: Cut  # into micro batches whose activations stay in the cache
    micro: int  # of them a step
    optim: OptimConfig
    steps: int
    examined: int  # every so many steps

    def window(self, out: Path) -> Window:
        """Where its shards lie."""
        return Window(folder=out / "corpus" / self.name)

    def states(self, out: Path) -> Path:
        """Where its states are kept."""
        return out / self.name / "checkpoints"


def draw_see(_: Path, number: int) -> Tensors:
    """A shard of the tower's stage."""
    return draw_tiles(number, SEED, SEE_KINDS, world("train"))


def draw_read(out: Path, number: int) -> Tensors:
    """A shard of questions and answers."""
    processor = Processor.from_pretrained(out / "model")
    return draw_answers(number, SEED + 1, READ_KINDS, world("train"), processor)


OPTIM = OptimConfig(
    optimizer="muon",
    learning_rate=2e-3,
    vision_scale=1.0,
    schedule="constant",
    warmup=200,
    weight_decay=0.05,
)
cut_read = partial(cut_answers, tokens=2048, tiles=9)
SEE = Stage(
    name="see",
    draw=draw_see,
    cut=partial(cut_tiles, tiles=8, places=1024),
    micro=4,
    optim=OPTIM,
    steps=5_500,
    examined=500,
)
READ = Stage(
    name="read",
    draw=draw_read,
    cut=partial(cut_read, learn_questions=True),
    micro=4,
    optim=replace(OPTIM, vision_scale=0.5),
    steps=200_000,
    examined=2000,
)
RELEASE_STEPS = 3000
"""In which the rate falls to nothing."""


def prepare(out: Path) -> Processor:
    """Write the configuration and the tokenizer, unless they are there."""
    folder = out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    config = embedded()
    config.save(folder)
    save_tokenizer(folder, config.language_config.vocab_size, world("train"), SEED)
    return Processor.from_pretrained(folder)


def train(stage: Stage, task: Task, out: Path, examine: Callable[[], dict[str, Any]]) -> None:
    """Train from the newest state to the stage's end, with an examination every so often."""
    with CheckpointStore(stage.states(out), keep=2) as store:
        found = store.newest()
        extra = read_extra(found) if found else {"step": 0, "loader": {"whole": 0}}
        first = stage.window(out).first_needed(extra["loader"]["whole"])
        with _drawing(stage, out, first) as filled:
            for until in range(extra["step"] + 1, stage.steps + 1):
                if until % stage.examined == 0 or until == stage.steps:
                    loader = ShardLoader(
                        stage.window(out), stage.cut, SEED, micro=stage.micro, filled=filled
                    )
                    _train_until(until, stage, task, loader, store, out)
                    _note(out, {"stage": stage.name, "step": until, **examine()})


def _train_until(
    until: int, stage: Stage, task: Task, loader: ShardLoader, store: CheckpointStore, out: Path
) -> None:
    Trainer(
        task,
        loader,
        Optimizers(task.module, stage.optim, stage.steps),
        store,
        MetricsLog(out, steps=until, every=20, stage=stage.name),
        guard=GuardConfig(spike=0.0),
        checkpoint=CheckpointConfig(every=250, keep=2),
    ).run()


@contextmanager
def _drawing(stage: Stage, out: Path, first: int) -> Iterator[Callable[[], bool]]:
    """Meanwhile a process of low priority fills the stage's window; tells whether it lives."""
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_draw, args=(stage, out, first), daemon=True)
    process.start()
    try:
        yield process.is_alive
    finally:
        process.terminate()


def _draw(stage: Stage, out: Path, first: int) -> None:
    os.nice(5)
    torch.set_num_threads(1)
    draw_ahead(stage.window(out), first, partial(stage.draw, out))


def _note(out: Path, row: dict[str, Any]) -> None:
    """Add a line to the scores and to the log."""
    line = json.dumps({"time": round(time.time()), **row})
    log.info("%s", line)
    with (out / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def see(model: VL2Model, out: Path) -> None:
    """The tower's own stage; the model has its tower afterwards."""
    reader = PlaceReader(model)

    def examine() -> dict[str, float]:
        tiles = draw_tiles(0, EXAM_SEED, SEE_KINDS, world("heldout"), EXAM_ITEMS)
        return named_share(reader, tiles)

    train(SEE, SeeTask(reader), out, examine)
    found = newest(SEE, out)
    assert found is not None  # the stage's last step is kept
    load_step(found, model_state(reader), subset=True)


def newest(stage: Stage, out: Path) -> Path | None:
    """The newest kept state of a stage; nothing is made where there is none."""
    return newest_state(stage.states(out))


def begin(out: Path) -> VL2Model:
    """The model that reading starts from: shipped weights of this shape, or a tower that sees."""
    torch.manual_seed(SEED)
    shipped = replace(VL2Config.from_pretrained("nano"), architectures=None)
    if shipped == embedded() and newest(SEE, out) is None:
        log.info("starting from the weights that are shipped")
        return load_model("nano", torch.float32, "cpu")
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(SEED))
    see(model, out)
    return model


def read(model: VL2Model, out: Path, stage: Stage = READ) -> None:
    """Questions and answers, everything trained."""
    processor = prepare(out)
    task = LanguageTask(model, BalanceConfig(loss_weight=0.0001, bias_step=0.001), autocast=True)

    def skills() -> dict[str, Any]:
        engine = Engine(model.eval(), processor)
        drawn = (draw_items(s, EXAM_ITEMS, EXAM_SEED, world("heldout")) for s in SKILLS.values())
        pairs = zip(SKILLS.items(), drawn, strict=True)  # one skill's pictures are held at a time
        return {name: examine(engine, skill, items) for (name, skill), items in pairs}

    train(stage, task, out, skills)


def release(out: Path) -> Path:
    """Branch off the newest state of reading; returns the folder of the model.

    Raises:
        ValueError: there is no state to branch off.
    """
    trunk = newest(READ, out)
    if trunk is None:
        raise ValueError(f"{out} holds no state of {READ.name!r}: train first")
    begun = read_extra(trunk)["step"]
    branch = replace(
        READ,
        name=f"release-{begun}",
        cut=cut_read,
        optim=replace(READ.optim, decay=RELEASE_STEPS),
        steps=begun + RELEASE_STEPS,
        examined=RELEASE_STEPS,
    )
    if newest(branch, out) is None:
        shutil.copytree(trunk, branch.states(out) / trunk.name)
    model = VL2Model(embedded())
    read(model, out, branch)
    save_model(model.to(torch.bfloat16), out / "model", max_shard_bytes=None)
    return out / "model"


def main() -> None:
    """Command line: where to work, and whether to release."""
    parser = argparse.ArgumentParser(description="Train the embedded model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="shards, checkpoints, model")
    parser.add_argument("--release", action="store_true", help="finish the newest state")
    arguments = parser.parse_args()
    log_to_stderr()
    try:
        check_folder(arguments.out, "--out")
        if arguments.release:
            log.info("finished: %s", release(arguments.out))
        else:
            read(begin(arguments.out), arguments.out)
    except TrainingStopped as stop:
        log.warning("%s", stop)
        sys.exit(STOPPED)
    except WorkError as error:
        log.error("%s", error)
        sys.exit(1)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
