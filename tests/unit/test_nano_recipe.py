"""The embedded model's recipe, whole, on a few drawn pictures."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vl2.checkpoint.load import load_model
from vl2.config import VL2Config
from vl2.data.collate import TrainBatch
from vl2.data.synthetic import SceneRecipe, dense_labels, draw_scene
from vl2.ops.loss import IGNORE_ID
from vl2.processing.processor import Processor
from vl2.recipes import nano_corpus
from vl2.recipes.bpe import train_tokenizer
from vl2.recipes.nano import NanoRecipe, nano, scene_recipe, shard_kinds, train
from vl2.recipes.nano_corpus import (
    BatchPlan,
    ReplayLoader,
    describe,
    draw_shard,
    question_batches,
)
from vl2.recipes.nano_tokenizer import PIECES, save_tokenizer
from vl2.recipes.nano_warmup import EDGE_BINS, edge_classes

FONTS = (None,)


def small_config() -> VL2Config:
    config = VL2Config.nano()
    language = replace(config.language_config, num_hidden_layers=2, vocab_size=600)
    vision = replace(config.vision_config, layers=1)
    return replace(config, language_config=language, vision_config=vision)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> NanoRecipe:
    """The real recipe with one small shard of each kind and two steps a stage."""
    monkeypatch.setattr(nano_corpus, "PICTURES_PER_SHARD", 12)
    monkeypatch.setattr("vl2.recipes.nano.PATCH_BATCH", 6)
    whole = nano()
    stages = {
        name: replace(stage, steps=2, optim=replace(stage.optim, warmup=1))
        for name, stage in whole.stages.items()
    }
    plan = BatchPlan(tokens=1024)
    return replace(
        whole,
        stages=stages,
        fonts=FONTS,
        text_plan=plan,
        picture_plan=plan,
        tokenizer_scenes=50,
        shards=dict.fromkeys(whole.shards, 1),
    )


@pytest.mark.slow
def test_from_nothing_to_a_model_that_loads(short: NanoRecipe, tmp_path: Path):
    release = train(short, tmp_path, small_config())
    model = load_model(release, device="cpu")
    assert model.image_newline.dtype == torch.bfloat16
    processor = Processor.from_pretrained(release)
    scene = draw_scene(np.random.default_rng(0), recipe=scene_recipe(FONTS))
    question = [{"role": "<|User|>", "content": "<image>\nRead the text."}]
    inputs = processor.from_conversation(
        [*question, {"role": "<|Assistant|>", "content": ""}], [scene.image]
    )
    with torch.no_grad():
        logits = model(**processor.collate([inputs])).logits
    assert logits.isfinite().all()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    again = load_model(train(short, tmp_path, small_config()), device="cpu").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_stages_stand_in_the_papers_order_and_freeze_what_it_freezes():
    stages = nano().stages
    warmups, annealed = ("see", "talk"), ("sft_last", "sft_reading", "sft_counting")
    assert list(stages) == [*warmups, "align", "pretrain", "sft", *annealed]
    assert not any("language".startswith(prefix) for prefix in stages["align"].trained)
    assert stages["pretrain"].bias_step == 0.001
    assert stages["align"].bias_step == 0.0


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    folder = tmp_path_factory.mktemp("nano")
    VL2Config.nano().save(folder)
    save_tokenizer(folder, 600, 50)
    return Processor.from_pretrained(folder)


def shard(processor: Processor, folder: Path, **changes) -> Path:
    kind = replace(shard_kinds(1, FONTS)["full"], **changes)
    return draw_shard(kind, 0, folder, processor)


def test_a_shard_is_drawn_once_and_always_the_same(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nano_corpus, "PICTURES_PER_SHARD", 6)
    first = shard(processor, tmp_path / "a")
    stamp = first.stat().st_mtime_ns
    assert shard(processor, tmp_path / "a").stat().st_mtime_ns == stamp
    assert shard(processor, tmp_path / "b").read_bytes() == first.read_bytes()
    assert [file.name for file in (tmp_path / "a").iterdir()] == [first.name]


@pytest.mark.parametrize("supervise_prompt", [False, True])
def test_batches_supervise_text_only_and_feed_the_model(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervise_prompt: bool
):
    monkeypatch.setattr(nano_corpus, "PICTURES_PER_SHARD", 16)
    plan = BatchPlan(tokens=1500, tiles=20, text_share=0.5, supervise_prompt=supervise_prompt)
    image_id = processor.tokenizer.image_id
    source = question_batches(
        [shard(processor, tmp_path, short_references=True)], plan, 0, ignore_ids=(image_id,)
    )
    assistant = processor.tokenizer.assistant_id
    for _ in range(12):
        made = next(source)
        batch = made.tensors
        assert made.tokens == int(batch["attention_mask"].sum())
        assert made.supervised == int((batch["labels"] != IGNORE_ID).sum())
        assert made.images == (len(batch["input_ids"]) if "images" in batch else 0)
        labels, ids = batch["labels"], batch["input_ids"]
        assert ids.numel() <= max(1500, ids.shape[1])
        supervised = labels != IGNORE_ID
        assert supervised.any()
        assert torch.equal(labels[supervised], ids[supervised])
        assert not (supervised & (ids == image_id)).any()
        assert not (supervised & ~batch["attention_mask"]).any()
        questions = supervised & (ids == assistant)
        assert questions.any() == supervise_prompt
        if "images" in batch:
            counts = 1 + batch["images_spatial_crop"].prod(dim=-1).sum(dim=-1)
            assert batch["images"].shape[1] == counts.max()
            assert batch["images"].abs().max() <= 1


def test_a_described_scene_names_every_object_with_its_box():
    recipe = SceneRecipe(kinds=(("mixed", 1.0),), fonts=FONTS)
    scene = draw_scene(np.random.default_rng(3), recipe=recipe)
    lines = describe(scene).splitlines()
    assert len(lines) == len(scene.objects)
    for line, item in zip(lines, scene.objects, strict=True):
        assert item.name in line
        assert line.count(",") == 3


def test_the_tokenizer_keeps_digits_and_capitals_apart():
    tokenizer = train_tokenizer(["the year 1234 was GOOD", "the THE THE 12 12"] * 20, 400, PIECES)
    for text in ("1234", "GOOD", "A7K"):
        assert len(tokenizer.encode(text).ids) == len(text)
    text = "Größe 12,\n\n价格 [[1, 2]]"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id("<|det|>") == 6


def test_edges_fall_into_the_class_of_their_place():
    scene = draw_scene(np.random.default_rng(5), recipe=scene_recipe(FONTS))
    labels = dense_labels(scene, image_size=112, patch=14)
    classes = edge_classes(torch.from_numpy(labels["box"])[None], 8)[0]
    for item in scene.objects:
        here = torch.from_numpy(labels["shape_id"] + labels["char_id"]) > 0
        rows, columns = here.nonzero().T
        x1, y1, x2, y2 = item.box
        inside = [
            (r, c)
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
            if x1 <= 14 * c + 7 < x2 and y1 <= 14 * r + 7 < y2
        ]
        for row, column in inside:
            expected = [min(31, int(edge / 112 * EDGE_BINS)) for edge in item.box]
            difference = (classes[row, column] - torch.tensor(expected)).abs().max()
            assert difference <= 1  # float32 on a class's border


def test_a_replayed_stream_goes_on_behind_its_state():
    def numbers():
        for n in itertools.count():
            yield TrainBatch(tensors={"n": torch.tensor(n)})

    loader = ReplayLoader(numbers)
    steps = iter(loader)
    seen = [next(steps)[0].tensors["n"].item() for _ in range(3)]
    state = loader.state()
    again = ReplayLoader(numbers)
    again.restore(state)
    assert seen == [0, 1, 2]
    assert next(iter(again))[0].tensors["n"].item() == 3
