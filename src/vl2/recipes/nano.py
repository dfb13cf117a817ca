"""How the embedded model is made, from nothing: `python -m vl2.recipes.nano --out FOLDER`.

The released models start from a pretrained SigLIP and a pretrained DeepSeekMoE. Nano has neither,
so two warm-ups stand in for them: the vision tower learns to say what lies under each patch
("see"), the language model learns to answer from scenes described in words ("talk"). Then come the
three stages of the paper (section 4.1): align with the language model frozen, pretrain with
everything, SFT with only answers supervised. SFT has parts: the full mixture, mostly pictures of
one tile, and twice pictures of several objects, among which the model must choose. Everything is
drawn from seeds; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vl2.checkpoint.hf import save_model
from vl2.config import VL2Config
from vl2.data.synthetic import (
    COLOURS,
    LETTERS,
    SHAPES,
    SceneRecipe,
    fetch_fonts,
    font_split,
)
from vl2.logs import get_logger, log_to_stderr
from vl2.model.moe import MoE
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.ops.moe import expert_load, update_bias
from vl2.processing import Processor
from vl2.recipes.nano_corpus import (
    PATCH_LABELS,
    BatchPlan,
    ShardKind,
    draw_shard,
    patch_batches,
    question_batches,
    text_batches,
)
from vl2.recipes.nano_tokenizer import save_tokenizer
from vl2.train.loop import Batch, Stage, StepResult, train_stage

log = get_logger(__name__)

SEED = 20241213
PATCH_BATCH = 24
VISION = ("vision.patch_embed", "vision.pos_embed", "vision.blocks", "vision.norm")
BRIDGE = ("projector", "image_newline", "view_seperator")


class VisionWarmup(nn.Module):
    """The tower with linear heads for what lies under each patch; the heads are thrown away."""

    def __init__(self, model: VL2Model) -> None:
        super().__init__()
        width = model.config.vision_config.width
        self.vision = model.vision
        self.heads = nn.ModuleDict(
            {
                "shape_id": nn.Linear(width, 1 + len(SHAPES)),
                "colour_id": nn.Linear(width, 1 + len(COLOURS)),
                "char_id": nn.Linear(width, 1 + len(LETTERS)),
                "box": nn.Linear(width, 4),
            }
        )

    def step(self, batch: Batch) -> StepResult:
        """Cross entropy of the three names, and the edges of the box where there is an object."""
        features = self.vision(batch["tiles"]).flatten(0, 1)
        losses, report = [], {}
        for name in PATCH_LABELS:
            target = batch[name].flatten().long()
            logits = self.heads[name](features)
            losses.append(F.cross_entropy(logits, target) + _foreground_loss(logits, target))
            hit = (logits.argmax(-1) == target)[target > 0].float()
            report[name] = hit.mean().item() if len(hit) else 1.0
        box = batch["box"].flatten(0, 2)
        inside = box.abs().sum(-1) > 0
        distance = (self.heads["box"](features) - box)[inside].abs()
        losses.append(10 * distance.mean())
        report["box"] = distance.mean().item()
        return StepResult(loss=torch.stack(losses).sum(), report=report)


def _foreground_loss(logits: Tensor, target: Tensor) -> Tensor:
    there = target > 0
    return F.cross_entropy(logits[there], target[there]) if there.any() else logits.sum() * 0


@dataclass(frozen=True, kw_only=True, slots=True)
class NanoRecipe:
    """Every number of the run."""

    stages: Mapping[str, Stage]
    fonts: tuple[Path | None, ...] | None = None  # None fetches the pinned packages' fonts
    seed: int = SEED
    tokenizer_scenes: int = 4000
    patch_shards: int = 24
    easy_shards: int = 40
    full_shards: int = 30
    answer_shards: int = 16
    several_shards: int = 14
    text_plan: BatchPlan = field(default_factory=BatchPlan)
    picture_plan: BatchPlan = field(default_factory=lambda: BatchPlan(tokens=3072))


STAGES = (
    Stage(
        name="see",
        steps=2400,
        learning_rate=2.5e-3,
        trained=("vision", "heads"),
        weight_decay=0.05,
    ),
    Stage(
        name="talk",
        steps=500,
        learning_rate=3e-3,
        trained=("language",),
        warmup=40,
        bias_step=0.001,
    ),
    Stage(
        name="align",
        steps=200,
        learning_rate=2e-3,
        trained=(*VISION, *BRIDGE),
        vision_scale=0.1,
    ),
    Stage(
        name="pretrain",
        steps=1000,
        horizon=2400,
        learning_rate=2e-3,
        trained=("",),
        vision_scale=0.3,
        bias_step=0.001,
    ),
    Stage(
        name="sft",
        steps=800,
        horizon=2000,
        learning_rate=1.5e-3,
        trained=("",),
        vision_scale=0.3,
        warmup=20,
        bias_step=0.001,  # the paper has 0 here; without it the loads drifted apart
    ),
    Stage(
        name="sft_easy",
        steps=800,
        horizon=1700,
        learning_rate=1.3e-3,
        trained=("",),
        vision_scale=0.3,
        warmup=20,
        bias_step=0.001,
    ),
    Stage(
        name="sft_several",
        steps=1150,
        learning_rate=2.5e-3,
        trained=("",),
        vision_scale=0.2,
        warmup=20,
        bias_step=0.001,
    ),
    Stage(
        name="sft_last",
        steps=1250,
        learning_rate=1.5e-3,
        trained=("",),
        vision_scale=0.2,
        warmup=10,
        bias_step=0.001,
    ),
)
"""In their order; a change of the numbers is another model."""


def nano() -> NanoRecipe:
    """The run that made the embedded model."""
    return NanoRecipe(stages={stage.name: stage for stage in STAGES})


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
    """Pictures for the tower's warm-up, easy ones of one tile, the full mixture, SFT's own."""
    easy = scene_recipe(fonts)
    patches = replace(
        easy,
        kinds=(("crowd", 0.8), ("text", 0.1), ("shapes", 0.1)),
        min_cap_height=26.0,
        min_shape=24.0,
    )
    free = (
        ((112, 112), 0.7),
        ((224, 112), 0.08),
        ((112, 224), 0.05),
        ((224, 224), 0.07),
        (None, 0.1),
    )
    full = replace(
        easy, sizes=free, text_styles=(("code", 0.85), ("long code", 0.1), ("word", 0.05))
    )
    several = replace(easy, kinds=(("shapes", 0.5), ("count", 0.25), ("text", 0.25)))
    kinds = (
        ShardKind(name="patches", seed=seed + 1, recipe=patches, patch_labels=True),
        ShardKind(name="easy", seed=seed + 2, recipe=easy),
        ShardKind(name="full", seed=seed + 3, recipe=full),
        ShardKind(name="answers", seed=seed + 4, recipe=full, short_references=True),
        ShardKind(name="several", seed=seed + 5, recipe=several, short_references=True),
    )
    return {kind.name: kind for kind in kinds}


def draw_corpus(recipe: NanoRecipe, folder: Path, processor: Processor) -> dict[str, list[Path]]:
    """Every shard of the run, drawn where it is missing."""
    fonts = recipe.fonts or tuple(font_split(fetch_fonts(), "train"))
    kinds = shard_kinds(recipe.seed, fonts)
    counts = {
        "patches": recipe.patch_shards,
        "easy": recipe.easy_shards,
        "full": recipe.full_shards,
        "answers": recipe.answer_shards,
        "several": recipe.several_shards,
    }
    corpus = {}
    for name, count in counts.items():
        corpus[name] = [draw_shard(kinds[name], n, folder, processor) for n in range(count)]
        log.info("%s: %d shards", name, count)
    return corpus


class LanguageStep:
    """Next-token loss and balance loss; afterwards the routers' biases move against the load."""

    def __init__(self, model: VL2Model, bias_step: float) -> None:
        self.model, self.bias_step = model, bias_step
        layers = model.language.model.layers
        self.routers = [layer.mlp.gate for layer in layers if isinstance(layer.mlp, MoE)]

    def __call__(self, batch: Batch) -> StepResult:
        """One forward pass."""
        out = self.model(**batch, logits="none")
        assert out.loss is not None
        assert out.balance_loss is not None
        experts = self.routers[0].weight.shape[0]
        mask = batch["attention_mask"]
        loads = [expert_load(routing, mask, experts) for routing in out.language.routing]
        imbalance = max(float(load.max() / load.mean()) for load in loads)

        def balance() -> None:
            for router, load in zip(self.routers, loads, strict=True):
                bias = router.e_score_correction_bias
                bias.copy_(update_bias(bias, load, self.bias_step))

        report = {"loss": out.loss.item(), "imbalance": imbalance}
        return StepResult(
            loss=out.loss + out.balance_loss,
            report=report,
            after=balance if self.bias_step else None,
        )


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
    see = recipe.stages["see"]
    warmup = VisionWarmup(model)
    tiles = patch_batches(corpus["patches"], PATCH_BATCH, recipe.seed)
    train_stage(warmup, see, tiles, warmup.step, out)
    for name, batches in language_batches(recipe, corpus, processor.tokenizer.image_id).items():
        stage = recipe.stages[name]
        train_stage(model, stage, batches, LanguageStep(model, stage.bias_step), out)
    processor.save_pretrained(release)
    save_model(model.to(torch.bfloat16), release, max_shard_bytes=None)
    return release


def language_batches(
    recipe: NanoRecipe, corpus: Mapping[str, Sequence[Path]], image_id: int
) -> dict[str, Iterator[Batch]]:
    """What each stage with the language model reads, in the order of the stages."""
    easy, everything = corpus["easy"], [*corpus["easy"], *corpus["full"]]
    unseen = easy[-18:]  # pretraining ends before it reaches these
    seed, ids = recipe.seed, (image_id,)
    text = replace(recipe.text_plan, supervise_prompt=True)
    answers, prompts = recipe.picture_plan, replace(recipe.picture_plan, supervise_prompt=True)
    mixed = replace(prompts, text_share=0.1)
    return {
        "talk": text_batches(everything, text, seed, ignore_ids=ids),
        "align": question_batches(easy, prompts, seed, ignore_ids=ids),
        "pretrain": question_batches(everything, mixed, seed, ignore_ids=ids),
        "sft": question_batches(
            [*corpus["answers"], *corpus["full"]], answers, seed, ignore_ids=ids
        ),
        "sft_easy": question_batches(
            [*corpus["answers"], *unseen], answers, seed + 1, ignore_ids=ids
        ),
        "sft_several": question_batches(corpus["several"], answers, seed, ignore_ids=ids),
        "sft_last": question_batches(
            [*unseen, *corpus["several"]], answers, seed + 3, ignore_ids=ids
        ),
    }


def budget(recipe: NanoRecipe, out: Path) -> Iterator[dict[str, object]]:
    """What each stage sees: pictures, scenes described in words, tokens, supervised tokens."""
    processor = Processor.from_pretrained(out / "model")
    corpus = draw_corpus(recipe, out / "corpus", processor)
    steps = recipe.stages["see"].steps
    yield {"stage": "see", "steps": steps, "pictures": steps * PATCH_BATCH}
    for name, batches in language_batches(recipe, corpus, processor.tokenizer.image_id).items():
        seen = {"pictures": 0, "described": 0, "tokens": 0, "supervised": 0}
        for batch in itertools.islice(batches, recipe.stages[name].steps):
            seen["pictures" if "images" in batch else "described"] += len(batch["input_ids"])
            seen["tokens"] += int(batch["attention_mask"].sum())
            seen["supervised"] += int((batch["labels"] != IGNORE_ID).sum())
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
