"""Tiles: both rules, order, pixels, counts, and the drawing."""

from __future__ import annotations

import random
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vl2 import geometry
from vl2.config import RELEASED_RESOLUTIONS, VL2Config
from vl2.model.adaptor import arrange_tokens
from vl2.processing.adaptive import DetailMeter
from vl2.processing.image_gate import ImageError
from vl2.processing.inputs import to_pixels
from vl2.processing.layout import TileLayout
from vl2.processing.tiling import choose_canvas, cut_views, draw_layout

RELEASED = TileLayout(candidates=RELEASED_RESOLUTIONS, image_size=384, side=14)
NANO = VL2Config.nano()
SMALL = TileLayout(
    candidates=NANO.candidate_resolutions,
    image_size=NANO.vision_config.image_size,
    side=NANO.tokens_per_side,
)


def pixels_of(views: list[Image.Image], layout: TileLayout) -> torch.Tensor:
    return to_pixels(np.stack([np.asarray(view) for view in views]), layout)


def features(grid: geometry.TileGrid, side: int) -> int:
    """What the model makes of a picture, counted by the model."""
    tiles = torch.zeros(grid.tiles, side * side, 1)
    line = torch.zeros(1)
    return len(arrange_tokens(tiles, grid, newline=line, separator=line, global_first=True))


def page(font_size: float, size=(1240, 1754)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(font_size)
    text = "The quick brown fox jumps over 12 lazy dogs; total 48.50 EUR, page 7. " * 300
    lines = textwrap.wrap(text, int(size[0] / font_size * 2))
    for row, line in enumerate(lines[: int(size[1] / font_size / 1.3)]):
        pen.text((5, 5 + row * font_size * 1.3), line, "black", font)
    return image


def shapes(size=(1920, 1080)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    unit = min(size) / 10
    pen.ellipse([unit * v for v in (1, 1, 4, 4)], "red")
    pen.rectangle([unit * v for v in (5, 2, 9, 8)], "blue")
    return image


def test_placeholders_are_features_for_ten_thousand_sizes():
    for layout in (RELEASED, SMALL):
        grids = {canvas: layout.grid(canvas) for canvas in layout.candidates}
        made = {canvas: features(grid, layout.side) for canvas, grid in grids.items()}
        rng = random.Random(0)
        for _ in range(5000):
            size = tuple(int(2 ** rng.uniform(0, 13)) for _ in "wh")
            canvas = geometry.select_resolution((size[0], size[1]), layout.candidates)
            assert layout.tokens(canvas) == made[canvas]


def test_released_counts():
    counts = {RELEASED.tokens(canvas) for canvas in RELEASED.candidates}
    assert (min(counts), max(counts), len(counts)) == (421, 2101, 23)


def test_views_are_the_global_view_and_rows_of_tiles():
    image = shapes((900, 600))
    canvas = choose_canvas(image, RELEASED)
    assert canvas == (1152, 768)
    views = cut_views(image, canvas, RELEASED)
    assert len(views) == 7
    grey = (127, 127, 127)
    assert views[0].getpixel((0, 0)) == grey
    assert views[0].tobytes() == ImageOps.pad(image, (384, 384), color=grey).tobytes()
    mosaic = Image.new("RGB", canvas)
    for number, view in enumerate(views[1:]):
        mosaic.paste(view, (number % 3 * 384, number // 3 * 384))
    assert mosaic.tobytes() == ImageOps.pad(image, canvas, color=grey).tobytes()


def test_pixels_are_normalised():
    view = Image.new("RGB", (384, 384), (0, 255, 127))
    pixels = pixels_of([view, view], RELEASED)
    assert pixels.shape == (2, 3, 384, 384)
    assert pixels.dtype == torch.float32
    expected = torch.tensor([-1.0, 1.0, 127 / 127.5 - 1])
    torch.testing.assert_close(pixels[1, :, 5, 5], expected)
    raw = TileLayout(candidates=((384, 384),), image_size=384, side=14, normalize=False)
    assert pixels_of([view], raw)[0, 1].unique().tolist() == [1.0]
    other = TileLayout(
        candidates=((384, 384),), image_size=384, side=14, mean=(0, 0.5, 1), std=(1, 2, 4)
    )
    expected = torch.tensor([0.0, 0.25, (127 / 255 - 1) / 4])
    torch.testing.assert_close(pixels_of([view], other)[0, :, 0, 0], expected)
    assert other.fill == (0, 127, 255)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 500), (1, 768), (3, 3), (1, 1000), (9000, 10), (5000, 3), (2, 3500)]
)
@pytest.mark.parametrize("layout", [RELEASED, SMALL], ids=["released", "nano"])
def test_odd_shapes_are_seen(size, layout):
    image = Image.new("RGB", size, "red")
    canvas = choose_canvas(image, layout)
    if layout is SMALL and max(size) / min(size) > 2 * 224:
        with pytest.raises(ImageError):
            cut_views(image, canvas, layout)
        return
    views = cut_views(image, canvas, layout)
    red = pixels_of(views, layout)[:, 0]
    assert (red > 0.9).any()
    assert layout.tokens(canvas) == features(layout.grid(canvas), layout.side)


@pytest.mark.parametrize("size", [(1, 10000), (65535, 1), (20000, 2)])
@pytest.mark.parametrize("tiling", ["released", "content"])
def test_what_would_vanish_is_refused(size, tiling):
    image = Image.new("RGB", size, "red")
    canvas = choose_canvas(image, RELEASED, tiling)
    with pytest.raises(ImageError, match="thinner than one pixel") as caught:
        cut_views(image, canvas, RELEASED)
    assert caught.value.code == "too_thin"


def test_layout_must_be_made_of_tiles():
    with pytest.raises(ValueError, match=r"\(384, 400\) is not made of 384x384 tiles"):
        TileLayout(candidates=((384, 400),), image_size=384, side=14)


# Content-adaptive tiling


def content_tokens(image: Image.Image, layout: TileLayout = RELEASED) -> int:
    return layout.tokens(choose_canvas(image, layout, "content"))


def test_content_spends_what_the_picture_needs():
    square = (1152, 1152)
    assert RELEASED.tokens(choose_canvas(page(40, square), RELEASED)) == 2017
    fine, middle, coarse = (content_tokens(page(size, square)) for size in (12, 24, 80))
    assert fine == 2017
    assert fine > middle > coarse
    assert coarse == content_tokens(shapes()) == 421
    assert content_tokens(Image.new("RGB", (4000, 400), "navy")) == 421


def test_content_sees_a_footnote():
    image = shapes()
    assert content_tokens(image) == 421
    text = "1) page 7 of 9, printed 2024-12-13"
    ImageDraw.Draw(image).text((1500, 1040), text, "black", ImageFont.load_default(18))
    assert content_tokens(image) > 421


def test_content_sees_colours_of_equal_brightness():
    image = page(16).convert("L")
    ink = np.asarray(image)[..., None] < 128
    red, green = np.array([255, 0, 0]), np.array([0, 130, 0])
    coloured = Image.fromarray(np.where(ink, red, green).astype(np.uint8))
    assert content_tokens(coloured) > 421


def test_content_ignores_noise_of_a_sensor():
    noise = np.random.default_rng(0).normal(0, 3, (1080, 1920, 3))
    noisy = np.asarray(shapes(), float) + noise
    assert content_tokens(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))) == 421


def test_content_never_costs_more():
    rng = np.random.default_rng(0)
    for number in range(24):
        wide, high = (int(2 ** rng.uniform(0, 10.5)) for _ in "wh")
        pixels = rng.integers(0, 256, (high // (1 + number % 4) + 1, wide // 2 + 1, 3))
        image = Image.fromarray(pixels.astype(np.uint8)).resize((wide, high))
        for layout in (RELEASED, SMALL):
            released = layout.tokens(choose_canvas(image, layout))
            assert content_tokens(image, layout) <= released


def test_lost_detail_grows_with_the_step():
    image = page(20, (600, 400))
    meter = DetailMeter(image)
    lost = [meter.lost(image.resize((int(600 * f), int(400 * f)))) for f in (1, 0.8, 0.5, 0.25)]
    assert lost[0] == 0
    assert lost == sorted(lost)
    assert lost[-1] > 0.5


# The drawing


@pytest.mark.parametrize("tiling", ["released", "content"])
@pytest.mark.parametrize("layout", [RELEASED, SMALL], ids=["released", "nano"])
def test_layout_is_drawn(layout, tiling):
    image = page(24)
    sheet = draw_layout(image, layout, tiling)
    assert max(sheet.size) < 2200
    colours = {colour for _, colour in sheet.getcolors(maxcolors=10**6)}
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours
    grid = layout.grid(choose_canvas(image, layout, tiling))
    row = np.asarray(sheet)[sheet.height // 2]
    edges = (row == (255, 0, 0)).all(-1).sum()
    assert edges == 2 * grid.wide
