import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tests.unit.made import small_world

from vl2.data.make.fonts import ASCII
from vl2.data.make.sample import Made, Mark, Spot, ask
from vl2.failure import WorkError
from vl2.model.vl2 import VL2Model
from vl2.processing.grounding import parse_grounding
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.recipes.bpe import train_tokenizer
from vl2.recipes.embedded import answers, tiles
from vl2.recipes.embedded.answers import cut_answers, draw_answers, written
from vl2.recipes.embedded.see import PlaceReader, SeeTask, named_share
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import ShardLoader, Window, draw_ahead, write_shard
from vl2.recipes.embedded.tiles import cut_tiles, dense_views, draw_tiles, layout
from vl2.recipes.embedded.tokenizer import PIECES


@pytest.fixture(scope="module")
def shard() -> dict[str, torch.Tensor]:
    return draw_tiles(0, 1, {"words": 0.5, "lines": 0.5}, small_world(), count=8)


def test_the_model_has_the_size_that_was_asked_for() -> None:
    with torch.device("meta"):
        model = VL2Model(embedded())
    assert 20e6 < sum(p.numel() for p in model.parameters()) < 32e6


@pytest.mark.parametrize("size", [(640, 640), (300, 60), (90, 700), (1000, 800)])
def test_places_are_where_the_ink_is(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    rng = np.random.default_rng(size[0])
    marks = []
    for _ in range(12):
        x, y = int(rng.integers(size[0] - 24)), int(rng.integers(size[1] - 24))
        ImageDraw.Draw(image).rectangle((x, y, x + 19, y + 19), fill="black")
        marks.append(Mark(kind="char", text="x", box=(x, y, x + 20, y + 20)))
    views = list(dense_views(Made(image=image, marks=tuple(marks), asks=()), layout()))
    assert views
    for view, places in views:
        assert len(places) >= tiles.FEWEST
        for x, y, char in places:
            assert ASCII[char - 1] == "x"
            assert view[int(y), int(x)].max() < 60


def test_a_batch_names_each_place(shard: dict[str, torch.Tensor]) -> None:
    [batch] = cut_tiles(shard, np.random.default_rng(0), 0, tiles=8, places=200)
    places = batch.tensors["places"]
    assert places.shape == (200, 4)
    assert batch.tensors["tiles"].shape == (8, 3, 320, 320)
    known = {tuple(row) for row in shard["places"].tolist()}
    names = [row for row in places.tolist() if row[3] > 0]
    assert names
    named = {(tile, *rest) for tile, *rest in known}
    slots = dict.fromkeys(range(8))
    for slot in slots:
        rows = {(x, y, c) for t, x, y, c in places.tolist() if t == slot and c > 0}
        assert any(rows <= {(x, y, c) for t, x, y, c in named if t == tile} for tile in range(8))


@pytest.mark.parametrize("micro", [1, 3])
def test_going_on_reads_the_same_batches(
    shard: dict[str, torch.Tensor], tmp_path: Path, micro: int
) -> None:
    window = Window(folder=tmp_path, block=2, times=2)
    for number in range(6):
        turned = shard["tiles"].roll(number, dims=0)
        write_shard(window.path(number), {"tiles": turned, "places": shard["places"]})
    make = partial(ShardLoader, window, partial(cut_tiles, tiles=2, places=20), 3, micro=micro)
    loader = make()
    whole, seen, states = iter(loader), [], []
    a_shard = 4 // micro  # steps
    for _ in range(8 * a_shard + 3):  # into the third block
        states.append(loader.state())
        seen.append([batch.tensors for batch in next(whole)])
    assert all(len(step) == micro for step in seen)
    assert window.drawn() == [2, 3, 4, 5]  # the block before may be needed after a step back
    for start in range(4 * a_shard + 1, 8 * a_shard + 3):  # in the block before, and in this one
        again = make()
        again.restore(states[start])
        for batch, kept in zip(next(iter(again)), seen[start], strict=True):
            assert torch.equal(batch.tensors["places"], kept["places"])
            assert torch.equal(batch.tensors["tiles"], kept["tiles"])


def test_a_window_reads_each_shard_of_a_block_equally_often() -> None:
    window = Window(folder=Path("unused"), block=5, times=3)
    read = [window.shard(reading, 7) for reading in range(30)]
    assert read[:5] == [0, 1, 2, 3, 4]
    assert read[5:10] != read[10:15]
    assert all(sorted(read[n : n + 5]) == [0, 1, 2, 3, 4] for n in (0, 5, 10))
    assert read[15:20] == [5, 6, 7, 8, 9]
    assert [window.first_needed(n) for n in (0, 15, 29, 30)] == [0, 0, 0, 5]


def test_a_shard_that_nobody_draws_is_told(tmp_path: Path) -> None:
    cut = partial(cut_tiles, tiles=2, places=20)
    loader = ShardLoader(Window(folder=tmp_path), cut, 1, filled=lambda: False)
    with pytest.raises(WorkError, match=r"nobody draws .*00000\.safetensors"):
        next(iter(loader))


def test_shards_are_drawn_until_the_window_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(folder=tmp_path, block=2, times=2)
    asked: list[int] = []

    def draw(number: int) -> dict[str, torch.Tensor]:
        asked.append(number)
        return {"number": torch.tensor(number)}

    def leave(_seconds: float) -> None:  # as if the process that asked had gone
        monkeypatch.setattr(os, "getppid", lambda: -1)

    monkeypatch.setattr(time, "sleep", leave)
    write_shard(window.path(5), draw(5))
    draw_ahead(window, 3, draw)
    assert window.drawn() == [3, 4, 5, 6, 7, 8]
    assert asked == [5, 3, 4, 6, 7, 8]


def test_the_tower_is_examined_on_whole_shards(shard: dict[str, torch.Tensor]) -> None:
    class Knowing(PlaceReader):
        def forward(self, tiles: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            assert tiles.shape[0] <= 10
            assert places[:, 0].max() < len(tiles)
            return F.one_hot(places[:, 3] - (places[:, 1] % 2), 1 + len(ASCII)).float()

    share = named_share(Knowing(VL2Model(embedded())), shard)["chars"]
    even = (shard["places"][:, 1] % 2 == 0).float().mean().item()
    assert share == pytest.approx(even)


def test_the_tower_learns_from_places(shard: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(0))
    task = SeeTask(PlaceReader(model))
    heads = {name: tensor.clone() for name, tensor in task.module.heads.state_dict().items()}
    optimizer = torch.optim.AdamW(task.module.parameters(), 1e-3)
    [batch] = list(cut_tiles(shard, np.random.default_rng(0), 0, tiles=2, places=60))[:1]
    losses = []
    for _ in range(4):
        losses.append(task.accumulate([batch]).loss)
        optimizer.step()
        optimizer.zero_grad()
        task.after_step()
    assert losses[-1] < losses[0] - 0.3
    model.init_weights(torch.Generator().manual_seed(0))  # as a resumed run loads its weights
    task.module.heads.load_state_dict(heads)
    assert task.accumulate([batch]).loss == losses[0]


@pytest.fixture(scope="module")
def processor() -> Processor:
    config = embedded()
    tokenizer = Processor.from_pretrained("nano").tokenizer
    size = config.vision_config.image_size
    return Processor(tokenizer, ProcessorConfig.for_model(config), image_size=size)


@pytest.fixture(scope="module")
def questions(processor: Processor) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PICTURES_PER_SHARD", 5)
        kinds = {"words": 1.0, "shapes": 2.0}
        return draw_answers(0, 2, kinds, small_world(), processor)


def test_places_are_written_as_the_model_writes_them() -> None:
    text = ("Where? ", Spot(label="a cup", boxes=((10, 20, 60, 100), (-3, 0, 200, 104))))
    found = parse_grounding(written(text, (200, 100)), [(200, 100)])
    assert [box.label for box in found] == ["a cup", "a cup"]
    assert (found[0].x1, found[0].y1, found[0].x2, found[0].y2) == pytest.approx((10, 20, 60, 100))
    assert written((Spot(label="x"), "?"), (9, 9)) == "<|ref|>x<|/ref|>?"


def test_answers_alone_are_learnt(questions: dict[str, torch.Tensor], processor: Processor) -> None:
    batches = list(cut_answers(questions, np.random.default_rng(0), 0, tokens=1500, tiles=9))
    assert sum(batch.images for batch in batches) == 5
    for batch in batches:
        ids, labels = batch.tensors["input_ids"], batch.tensors["labels"]
        assert ids.shape[1] in answers.LENGTHS
        assert batch.tensors["images_seq_mask"].sum() > 0
        for row, wanted in zip(ids, labels, strict=True):
            learnt = processor.tokenizer.decode(row[wanted >= 0].tolist())
            assert learnt
            assert "<|User|>" not in learnt
            assert torch.equal(row[wanted >= 0], wanted[wanted >= 0])
    [first, *_] = cut_answers(
        questions, np.random.default_rng(0), 0, tokens=1500, tiles=9, learn_questions=True
    )
    assert first.supervised > batches[0].supervised
    assert not (first.tensors["labels"][first.tensors["images_seq_mask"]] >= 0).any()


def test_leaving_out_batches_changes_no_other(questions: dict[str, torch.Tensor]) -> None:
    cut = partial(cut_answers, questions, tokens=700, tiles=4)
    whole = list(cut(np.random.default_rng(4), 0))
    rest = list(cut(np.random.default_rng(4), 2))
    assert len(whole) > 2
    assert len(rest) == len(whole) - 2
    for one, two in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.tensors["input_ids"], two.tensors["input_ids"])


def test_pictures_that_one_tile_shows_are_mostly_not_tiled(processor: Processor) -> None:
    rng = np.random.default_rng(3)
    letter = Mark(kind="char", text="x", box=(10, 10, 40, 50))
    small = Mark(kind="char", text="x", box=(10, 10, 14, 16))
    marks = {"large": (letter,) * 9 + (small,), "small": (small,) * 9, "none": ()}
    counts = {}
    for name, drawn in marks.items():
        picture = Image.effect_noise((640, 500), 90).convert("RGB")
        made = Made(image=picture, marks=drawn, asks=(ask("x.read", "What?", "x"),))
        counts[name] = answers.encode([made] * 16, processor, rng)["tile_counts"].tolist()
        assert answers.legible_height(made, 320) == pytest.approx(
            {"large": 21.9, "small": 3.2, "none": 320}[name], abs=0.5
        )
    assert 1 not in counts["small"]
    assert 8 <= counts["large"].count(1) < 16
    assert counts["none"].count(1) >= 8


def test_a_batch_has_a_loss(questions: dict[str, torch.Tensor]) -> None:
    model = VL2Model(embedded())
    model.init_weights(torch.Generator().manual_seed(0))
    [batch, *_] = cut_answers(questions, np.random.default_rng(0), 0, tokens=700, tiles=4)
    out = model(**batch.tensors, logits="none")
    assert out.loss is not None
    assert 6.0 < out.loss.item() < 11.0  # near that of a guess among 4,096


def test_the_tokenizer_keeps_digits_apart_and_text_whole() -> None:
    texts = ["Total: $12.50 and 0.99", "The total of 12 items"] * 3
    tokenizer = train_tokenizer(texts, 400, PIECES)
    text = "The TOTAL of 1,250.75 is on Page 3."
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert all(len(t) == 1 for t in encoded.tokens if any(c.isdigit() for c in t))
