"""Synthetic pictures: what is drawn, what is labelled and what is answered must agree."""

import hashlib
import re
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vl2.data.synthetic import (
    COLOURS,
    LETTERS,
    QUESTION_KINDS,
    SHAPES,
    Scene,
    SceneObject,
    SceneRecipe,
    ask,
    composing,
    contact_sheet,
    dense_labels,
    draw_scene,
    fetch_fonts,
    font_packages,
    font_split,
)
from vl2.data.synthetic.backgrounds import BACKGROUNDS
from vl2.data.synthetic.colours import jittered, lab
from vl2.data.synthetic.fonts import family
from vl2.data.synthetic.questions import place_word
from vl2.data.synthetic.scene import SCENE_KINDS
from vl2.data.synthetic.shapes import MAX_ROTATION, shape_masks, tight_box
from vl2.data.synthetic.strings import MIXED, TEXT_STYLES, random_text
from vl2.data.synthetic.words import COMMON_WORDS

EVERY_STYLE = tuple((style, 1.0) for style in TEXT_STYLES)


def scenes(kind: str, number: int, *, seed: int = 0, **changes) -> list[Scene]:
    recipe = SceneRecipe(kinds=((kind, 1.0),), **changes)
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, recipe=recipe) for _ in range(number)]


def flat_background(rng, size, *, split):
    return np.full((size[1], size[0], 3), 205, np.uint8), "solid"


def answer_boxes(answer: str) -> list[list[int]]:
    numbers = re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", answer)
    return [[int(number) for number in box] for box in numbers]


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_same_seed_gives_the_same_bytes_and_questions(kind, split):
    first, second = (
        scenes(kind, 8, split=split, augment=1.0, text_styles=EVERY_STYLE) for _ in range(2)
    )
    for one, two in zip(first, second, strict=True):
        assert one.image.tobytes() == two.image.tobytes()
        assert one.objects == two.objects
        assert ask(one, np.random.default_rng(3)) == ask(two, np.random.default_rng(3))


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_boxes_are_exactly_the_drawn_pixels_and_stay_apart(kind, monkeypatch):
    monkeypatch.setattr(composing, "draw_background", flat_background)
    for scene in scenes(kind, 40, augment=0.0, text_styles=EVERY_STYLE):
        drawn = (np.asarray(scene.image) != 205).any(-1)
        covered = np.zeros(drawn.shape, int)
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= scene.image.width
            assert 0 <= y1 < y2 <= scene.image.height
            ink = drawn[y1:y2, x1:x2]
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            drawn[y1:y2, x1:x2] = False
            covered[y1:y2, x1:x2] += 1
        assert not drawn.any(), "ink outside every box"
        assert covered.max() == 1, "boxes overlap"


def test_character_boxes_make_up_the_text_box_and_spell_the_text():
    for scene in scenes("text", 60, text_styles=EVERY_STYLE):
        (text,) = scene.texts
        assert "".join(char.char for char in text.chars) == text.text.replace(" ", "")
        edges = np.array([char.box for char in text.chars])
        assert (*edges[:, :2].min(0), *edges[:, 2:].max(0)) == text.box
        assert all(char.char in LETTERS for char in text.chars)


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_masks_are_cropped_to_their_ink_and_about_as_big_as_asked(shape):
    for size in (18.0, 37.3, 60.0):
        for angle in (0.0, MAX_ROTATION[shape]):
            for line_width in (0.0, 2.0):
                body, line = shape_masks(shape, size=size, angle=angle, line_width=line_width)
                assert tight_box(body) == (0, 0, *body.size)
                assert (line is None) == (line_width == 0.0)
                assert 0.6 * size < max(body.size) < 1.3 * size + 2 * line_width


def test_shape_scenes_never_repeat_a_name_and_counted_shapes_stay_in_range():
    for scene in scenes("shapes", 60):
        assert max(Counter(item.name for item in scene.objects).values()) == 1
        assert 1 <= len(scene.objects) <= 5
    for scene in scenes("count", 60, max_count=6):
        assert len({item.shape for item in scene.shapes}) <= 2
        assert max(Counter(item.shape for item in scene.shapes).values()) <= 6


def test_letters_are_high_enough_to_read():
    heights = [
        char.box[3] - char.box[1]
        for scene in scenes("text", 80)
        for char in scene.texts[0].chars
        if char.char not in "QJ"
    ]
    assert min(heights) >= 13
    assert max(heights) <= 85


def test_free_sizes_vary_and_named_sizes_hold():
    sizes = {scene.image.size for scene in scenes("text", 20, sizes=((None, 1.0),))}
    assert len(sizes) > 15
    assert all(80 <= side <= 230 for size in sizes for side in size)
    assert {s.image.size for s in scenes("text", 5, sizes=(((224, 112), 1.0),))} == {(224, 112)}


def test_shades_of_different_colours_are_far_apart():
    rng = np.random.default_rng(0)
    shades = {name: lab(np.array([jittered(rng, name) for _ in range(200)])) for name in COLOURS}
    for index, name in enumerate(COLOURS):
        for other in COLOURS[index + 1 :]:
            gaps = np.linalg.norm(shades[name][:, None] - shades[other][None], axis=-1)
            # CIE76 units; 2.3 is just noticeable. Closest measured: red and orange, 25.
            assert gaps.min() > 20, (name, other)


def test_backgrounds_of_the_splits_differ():
    assert not set(BACKGROUNDS["train"]) & set(BACKGROUNDS["heldout"])
    assert len(BACKGROUNDS["heldout"]) >= 2
    seen = {scene.background for scene in scenes("text", 60, split="heldout")}
    assert seen == set(BACKGROUNDS["heldout"])


def test_strange_recipes_are_refused():
    with pytest.raises(ValueError, match="unknown scene kind 'maps'"):
        scenes("maps", 1)
    with pytest.raises(ValueError, match="unknown text style 'verse'"):
        scenes("text", 1, text_styles=(("verse", 1.0),))
    with pytest.raises(ValueError, match="unknown split 'test'"):
        scenes("text", 1, split="test")


@pytest.mark.parametrize(
    ("style", "pattern"),
    [
        ("code", r"[A-Z0-9]{1,3}"),
        ("long code", r"[A-Z0-9]{4,8}"),
        ("lower code", r"(?=.*[^cosuvwxz])[a-z]{2,6}"),
        ("mixed code", f"[{MIXED}]{{1,8}}"),
        ("word", r"[a-z]+|[A-Z][a-z]*|[A-Z]+"),
        ("line", r"[a-z]+( [a-z]+){1,2}|[A-Z][a-z]*( [a-z]+){1,2}|[A-Z]+( [A-Z]+){1,2}"),
    ],
)
def test_texts_have_the_form_of_their_style(style, pattern):
    rng = np.random.default_rng(1)
    for _ in range(200):
        text = random_text(rng, style, words=COMMON_WORDS, font=None)
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_every_scene_gives_two_to_five_different_questions(kind):
    rng = np.random.default_rng(2)
    for scene in scenes(kind, 40):
        questions = ask(scene, rng)
        assert 2 <= len(questions) <= 5
        assert len({question.text for question in questions}) == len(questions)
        assert all(question.kind in QUESTION_KINDS for question in questions)
        assert all(question.answer for question in questions)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_answers_agree_with_the_objects(kind):
    rng = np.random.default_rng(4)
    for scene in scenes(kind, 60):
        for question in ask(scene, rng):
            check_answer(scene, question.kind, question.text, question.answer)


def check_answer(scene: Scene, kind: str, text: str, answer: str) -> None:
    names = [item.name for item in scene.shapes]
    if kind == "read":
        assert answer == scene.texts[0].text
    elif kind == "colour":
        subject = re.search(r"(?:is|of) the (\w+)", text).group(1)
        items = scene.texts if subject == "text" else scene.shapes
        assert [i.colour for i in items if subject in (i.shape, "text")] == [answer]
    elif kind == "shape":
        colour = next(word for word in COLOURS if re.search(rf"\b{word}\b", text))
        assert [item.shape for item in scene.shapes if item.colour == colour] == [answer]
    elif kind == "count":
        what = next((n for n in [*names, *SHAPES] if re.search(rf"\b{n}(e?s)\b", text)), "")
        matching = [i for i in scene.shapes if what in (i.name, i.shape, "")]
        assert answer == str(len(matching)), text
    elif kind == "position":
        check_position(scene, text, answer)
    elif kind == "locate":
        check_location(scene, text, answer)
    elif kind == "caption":
        assert all(item.colour in answer and item.shape in answer for item in scene.shapes)
        assert all(f'"{item.text}"' in answer for item in scene.texts)
    else:
        assert text.startswith("<|grounding|>")
        reads = any(answer.startswith(f"<|ref|>{item.text}<|") for item in scene.texts)
        assert len(answer_boxes(answer)) == (1 if reads else len(scene.objects))


def check_position(scene: Scene, text: str, answer: str) -> None:
    match = re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", text)
    if match is None:
        items = [i for i in scene.objects if i.name in text or (i.text and "the text" in text)]
        assert answer in {place_word(item, scene) for item in items}
        return
    one, two = (next(i for i in scene.shapes if i.name == match.group(k)) for k in (1, 3))
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[
        match.group(2)
    ]
    assert (answer == "yes") == (sign * (one.centre[axis] - two.centre[axis]) > 0)


def check_location(scene: Scene, text: str, answer: str) -> None:
    if match := re.fullmatch(r"There is no (.+)\.", answer):
        assert match.group(1) in text
        assert all(item.name != match.group(1) for item in scene.objects)
        return
    label = re.match(r"<\|ref\|>(.+?)<\|/ref\|>", answer).group(1)
    assert label in text
    width, height = scene.image.size
    expected = [
        [round(v / side * 999) for v, side in zip(i.box, (width, height) * 2, strict=True)]
        for i in sorted(scene.objects, key=lambda item: (item.box[1], item.box[0]))
        if label in (i.name, i.shape, f"{i.colour} shape") or (label == "text" and i.text)
    ]
    assert answer_boxes(answer) == expected
    assert all(0 <= value <= 999 for box in expected for value in box)


def one_object_scene(box: tuple[int, int, int, int]) -> Scene:
    item = SceneObject(kind="shape", name="red ring", box=box, colour="red", shape="ring")
    image = Image.new("RGB", (90, 90))
    return Scene(image=image, objects=(item,), kind="shapes", font="", background="solid")


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ((0, 0, 20, 20), "top left"),
        ((35, 0, 55, 20), "top"),
        ((70, 70, 90, 90), "bottom right"),
        ((40, 40, 50, 50), "centre"),
        ((70, 40, 90, 50), "right"),
        ((20, 40, 40, 50), None),  # centre at x = 30, on the line
        ((40, 53, 50, 60), None),  # centre 3.5 pixels from the line at 60: 3.9 % of the side
    ],
)
def test_places_follow_a_grid_of_nine_and_stay_silent_near_its_lines(box, word):
    scene = one_object_scene(box)
    assert place_word(scene.objects[0], scene) == word


@pytest.mark.parametrize("size", [(112, 112), (224, 112), (112, 224), (97, 203), (230, 81)])
def test_dense_labels_lie_where_pad_puts_the_objects(size):
    side, patch = 112, 8
    for scene in scenes("shapes", 6, sizes=((size, 1.0),)):
        labels = dense_labels(scene, image_size=side, patch=patch)
        for item in scene.shapes:
            mask = Image.new("L", size)
            mask.paste(255, item.box)
            padded = np.asarray(ImageOps.pad(mask, (side, side), Image.Resampling.BILINEAR))
            rows, columns = np.nonzero(labels["shape_id"] == 1 + SHAPES.index(item.shape))
            mine = [
                (r, c)
                for r, c in zip(rows, columns, strict=True)
                if labels["colour_id"][r, c] == 1 + COLOURS.index(item.colour)
            ]
            inside = padded[patch // 2 :: patch, patch // 2 :: patch] > 127
            strays = {(r, c) for r, c in zip(*np.nonzero(inside), strict=True)} ^ set(mine)
            for row, column in strays:  # only where the edge runs through the patch centre
                y, x = row * patch + patch // 2, column * patch + patch // 2
                assert np.ptp(padded[y - 1 : y + 2, x - 1 : x + 2].astype(int)) > 0
            ys, xs = np.nonzero(padded > 127)
            truth = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            for row, column in mine:
                centre = np.array([column, row, column, row]) * patch + patch / 2
                edges = labels["box"][row, column] * side + centre
                np.testing.assert_allclose(edges, truth, atol=1.0)


def test_dense_characters_follow_the_plain_rule():
    for scene in scenes("text", 20, sizes=(((112, 112), 1.0),)):
        labels = dense_labels(scene, image_size=112, patch=14)
        assert labels["char_id"].dtype == np.int64
        assert labels["box"].dtype == np.float32
        assert labels["box"].shape == (8, 8, 4)
        for row in range(8):
            for column in range(8):
                x, y = column * 14 + 7, row * 14 + 7
                holding = [
                    (np.hypot(x - (b[0] + b[2]) / 2, y - (b[1] + b[3]) / 2), char.char)
                    for char in scene.texts[0].chars
                    for b in [char.box]
                    if b[0] <= x < b[2] and b[1] <= y < b[3]
                ]
                expected = 1 + LETTERS.index(min(holding)[1]) if holding else 0
                assert labels["char_id"][row, column] == expected
        assert not labels["shape_id"].any()


def test_font_families_stay_on_one_side_of_the_split():
    stems = ["Lora[wght]", "Lora-Italic[wght]", "OpenSans-Bold", "Roboto-Thin", "RobotoSlab[wght]"]
    stems += [
        "RobotoCondensed-Bold",
        "BEBAS___",
        "Caviar_Dreams_Bold",
        "CaviarDreams",
        "Kalam-Bold",
    ]
    paths = [Path(f"{stem}.ttf") for stem in stems]
    train, heldout = font_split(paths, "train"), font_split(paths, "heldout")
    assert sorted(train + heldout) == sorted(paths)
    assert not {family(path) for path in train} & {family(path) for path in heldout}
    assert family(Path("Caviar_Dreams_Bold.ttf")) == family(Path("CaviarDreams.ttf")) == "caviar"
    with pytest.raises(ValueError, match="unknown split"):
        font_split(paths, "test")


def write_wheel(path: Path, names: list[str]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """One pinned package whose wheel a stand-in for pip copies from `tmp_path`."""
    names = ["p/Good-Bold.ttf", "p/Thin.ttf", "../../Evil.ttf", "p/code.py", "p/Good-Bold.otf"]
    digest = write_wheel(tmp_path / "source.whl", names)
    package = font_packages.FontPackage(name="p", version="1", sha256=digest, skip=("Thin",))
    monkeypatch.setattr(font_packages, "FONT_PACKAGES", (package,))
    calls = []

    def pip(command, **_):
        calls.append(command)
        target = Path(command[command.index("--dest") + 1]) / "p-1-py3-none-any.whl"
        target.write_bytes((tmp_path / "source.whl").read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(font_packages.subprocess, "run", pip)
    return calls


def test_fonts_are_fetched_once_and_stay_inside_the_cache(pinned, tmp_path):
    cache = tmp_path / "cache"
    first, second = fetch_fonts(cache), fetch_fonts(cache)
    assert first == second
    assert len(pinned) == 1
    assert [path.name for path in first] == ["Evil.ttf", "Good-Bold.ttf"]
    assert not list(tmp_path.glob("Evil*"))
    assert not list(cache.rglob("*.py"))


def test_a_file_that_is_not_the_pinned_one_is_not_used(pinned, tmp_path):
    write_wheel(tmp_path / "source.whl", ["p/Other.ttf"])
    with pytest.raises(RuntimeError, match=r"expected .* not used"):
        fetch_fonts(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.ttf"))


def test_no_network_gives_one_clear_line(monkeypatch, tmp_path):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no route\n")

    monkeypatch.setattr(font_packages.subprocess, "run", pip)
    with pytest.raises(RuntimeError, match=r"could not download trdg.*no route") as error:
        fetch_fonts(tmp_path)
    assert "\n" not in str(error.value)


def test_contact_sheet_shows_every_scene():
    sheet = contact_sheet(scenes("mixed", 5, sizes=(((112, 112), 1.0),)), columns=3)
    assert sheet.size == (3 * (2 * 112 + 6), 2 * (2 * 112 + 18))
