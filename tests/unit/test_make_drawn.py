import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw
from tests.unit.made import small_world

from vl2.data.make import charts_drawn, charts_matplotlib, circuits
from vl2.data.make.charts_drawn import slice_box
from vl2.data.make.floors import Room, neighbours, outer_walls, split_rooms, walls_between
from vl2.data.make.fonts import Face
from vl2.data.make.graph import plan, way
from vl2.data.make.kinds import make
from vl2.data.make.pen import Pen
from vl2.data.make.sample import plain
from vl2.data.make.series import Series, Table
from vl2.data.make.sheet import Sheet, Style
from vl2.data.make.warp import lay, seen


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(0, 0.0), (7, 0.09)]))
def test_a_laid_layer_has_tight_boxes(seed: int, turned: tuple[int, float]) -> None:
    [[face]] = small_world().print_faces
    sheet, layer = Sheet(Image.new("RGB", (420, 260))), Sheet(Image.new("RGB", (300, 150), "white"))
    layer.text(30, 40, "Way out", Style(face=face, size=48, colour=(255, 0, 0)))
    to, _ = seen(np.random.default_rng(seed), layer.size, *turned)
    box = lay(sheet, layer, Image.new("L", layer.size, 255), (20, 30), to)
    red, green, _ = sheet.image.split()
    assert box == pytest.approx(red.point([255 * (v > 127) for v in range(256)]).getbbox(), abs=2)
    ink = ImageChops.subtract(red, green).point([255 * (v > 90) for v in range(256)]).getbbox()
    [line] = [mark for mark in sheet.marks if mark.kind == "line"]
    slanted = 48 * math.sin(math.radians(turned[0]))  # a letter's corner that holds no ink
    assert line.box == pytest.approx(ink, abs=4 + slanted)


@pytest.mark.parametrize("drawn", [charts_drawn.drawn, charts_matplotlib.drawn])
@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize(("form", "side"), [("bars", 1), ("rows", 0)])
def test_bars_are_as_long_as_their_values(
    drawn: Callable[..., Sheet], split: str, form: str, side: int
) -> None:
    values = (12, 30, 7, 21)
    series = Series(form=form, title="Rain", names=("A", "B", "C", "D"), values=values)
    for seed in range(3):
        sheet = drawn(np.random.default_rng(seed), small_world(split), series)
        bars = {mark.text: mark.box for mark in sheet.marks if mark.kind == "thing"}
        lengths = [bars[name][side + 2] - bars[name][side] for name in series.names]
        assert lengths == pytest.approx([v * lengths[1] / 30 for v in values], abs=2)
        x1, y1, x2, y2 = bars["B"]
        paper = np.asarray(sheet.image)[1, 1].astype(int)
        inside = np.asarray(sheet.image)[(y1 + y2) // 2, x1 + 4 : x2 - 4].astype(int)
        assert np.abs(inside - paper).sum(1).max() > 60


@pytest.mark.parametrize("form", ["grouped", "stacked"])
def test_bars_of_several_series_are_as_long_as_their_values(form: str) -> None:
    table = Table(
        form=form, title="Rain", names=("A", "B"), series=("X", "Y"), values=((4, 8), (6, 2))
    )
    sheet = charts_matplotlib.several(np.random.default_rng(1), small_world(), table)
    bars = {mark.text: mark.box for mark in sheet.marks if mark.kind == "thing"}
    lengths = [bars[name][3] - bars[name][1] for name in ("X A", "X B", "Y A", "Y B")]
    assert lengths == pytest.approx([v * lengths[1] / 8 for v in (4, 8, 6, 2)], abs=2)
    assert (bars["Y A"][3] == bars["X A"][1]) == (form == "stacked")
    assert table.markdown() == "| Name | X | Y |\n| --- | --- | --- |\n| A | 4 | 6 |\n| B | 8 | 2 |"


@given(st.integers(-360, 360), st.floats(14, 300), st.sampled_from([0.0, 55.0]))
def test_slices_have_tight_boxes(start: int, size: float, hole: float) -> None:
    image = Image.new("L", (220, 220))
    draw = ImageDraw.Draw(image)
    draw.pieslice((10, 10, 210, 210), start, start + size, fill=255)
    draw.ellipse((110 - hole, 110 - hole, 110 + hole, 110 + hole), fill=0 if hole else None)
    box = slice_box((110, 110), 100, start, start + size, hole)
    tip = 0.5 / math.tan(math.radians(min(size, 90)) / 2)  # where a slice is thinner than a pixel
    assert box == pytest.approx(image.getbbox(), abs=2 + tip)


@pytest.mark.parametrize("form", ["down", "right", "snake", "tree", "sideways", "cycle", "star"])
def test_nodes_of_a_diagram_stay_apart(form: str) -> None:
    for seed in range(20):
        places, edges = plan(np.random.default_rng(seed), form)
        assert len(edges) >= len(places) - 1
        assert {n for edge in edges for n in edge} == set(range(len(places)))
        for k, (x, y) in enumerate(places):
            assert all(max(abs(x - u), abs(y - v)) > 0.94 for u, v in places[:k])


@pytest.mark.parametrize(
    ("end", "pointed"),
    [((9, 0), "right"), ((0, 9), "down"), ((-9, -9), "up left"), ((9, -8), "up right")],
)
def test_arrows_point_one_of_eight_ways(end: tuple[float, float], pointed: str) -> None:
    assert way((0, 0), end) == pointed
    assert way((0, 0), (9, 4)) is None  # between right and down right


def test_what_comes_after_follows_the_arrows() -> None:
    asked = 0
    for row in range(20):
        made = make("diagrams", 3, row, small_world())
        edges = list(made.facts.get("edges", ()))  # pyright: ignore[reportArgumentType]
        for ask in made.asks:
            answer = plain(ask.answer)
            if ask.skill != "diagram.after":
                continue
            if answer.startswith("Nothing comes after "):
                name = answer.removeprefix("Nothing comes after ").removesuffix(".")
                assert all(a != name for a, _, _ in edges)
                continue
            sets = [{b for a, b, _ in edges if a == start} for start, _, _ in edges]
            called = [{b} for _, b, label in edges if label]  # "What follows Yes?"
            assert set(answer.split(", ")) in [*sets, *called]
            asked += 1
    assert asked > 5


@pytest.mark.parametrize("seed", range(8))
def test_rooms_fill_their_floor_and_are_reached_by_doors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = split_rooms(rng, (10, 20, 510, 420), 2 + seed % 7, 16)
    rooms = [Room(name=str(n), box=box) for n, box in enumerate(boxes)]
    assert sum(room.pixels for room in rooms) == 500 * 400
    covered = np.zeros((420, 510), int)
    for x1, y1, x2, y2 in boxes:
        covered[y1:y2, x1:x2] += 1
    assert covered[20:, 10:].min() == covered.max() == 1
    walls = walls_between(rooms)
    assert sum(wall.length for wall in outer_walls(rooms)) == 2 * (500 + 400)
    reached = {0}
    for _ in rooms:
        reached |= {
            n for wall in walls if {wall.one, wall.two} & reached for n in (wall.one, wall.two)
        }
    assert reached == set(range(len(rooms)))
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    beside = neighbours(rooms)
    for (room, side), others in beside.items():
        assert all(room in beside[other, opposite[side]] for other in others)


def test_symbols_of_circuits_have_tight_boxes() -> None:
    for noun in circuits.LETTERS:
        for lying in (True, False):
            sheet = Sheet(Image.new("RGB", (200, 200), "white"))
            pen = Pen(np.random.default_rng(0), sheet, width=2, wobble=0)
            part = circuits.Part(noun=noun, label="X1", closed=lying)
            part = circuits.draw_part(pen, part, ((100, 100), lying), "zigzag", 40)
            pen.lift((0, 0, 0))
            dark = np.asarray(sheet.image.convert("L")) < 128
            across = np.flatnonzero(dark.any(1 if lying else 0))  # leads run along the wire
            k = 1 if lying else 0
            assert (part.box[k], part.box[k + 2]) == pytest.approx(across[[0, -1]], abs=3)
            assert dark[part.box[1] : part.box[3], part.box[0] : part.box[2]].any()


def test_items_of_a_note_stand_on_it_in_their_order() -> None:
    lists = 0
    for row in range(24):
        made = make("notes", 2, row, small_world("heldout" if row % 2 else "train"))
        lines = [mark.text for mark in made.of("line")]
        items = list(made.facts["items"])  # pyright: ignore[reportArgumentType]
        lists += bool(items)
        for item, line in zip(items, lines[-len(items) :] if items else [], strict=True):
            assert line.endswith(item)
        assert all(ask.skill.startswith("hand.") for ask in made.asks)
        for ask in made.asks:
            if ask.skill == "hand.count" and "items on" in plain(ask.question):
                assert plain(ask.answer) == str(len(items))
    assert lists > 8


@pytest.mark.parametrize("kind", ["words", "lines", "blocks"])
def test_handwriting_is_a_skill_of_its_own(kind: str) -> None:
    printed = Face(path="", family="built-in")
    world = replace(small_world(), hand_faces=((replace(printed, hand=True),),))
    asks = [ask for row in range(40) for ask in make(kind, 7, row, world).asks]
    assert {ask.skill.split(".")[0] for ask in asks} == {"hand", kind.rstrip("s")}


def test_the_bench_counts_rows() -> None:
    path = Path(__file__).parents[2] / "bench" / "makers.py"
    spec = importlib.util.spec_from_file_location("bench_makers", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(bench := importlib.util.module_from_spec(spec))
    assert bench.rows_per_second("words", small_world(), 2) > 0
