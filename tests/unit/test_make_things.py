import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.unit.made import small_drawings, small_world

from vl2.data.make import drawings
from vl2.data.make.chance import phrase
from vl2.data.make.drawings import colour_of
from vl2.data.make.kinds import make
from vl2.data.make.naming import one, plural
from vl2.data.make.sample import Made, plain
from vl2.data.make.thing_questions import UNKNOWN, _along
from vl2.data.make.things import _chosen, stands_out


@pytest.fixture(scope="module")
def rows() -> list[Made]:
    return [make("things", 3, row, small_world()) for row in range(120)]


def test_the_table_names_each_thing_once() -> None:
    *things, unnamed = drawings._table()
    names = [row["name"] for row in things]
    assert len(set(names)) == len(names)
    assert 150 <= len(names) <= 250
    assert all(row["kin"] and row["group"] and row["emoji"] for row in things)
    assert (unnamed["name"], unnamed["files"]) == ("", "")
    points = [entry.partition("-")[0] for row in things for entry in row["emoji"].split()]
    assert all(re.fullmatch("[0-9A-F]{4,5}", point) for point in points)
    assert not {*points} & {*unnamed["emoji"].split()}, "an unnamed thing has a name"
    files = [entry for row in things for entry in row["files"].split()]
    assert len({*files}) == len(files)
    assert {entry[0] for entry in files} == {*drawings.FILES}


def test_splits_share_no_drawing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"fruit/apple{n}" for n in range(60)]
    form = drawings.FILES["s"][1]
    columns = ("name", "group", "kin", "many", "emoji", "files")
    apple = ("apple", "food", "apple", "", "1F34E", " ".join(f"s/{name}" for name in names))
    unnamed = ("", "", "", "", "1F3AF 1F3A2 1F3A8 1F3B3 1F3B1", "")
    table = [dict(zip(columns, row, strict=True)) for row in (apple, unnamed)]
    for name in names:
        image = Image.new("RGBA", (40, 40))
        image.paste("red", (5, 8, 25, 38))
        image.save(tmp_path / form.format(name.replace("/", "--")))
    monkeypatch.setattr(drawings, "_table", lambda: table)
    monkeypatch.setattr(drawings, "_emoji", lambda *of: Image.new("RGBA", (9, 9), "green"))
    monkeypatch.setattr(drawings, "fetch_all", lambda wanted: [tmp_path for _ in wanted])
    monkeypatch.setenv("VL2_CACHE", str(tmp_path))
    (tmp_path / "packages").mkdir()
    drawings.drawings.cache_clear()
    train, heldout = drawings.drawings("train"), drawings.drawings("heldout")
    drawings.drawings.cache_clear()
    paths = [[Path(d.path).name for d in split.things[0].drawings] for split in (train, heldout)]
    stamps = [{path.partition("-")[2] for path in split if "-s_" in path} for split in paths]
    assert not stamps[0] & stamps[1]
    assert len(stamps[0] | stamps[1]) == 60
    assert 2 < len(stamps[1]) < 25
    assert [d.ink for d in train.things[0].drawings[:3]] == [False, False, True]
    assert {d.colour for d in heldout.things[0].drawings} == {"red", "green"}
    assert drawings.load(train.things[0].drawings[-1].path).size == (20, 30)
    unknown = [{Path(d.path).name[-9:] for d in split.unknown} for split in (train, heldout)]
    assert not unknown[0] & unknown[1]


def test_paper_around_a_drawing_is_removed_and_white_inside_of_it_stays() -> None:
    image = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(image).rectangle((10, 5, 30, 25), outline="black", width=3)
    alpha = np.asarray(drawings._without_paper(image).getchannel("A"))
    assert alpha[0].max() == 0
    assert alpha[15, 20] == 255
    assert drawings._trimmed(drawings._without_paper(image)).size == (21, 21)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        *(("#d01020", "red"), ("#ffdd10", "yellow"), ("#20a030", "green"), ("#1850d0", "blue")),
        *(("#7a4a20", "brown"), ("#8020b0", "purple"), ("#808080", "grey"), ("#101010", "black")),
        *(("#e0c090", ""), ("#20b0a0", ""), ("white", "")),
    ],
)
def test_colours_are_named_where_nobody_doubts(colour: str, name: str) -> None:
    image = Image.new("RGBA", (60, 60))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, 59, 59), fill=colour)
    assert colour_of(image) == name
    draw.rectangle((0, 0, 30, 60), fill="#1850d0" if name != "blue" else "#d01020")
    assert colour_of(image) == ""


def test_outlines_have_no_colour() -> None:
    image = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(image).ellipse((0, 0, 59, 59), outline="black", width=4)
    assert colour_of(image) == ""


@pytest.mark.parametrize(
    ("name", "many", "single"),
    [
        *(("dog", "dogs", "a dog"), ("bus", "buses", "a bus"), ("eye", "eyes", "an eye")),
        *(("candy", "candies", "a candy"), ("key", "keys", "a key")),
        *(("hourglass", "hourglasses", "an hourglass"), ("watch", "watches", "a watch")),
        ("American football", "American footballs", "an American football"),
    ],
)
def test_names_in_sentences(name: str, many: str, single: str) -> None:
    assert (plural(name), one(name)) == (many, single)


def test_no_space_is_left_before_the_end_of_a_question() -> None:
    rng = np.random.default_rng(0)
    forms = {phrase(rng, "is there [any|] text [here|]?").lower() for _ in range(60)}
    assert forms == {
        *("is there any text here?", "is there any text?"),
        *("is there text here?", "is there text?"),
    }


@pytest.mark.parametrize(
    ("other", "left"),
    [
        *(((0, 50, 20, 70), True), ((0, 0, 20, 20), None), ((50, 0, 70, 20), False)),
        *(((90, 50, 99, 70), False), ((40, 0, 50, 20), False)),
    ],
)
def test_left_is_within_35_degrees(other: tuple[int, int, int, int], left: bool | None) -> None:
    assert _along((50, 50, 70, 70), other, (-1, 0)) is left


def test_drawings_that_melt_into_the_ground_are_seen() -> None:
    cut = Image.new("RGBA", (30, 30), "red")
    assert stands_out(cut, Image.new("RGB", (30, 30), "white"))
    assert not stands_out(cut, Image.new("RGB", (30, 30), "#e01010"))


def test_answers_agree_with_the_things_on_the_picture(rows: list[Made]) -> None:
    called = {
        thing.name: re.compile(rf"\b({thing.name}|{thing.many.strip('-') or plural(thing.name)})\b")
        for thing in small_drawings("train").things
    }
    seen = set()
    for made in rows:
        names = [each["name"] for each in made.facts["things"] if each["known"]]  # pyright: ignore
        for ask in made.asks:
            question, answer = plain(ask.question).lower(), plain(ask.answer)
            about = next((name for name, form in called.items() if form.search(question)), "")
            seen.add(ask.skill)
            if ask.skill == "thing.there":
                assert (answer == "Yes") == (about in names), (question, names)
            if ask.skill == "thing.count":
                animals = names.count("dog") + names.count("mouse")
                others = animals if "animals" in question else len(made.facts["things"])  # pyright: ignore
                others = names.count("man") if "people" in question else others
                assert int(answer) == (names.count(about) if about else others)
            if ask.skill in ("thing.animal", "thing.person"):
                groups = {"thing.animal": {"dog", "mouse"}, "thing.person": {"man"}}
                assert (answer == "Yes") == bool(groups[ask.skill] & {*names}), question
            if ask.skill == "thing.locate":
                [spot] = ask.answer
                assert len(spot.boxes) == names.count(about)  # pyright: ignore
            if ask.skill == "thing.absent":
                assert about not in names
            if ask.skill == "thing.unknown":
                assert (names, answer) == ([], UNKNOWN)
    assert {"thing.name", "thing.describe", "thing.beside", "thing.relation"} <= seen
    assert {"thing.colour", "thing.background", "thing.no_text", "thing.person"} <= seen


def test_things_of_one_picture_are_never_mistaken_for_each_other() -> None:
    material = small_drawings("train")
    twins = tuple(replace(thing, kin="one") for thing in material.things)
    for row in range(40):
        chosen = _chosen(np.random.default_rng(row), replace(material, things=twins))
        assert len({thing.name for thing, _ in chosen if thing}) <= 1
