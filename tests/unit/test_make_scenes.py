from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tests.unit.made import small_world

from vl2.data.make.kinds import make
from vl2.data.make.naming import COLOURS
from vl2.data.make.paper import same_colours
from vl2.data.make.sample import Made, Spot, plain
from vl2.data.make.scenery import CROWNS, ROOFS, SKIES, STYLES, landscape
from vl2.data.make.scenes import ILLEGIBLE, PATTERNS, pattern

SPLITS = ("train", "heldout")


@pytest.fixture(scope="module")
def rows() -> list[Made]:
    return [make("scenes", 4, row, small_world(SPLITS[row % 2])) for row in range(60)]


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_a_landscape_lie_apart_on_the_picture(split: str) -> None:
    seen = Counter()
    for seed in range(25):
        scenery = landscape(np.random.default_rng(seed), split, (240, 180))
        seen.update([name for name, _ in scenery.parts] + scenery.stuff)
        assert scenery.image.size == (240, 180)
        for k, (_, box) in enumerate(scenery.parts):
            assert 0 <= box[0] < box[2] <= 240
            assert 0 <= box[1] < box[3] <= 180
            for _, other in scenery.parts[:k]:
                apart = max(box[0] - other[2], other[0] - box[2])
                assert max(apart, box[1] - other[3], other[1] - box[3]) >= 0
    assert {"sun", "tree", "house", "cloud", "sea", "mountains"} <= set(seen)


def test_the_sky_has_the_colour_that_is_told() -> None:
    for seed in range(20):
        scenery = landscape(np.random.default_rng(seed), "train", (200, 200))
        wanted = np.array(SKIES[scenery.time][scenery.sky][0])
        corners = np.asarray(scenery.image)[0, [0, 199]]
        assert np.abs(corners - wanted).max(-1).min() <= 16 + 200 * (scenery.time == "rain")


def test_splits_share_no_style() -> None:
    for options in (STYLES, CROWNS, ROOFS):
        assert not {*options["train"]} & {*options["heldout"]}


@pytest.mark.parametrize("kind", sorted({kind for kinds in PATTERNS.values() for kind in kinds}))
def test_patterns_show_the_colours_that_are_told(kind: str) -> None:
    for seed in range(6):
        image, what, background = pattern(np.random.default_rng(seed), kind, (90, 70))
        assert image.size == (90, 70)
        pixels = np.asarray(image, int).reshape(-1, 3)
        for name in [name for name in COLOURS if name in what.split()] + [background]:
            if name:
                low, high = (np.array(edge) for edge in COLOURS[name])
                close = ((pixels >= low - 12) & (pixels <= high + 12)).all(1)
                assert close.mean() > 0.02, (what, name)


def test_answers_agree_with_what_is_on_the_picture(rows: list[Made]) -> None:
    seen = Counter(ask.skill for made in rows for ask in made.asks)
    for made in rows:
        names = [mark.text for mark in made.marks]
        for ask in made.asks:
            answer = plain(ask.answer)
            if ask.skill == "scene.locate":
                [spot] = ask.answer
                assert isinstance(spot, Spot)
                assert sorted(spot.boxes) == sorted(
                    m.box for m in made.marks if m.text == spot.label
                )
            if ask.skill == "scene.sky":
                assert answer == made.facts["sky"]
            if ask.skill == "scene.absent":
                assert not any(f"no {name} in" in answer for name in names)
            if ask.skill == "scene.name" and names and "stuff" in made.facts:
                assert all(name in answer or f"{name[:3]}" in answer for name in names)
    assert {"scene.name", "scene.describe", "scene.there", "scene.no_text"} <= set(seen)
    assert {"scene.sky", "scene.background", "scene.locate", "scene.count"} <= set(seen)


def test_print_that_nobody_can_read_is_said_to_be_so(rows: list[Made]) -> None:
    found = [made for made in rows if made.facts.get("shows") == "illegible text"]
    assert found
    for made in found:
        answers = {ask.skill: plain(ask.answer) for ask in made.asks}
        assert answers["scene.illegible"] == ILLEGIBLE
        assert answers["scene.text"] == "Yes"
        assert not made.marks
        assert np.asarray(made.image.convert("L"), int).std() > 0.2, "there is print"


def test_dimmed_and_padded_pictures_lose_the_names_of_their_colours() -> None:
    orange = Image.new("RGB", (50, 40), (250, 140, 20))
    assert same_colours(orange, orange.copy())
    assert not same_colours(orange, Image.new("RGB", (50, 40), (125, 70, 10)))
    assert not same_colours(orange, orange.resize((60, 40)))
