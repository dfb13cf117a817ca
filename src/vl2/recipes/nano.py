"""How the embedded model is made, from nothing: `python -m vl2.recipes.nano --out FOLDER`.

The released models start from a pretrained SigLIP and a pretrained DeepSeekMoE. Nano has neither,
so two warm-ups stand in for them: the vision tower learns to say what lies under each patch
("see"), the language model learns to answer from scenes described in words ("talk"). Then come the
three stages of the paper (section 4.1): align with the language model frozen, pretrain with
everything, SFT with only answers supervised. Most pictures show several objects, and each is asked
about many times: choosing one object by its name is what a small model learns last. SFT ends on
pictures of one tile with few questions each, at last with more text and counting. Everything is
drawn from seeds; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vl2.checkpoint.dcp import CheckpointStore
from vl2.checkpoint.save import save_model
from vl2.config import VL2Config
from vl2.data.synthetic import SceneRecipe, fetch_fonts, font_split
from vl2.logs import get_logger, log_to_stderr
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.recipes.nano_corpus import (
    Batches,
    BatchPlan,
    ReplayLoader,
    ShardKind,
    draw_shard,
    patch_batches,
    question_batches,
    text_batches,
)
from vl2.recipes.nano_tokenizer import save_tokenizer
from vl2.recipes.nano_warmup import VisionWarmup
from vl2.train.config import BalanceConfig, CheckpointConfig, GuardConfig, OptimConfig
from vl2.train.metrics import MetricsLog
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask, Task
from vl2.train.trainer import Trainer

log = get_logger(__name__)

SEED = 20241213
PATCH_BATCH = 24
VISION = ("vision.patch_embed", "vision.pos_embed", "vision.blocks", "vision.norm")
BRIDGE = ("projector", "image_newline", "view_seperator")


@dataclass(frozen=True, kw_only=True, slots=True)
class NanoStage:
    """One stage of the run."""

    name: str
    steps: int
    trained: tuple[str, ...]  # parameter name prefixes; everything else is frozen
    optim: OptimConfig
    bias_step: float = 0.0  # of the routers' loss-free balancing


def _muon(learning_rate: float, **settings: Any) -> OptimConfig:
    """Muon, a warm-up, and a cosine to a tenth."""
    return OptimConfig(
        **{
            "optimizer": "muon",
            "learning_rate": learning_rate,
            "vision_scale": 1.0,
            "warmup": 100,
            "floor": 0.1,
            **settings,
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NanoRecipe:
    """Every number of the run."""

    stages: Mapping[str, NanoStage]
    shards: Mapping[str, int]  # how many of each kind
    fonts: tuple[Path | None, ...] | None = None  # None fetches the pinned packages' fonts
    seed: int = SEED
    tokenizer_scenes: int = 4000
    text_plan: BatchPlan = field(default_factory=BatchPlan)
    picture_plan: BatchPlan = field(default_factory=lambda: BatchPlan(tokens=3072))


STAGES = (
    NanoStage(
        name="see",
        steps=2400,
        trained=("vision", "heads"),
        optim=_muon(2.5e-3, weight_decay=0.05),
    ),
    NanoStage(
        name="talk",
        steps=300,
        trained=("language",),
        optim=_muon(3e-3, warmup=40),
        bias_step=0.001,
    ),
    NanoStage(
        name="align",
        steps=150,
        trained=(*VISION, *BRIDGE),
        optim=_muon(2e-3, vision_scale=0.1),
    ),
    NanoStage(
        name="pretrain",
        steps=1600,
        trained=("",),
        optim=_muon(3e-3, vision_scale=0.3, horizon=4000),
        bias_step=0.001,
    ),
    NanoStage(
        name="sft",
        steps=2400,
        trained=("",),
        optim=_muon(2.5e-3, vision_scale=0.3, warmup=20),
        bias_step=0.001,  # the paper has 0 here; without it the loads drifted apart
    ),
    NanoStage(
        name="sft_last",
        steps=2200,
        trained=("",),
        optim=_muon(2e-3, vision_scale=0.3, warmup=20),
        bias_step=0.001,
    ),
    NanoStage(
        name="sft_reading",
        steps=1600,
        trained=("",),
        optim=_muon(2e-3, vision_scale=0.5, warmup=20),
        bias_step=0.001,
    ),
    NanoStage(
        name="sft_counting",
        steps=1200,
        trained=("",),
        optim=_muon(2e-3, vision_scale=0.5, warmup=20),
        bias_step=0.001,
    ),
)
"""In their order; a change of the numbers is another model."""

SHARDS = {"patches": 24, "drills": 36, "full": 10, "exam": 24, "reading": 12, "counting": 10}
"""How many of each of `shard_kinds`; the same holds for them."""


def nano() -> NanoRecipe:
    """The run that made the embedded model."""
    return NanoRecipe(stages={stage.name: stage for stage in STAGES}, shards=SHARDS)


def scene_recipe(fonts: tuple[Path | None, ...], split: str = "train") -> SceneRecipe:
    """What nano is taught and measured on: letters and shapes of two patches and more."""
    return SceneRecipe(
        fonts=fonts,
        split=split,
        sizes=(((112, 112), 1.0),),
        min_cap_height=28.0,
        min_shape=26.0,
        max_shapes=4,
        augment=0.2,
    )


def shard_kinds(seed: int, fonts: tuple[Path | None, ...]) -> dict[str, ShardKind]:
    """Pictures for the tower's warm-up, drills and few questions on one tile, all sizes."""
    easy = scene_recipe(fonts)
    patches = replace(
        easy,
        kinds=(("crowd", 0.8), ("text", 0.1), ("shapes", 0.1)),
        min_cap_height=26.0,
        min_shape=24.0,
    )
    drills = replace(
        easy, kinds=(("shapes", 0.5), ("count", 0.15), ("text", 0.3), ("mixed", 0.05)), min_shapes=2
    )
    free = (
        ((112, 112), 0.5),
        ((224, 112), 0.14),
        ((112, 224), 0.08),
        ((224, 224), 0.1),
        (None, 0.18),
    )
    full = replace(
        easy, sizes=free, text_styles=(("code", 0.85), ("long code", 0.1), ("word", 0.05))
    )
    exam = replace(easy, kinds=(("text", 0.35), ("shapes", 0.4), ("count", 0.25)))
    reading = replace(easy, kinds=(("text", 0.5), ("count", 0.38), ("shapes", 0.12)))
    counting = replace(easy, kinds=(("text", 0.36), ("count", 0.5), ("shapes", 0.14)))
    kinds = (
        ShardKind(name="patches", seed=seed + 1, recipe=patches, patch_labels=True),
        ShardKind(name="drills", seed=seed + 2, recipe=drills, drills=True, short_references=True),
        ShardKind(name="full", seed=seed + 3, recipe=full, short_references=True),
        ShardKind(name="exam", seed=seed + 4, recipe=exam, short_references=True),
        ShardKind(name="reading", seed=seed + 5, recipe=reading, short_references=True),
        ShardKind(name="counting", seed=seed + 6, recipe=counting, short_references=True),
    )
    return {kind.name: kind for kind in kinds}


def draw_corpus(recipe: NanoRecipe, folder: Path, processor: Processor) -> dict[str, list[Path]]:
    """Every shard of the run, drawn where it is missing."""
    fonts = recipe.fonts or tuple(font_split(fetch_fonts(), "train"))
    kinds = shard_kinds(recipe.seed, fonts)
    corpus = {}
    for name, count in recipe.shards.items():
        corpus[name] = [draw_shard(kinds[name], n, folder, processor) for n in range(count)]
        log.info("%s: %d shards", name, count)
    return corpus


def train(recipe: NanoRecipe, out: Path, config: VL2Config | None = None) -> Path:
    """Run every stage in `out`; returns the folder of the finished model."""
    release = out / "model"
    release.mkdir(parents=True, exist_ok=True)
    config = config or VL2Config.nano()
    config.save(release)
    save_tokenizer(release, config.language_config.vocab_size, recipe.tokenizer_scenes)
    processor = Processor.from_pretrained(release)
    corpus = draw_corpus(recipe, out / "corpus", processor)
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(recipe.seed))
    torch.manual_seed(recipe.seed)
    tiles = partial(patch_batches, corpus["patches"], PATCH_BATCH, recipe.seed)
    run_stage(recipe.stages["see"], VisionWarmup(model), tiles, out)
    for name, batches in language_batches(recipe, corpus, processor.tokenizer.image_id).items():
        stage = recipe.stages[name]
        balance = BalanceConfig(loss_weight=0.0001, bias_step=stage.bias_step)  # as for Base
        task = LanguageTask(model, balance)
        run_stage(stage, task, batches, out)
    # Few of its pictures had tiles, and it answers better about a large one that is taken whole.
    settings = replace(processor.config, max_tiled_images=0, single_questions=True)
    tile = config.vision_config.image_size
    Processor(processor.tokenizer, settings, image_size=tile).save_pretrained(release)
    save_model(model.to(torch.bfloat16), release, max_shard_bytes=None)
    return release


def run_stage(stage: NanoStage, task: Task, batches: Batches, out: Path) -> None:
    """Train through one stage, or take over what an earlier run of it has kept."""
    names = freeze(task.module, stage.trained)
    log.info("%s: %d tensors train for %d steps", stage.name, len(names), stage.steps)
    with CheckpointStore(out / stage.name / "checkpoints", keep=1) as store:
        Trainer(
            task,
            ReplayLoader(batches),
            Optimizers(task.module, stage.optim, stage.steps),
            store,
            MetricsLog(out, steps=stage.steps, every=20, stage=stage.name),
            guard=GuardConfig(spike=0.0),
            checkpoint=CheckpointConfig(every=200, keep=1),
        ).run()


def language_batches(
    recipe: NanoRecipe, corpus: Mapping[str, Sequence[Path]], image_id: int
) -> dict[str, Batches]:
    """What each stage with the language model reads, in the order of the stages."""
    drills, everything = corpus["drills"], [*corpus["drills"], *corpus["full"]]
    last = [*corpus["exam"], *drills[: len(drills) // 3]]
    reading = [*corpus["reading"], *corpus["exam"][: len(corpus["exam"]) // 4]]
    counting = [*corpus["counting"], *corpus["reading"][: len(corpus["reading"]) // 2]]
    seed, ids = recipe.seed, (image_id,)
    text = replace(recipe.text_plan, supervise_prompt=True)
    answers, prompts = recipe.picture_plan, replace(recipe.picture_plan, supervise_prompt=True)
    mixed = replace(prompts, text_share=0.1)
    return {
        "talk": partial(text_batches, drills, text, seed, ignore_ids=ids),
        "align": partial(question_batches, drills, prompts, seed, ignore_ids=ids),
        "pretrain": partial(question_batches, everything, mixed, seed + 1, ignore_ids=ids),
        "sft": partial(question_batches, everything, answers, seed + 2, ignore_ids=ids),
        "sft_last": partial(question_batches, last, answers, seed + 3, ignore_ids=ids),
        "sft_reading": partial(question_batches, reading, answers, seed + 4, ignore_ids=ids),
        "sft_counting": partial(question_batches, counting, answers, seed + 5, ignore_ids=ids),
    }


def budget(recipe: NanoRecipe, out: Path) -> Iterator[dict[str, object]]:
    """What each stage sees: pictures, scenes described in words, tokens, supervised tokens."""
    processor = Processor.from_pretrained(out / "model")
    corpus = draw_corpus(recipe, out / "corpus", processor)
    steps = recipe.stages["see"].steps
    yield {"stage": "see", "steps": steps, "pictures": steps * PATCH_BATCH}
    for name, batches in language_batches(recipe, corpus, processor.tokenizer.image_id).items():
        seen = {"pictures": 0, "described": 0, "tokens": 0, "supervised": 0}
        for batch in itertools.islice(batches(), recipe.stages[name].steps):
            seen["pictures"] += batch.images
            seen["described"] += 0 if batch.images else len(batch.tensors["input_ids"])
            seen["tokens"] += batch.tokens
            seen["supervised"] += batch.supervised
        yield {"stage": name, "steps": recipe.stages[name].steps, **seen}


def main() -> None:
    """Command line: where to work, and whether only to count."""
    parser = argparse.ArgumentParser(description="Train the embedded model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="shards, checkpoints, model")
    parser.add_argument("--budget", action="store_true", help="print what a finished run has seen")
    arguments = parser.parse_args()
    log_to_stderr()
    if arguments.budget:
        for row in budget(nano(), arguments.out):
            sys.stdout.write(json.dumps(row) + "\n")
        return
    log.info("finished: %s", train(nano(), arguments.out))


if __name__ == "__main__":
    main()
