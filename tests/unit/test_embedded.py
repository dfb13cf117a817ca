from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.unit.made import small_world

from vl2.data.make.fonts import ASCII
from vl2.data.make.sample import Made, Mark
from vl2.model.vl2 import VL2Model
from vl2.recipes.embedded import tiles
from vl2.recipes.embedded.run import layout
from vl2.recipes.embedded.see import PlaceReader, SeeTask
from vl2.recipes.embedded.shape import embedded
from vl2.recipes.embedded.shards import ShardLoader, write_shard
from vl2.recipes.embedded.tiles import cut_tiles, dense_views, draw_tiles


@pytest.fixture(scope="module")
def shard() -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILES_PER_SHARD", 8)
        return draw_tiles(0, 1, {"words": 0.5, "lines": 0.5}, small_world(), layout())


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


def test_going_on_reads_the_same_batches(shard: dict[str, torch.Tensor], tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for path in paths:
        write_shard(path, shard)
    make = partial(ShardLoader, paths, 4, partial(cut_tiles, tiles=2, places=20), 3)
    whole = iter(make())
    seen = [next(whole)[0].tensors for _ in range(19)]
    for start in (0, 3, 4, 9, 17):
        loader = make()
        loader.restore({"consumed": start})
        [batch] = next(iter(loader))
        assert torch.equal(batch.tensors["places"], seen[start]["places"])
        assert torch.equal(batch.tensors["tiles"], seen[start]["tiles"])
        assert loader.state() == {"consumed": start + 1}


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
