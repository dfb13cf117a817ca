import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw
from tests.unit.made import small_world

from vl2 import core_count
from vl2.cli import main
from vl2.cli.data import _KINDS
from vl2.data.config import SourceConfig
from vl2.data.encode import encode_record
from vl2.data.make import export, packages
from vl2.data.make.blocks import set_block
from vl2.data.make.chance import phrase
from vl2.data.make.fonts import SMALL_CAPITALS, UNFIT, family, glyph_box
from vl2.data.make.kinds import KINDS, make
from vl2.data.make.naming import place_name
from vl2.data.make.paper import barred, rotated
from vl2.data.make.sample import Made, Mark, Spot, plain, union
from vl2.data.make.shapes import SHAPES, draw_shape
from vl2.data.make.sheet import Sheet, Style, wrap
from vl2.data.make.tables import Grid
from vl2.data.make.texts import _part, plain_text
from vl2.data.sources import open_source
from vl2.processing.grounding import parse_grounding
from vl2.processing.processor import Processor

ROWS = range(6)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def rows(kind: str) -> list[Made]:
    worlds = [small_world("train"), small_world("heldout")]
    return [make(kind, 5, row, worlds[row % 2]) for row in ROWS]


def inside(box: tuple[int, int, int, int], size: tuple[int, int], slack: int = 0) -> bool:
    x1, y1, x2, y2 = box
    return -slack <= x1 < x2 <= size[0] + slack and -slack <= y1 < y2 <= size[1] + slack


def test_the_help_names_every_kind() -> None:
    named = _KINDS.rstrip(".").replace(" or ", ", ").split(", ")
    assert sorted(named) == sorted(KINDS)


def test_a_row_depends_on_its_arguments_alone(kind: str, rows: list[Made]) -> None:
    again = make(kind, 5, 0, small_world())
    assert again.image.tobytes() == rows[0].image.tobytes()
    assert (again.marks, again.asks) == (rows[0].marks, rows[0].asks)
    assert make(kind, 6, 0, small_world()).asks != again.asks


def test_marks_lie_on_the_picture(rows: list[Made]) -> None:
    for made in rows:
        for mark in made.marks:  # a turned box may reach out of the picture by its slant
            assert inside(mark.box, made.image.size, slack=8), mark


def test_every_question_has_an_answer_and_places_on_the_picture(rows: list[Made]) -> None:
    for made in rows:
        assert made.asks
        for ask in made.asks:
            assert plain(ask.answer).strip() or any(isinstance(p, Spot) for p in ask.answer)
            assert plain(ask.question) or any(isinstance(p, Spot) for p in ask.question)
            for part in (*ask.question, *ask.answer):
                assert isinstance(part, str) or all(
                    inside(box, made.image.size, slack=8) for box in part.boxes
                )


def test_facts_are_json(rows: list[Made]) -> None:
    for made in rows:
        json.dumps(made.facts)


def test_rows_are_read_by_the_trainer(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "world", small_world)
    assert list(export.write(kind, 3, 1, tmp_path, "train", jobs=1)) == [1, 2, 3]
    source = open_source(SourceConfig(path=str(tmp_path / "rows.jsonl")))
    processor = Processor.from_pretrained("nano")
    for row in range(3):
        made, record = make(kind, 1, row, small_world()), source[row]
        assert encode_record(record, processor).labels.max() >= 0
        answers = [turn.text for turn in record.turns if turn.role == "assistant"]
        for ask, text in zip(made.asks, answers, strict=True):
            found = parse_grounding(text, [made.image.size])
            wanted = [box for p in ask.answer if isinstance(p, Spot) for box in p.boxes]
            assert len(found) == len(wanted)
            for box, (x1, y1, x2, y2) in zip(found, wanted, strict=True):
                slack = max(made.image.size) / 500 + 8
                assert box.x1 == pytest.approx(x1, abs=slack)
                assert box.y2 == pytest.approx(y2, abs=slack)
                assert (box.x2 - box.x1) == pytest.approx(x2 - x1, abs=slack)
                assert (box.y2 - box.y1) == pytest.approx(y2 - y1, abs=slack)
    with pytest.raises(ValueError, match=r"rows\.jsonl exists"):
        next(export.write(kind, 1, 1, tmp_path, "train", jobs=1))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"kind is 'cats': expected one of words, lines"):
        make("cats", 0, 0, small_world())


@settings(max_examples=15, deadline=None)
@given(
    st.text("abcdefgijklmnopqwyzABCGQ0123456789.,:/-", min_size=1, max_size=20),
    st.integers(10, 60),
    st.sampled_from([0.0, 2.5]),
)
def test_a_line_is_marked_where_its_ink_is(text: str, size: int, spacing: float) -> None:
    [[face]] = small_world().print_faces
    sheet = Sheet(Image.new("RGB", (1400, 120), "white"))
    box = sheet.text(12, 9, text, Style(face=face, size=size, spacing=spacing))
    ink = ImageChops.invert(sheet.image.convert("L")).point(lambda v: 255 * (v > 40)).getbbox()
    assert ink is not None
    assert box == pytest.approx(ink, abs=2)
    chars = [mark for mark in sheet.marks if mark.kind == "char"]
    assert "".join(mark.text for mark in chars) == text
    assert chars[0].box[0] == 12 + glyph_box(face, size, text[0])[0]


def test_words_of_a_line_are_its_characters() -> None:
    [[face]] = small_world().print_faces
    sheet = Sheet(Image.new("RGB", (400, 60), "white"))
    sheet.text(5, 5, "two  words", Style(face=face, size=20))
    assert [m.text for m in sheet.marks if m.kind == "word"] == ["two", "words"]
    [line] = [m for m in sheet.marks if m.kind == "line"]
    assert line.text == "two words"


def test_wrapped_lines_fit_and_lose_no_word() -> None:
    [[face]] = small_world().print_faces
    style = Style(face=face, size=18)
    text = small_world().texts.paragraphs[0]
    lines = wrap(text, style, 200)
    assert " ".join(lines) == text
    assert all(style.width(line) <= 200 for line in lines)


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.integers(60, 300), st.integers(60, 300))
def test_marks_turn_with_their_picture(degrees: float, width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((20, 25, 39, 44), fill="black")
    turned, [mark] = rotated(image, [Mark(kind="thing", text="x", box=(20, 25, 40, 45))], degrees)
    ink = ImageChops.invert(turned.convert("L")).point(lambda v: 255 * (v > 128)).getbbox()
    assert mark.box == pytest.approx(ink, abs=2)


@pytest.mark.parametrize("alignment", ["left", "justified"])
def test_a_turned_line_is_no_higher_than_its_ink(alignment: str) -> None:
    [[face]] = small_world().print_faces
    sheet, style = Sheet(Image.new("RGB", (640, 200), "white")), Style(face=face, size=24)
    lines = ["A line of print that is long", "second"]
    set_block(sheet, (20, 40), lines, style, width=590, step=90, alignment=alignment)
    turned, marks = rotated(sheet.image, sheet.marks, 3.0)
    ink = ImageChops.invert(turned.convert("L")).point([255 * (v > 90) for v in range(256)])
    [first, second] = [mark for mark in marks if mark.kind == "line"]
    upper = ink.crop((0, 0, turned.size[0], second.box[1] - 10)).getbbox()
    assert first.box == pytest.approx(upper, abs=3)
    words = [mark.box for mark in marks if mark.kind == "word"]
    assert union(words[:-1]) == first.box


def test_marks_move_with_bars() -> None:
    image = Image.new("RGB", (50, 40), "white")
    ImageDraw.Draw(image).point((30, 20), fill="red")
    mark = Mark(kind="thing", text="x", box=(30, 20, 31, 21))
    for seed in range(4):
        padded, [moved] = barred(np.random.default_rng(seed), image, [mark])
        assert padded.getpixel(moved.box[:2]) == (255, 0, 0)


def test_phrases_take_one_alternative_each() -> None:
    rng = np.random.default_rng(0)
    form = "[read|say] {it}[ now|]?"
    said = {phrase(rng, form, it="[x|y]").lower() for _ in range(60)}
    assert said == {f"{verb} [x|y]{end}?" for verb in ("read", "say") for end in (" now", "")}


def test_tables_are_markdown() -> None:
    grid = Grid(headings=("A", "B"), rows=(("1", "2"),), numeric=(False, True))
    assert grid.markdown() == "| A | B |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_square_and_differ(shape: str) -> None:
    mask = np.asarray(draw_shape(shape, 40, 0.0)) > 127
    assert 0.1 < mask.mean() < 0.95
    others = [np.asarray(draw_shape(other, 40, 0.0)) > 127 for other in SHAPES if other != shape]
    assert min((mask != other).mean() for other in others) > 0.02


@pytest.mark.parametrize(
    ("box", "place"),
    [((0, 0, 20, 20), "top left"), ((45, 45, 55, 55), "centre"), ((80, 40, 100, 60), "right")],
)
def test_places_are_thirds(box: tuple[int, int, int, int], place: str) -> None:
    assert place_name(box, (100, 100)) == place
    assert place_name((30, 45, 37, 55), (100, 100)) is None


def test_fonts_are_judged_by_their_names() -> None:
    assert not UNFIT.search("IndieFlower-Regular.ttf")
    assert UNFIT.search("FlowBlock-Regular.ttf")
    assert SMALL_CAPITALS.search("AmaticSC-Bold.ttf")


def test_splits_share_no_entry() -> None:
    entries = [f"word{n}" for n in range(400)]
    train, heldout = _part(entries, "train"), _part(entries, "heldout")
    assert not set(train) & set(heldout)
    assert sorted((*train, *heldout)) == sorted(entries)
    assert 30 < len(heldout) < 100


def test_relatives_are_one_family() -> None:
    names = ("OpenSans-Bold.ttf", "OpenSansCondensed-Light.ttf", "open_sans.ttf")
    assert {family(name) for name in names} == {"open"}


def test_text_is_made_plain() -> None:
    assert plain_text("Caf\u00e9 \u201cx\u201d \u2013 \u4e2d  y\n") == 'Cafe "x" - y'


def archive(folder: Path) -> Path:
    path = folder / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("demo/a.ttf", b"font")
        file.writestr("../../evil.ttf", b"evil")
        file.writestr("demo/code.py", b"code")
    return path


def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sha256: str) -> None:
    package = packages.Package(
        registry="pypi", name="demo", version="1.0", sha256=sha256, use="fonts", keep=r"\.ttf$"
    )
    monkeypatch.setattr(packages, "packages", lambda: {"demo": package})
    monkeypatch.setattr(packages, "_pip", lambda batch, place: archive(place))
    monkeypatch.setenv("VL2_CACHE", str(tmp_path))


def test_packages_are_checked_and_unpacked_flat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = hashlib.sha256(archive(tmp_path).read_bytes()).hexdigest()
    pinned(monkeypatch, tmp_path / "cache", digest)
    folder = packages.fetch("demo")
    assert sorted(p.name for p in folder.iterdir()) == [".complete", "demo--a.ttf", "evil.ttf"]
    monkeypatch.setattr(packages, "_pip", lambda batch, place: pytest.fail("fetched again"))
    assert packages.fetch("demo") == folder


def test_another_file_than_the_pinned_one_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pinned(monkeypatch, tmp_path, "0" * 64)
    with pytest.raises(OSError, match=r"demo 1\.0 is not the pinned file"):
        packages.fetch("demo")
    assert not list(tmp_path.rglob("*.ttf"))


def test_packages_that_cannot_be_fetched_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VL2_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "Collecting\nERROR: no route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(OSError, match=r"1 packages .*no route to host.*check the network"):
        packages.fetch(next(iter(packages.packages())))


@pytest.mark.parametrize(("given", "jobs"), [((), 1), (("--jobs", "3"), 3)])
def test_pictures_are_drawn_by_as_many_processes_as_the_quota_grants(
    given: tuple[str, ...], jobs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")  # one core
    monkeypatch.setattr(core_count, "CGROUP", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("vl2.data.make.world.world", small_world)
    asked: list[int] = []
    monkeypatch.setattr(export, "write", lambda *args: asked.append(args[-1]) or iter(()))
    assert main(["data", "make", "words", "-o", str(tmp_path / "made"), *given]) == 0
    assert asked == [jobs]


@pytest.mark.parametrize("package", ["faker", "matplotlib"])
def test_the_missing_package_is_named(package: str) -> None:
    script = f"""import sys; sys.modules["{package}"] = None
from vl2.cli import main; sys.exit(main(["data", "make", "words", "-o", "unused"]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'error: made pictures need a package: pip install "vl2[data]"\n'


def test_pins_are_whole() -> None:
    for package in packages.packages().values():
        assert package.registry in ("pypi", "debian")
        assert len(package.sha256) == 64
        assert package.use in ("fonts", "texts", "pictures", "pages")
