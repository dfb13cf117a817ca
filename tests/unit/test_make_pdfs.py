import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.made import LINES, small_pdf, small_world
from tests.unit.pdf_files import PdfPage, pdf_of, show
from tests.unit.test_pdf_text import glyphs

from vl2.data.make import pdf_pages, pdfs
from vl2.data.make.kinds import make
from vl2.data.make.pdf_pages import Document, documents, examined, is_english, is_prose, shown_text
from vl2.data.make.sample import Made
from vl2.data.make.world import World
from vl2.processing.pdf_text import Glyph, lines_of

ENGLISH = (
    "It is a page of English that is about the making of the pictures and of the text in a PDF. "
) * 4
GOOD = "Only this line is trusted"


def world_of(source: bytes) -> World:
    return replace(small_world(), documents=lambda: (Document(source=source, pages=(1,)),))


@pytest.fixture
def undamaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pdfs, "finish", lambda rng, sheet, strength: (sheet.image, tuple(sheet.marks))
    )
    monkeypatch.setattr(pdfs, "_coloured", lambda rng, image: image)


@pytest.mark.usefixtures("undamaged")
def test_marks_are_the_page_s_text_and_lie_on_its_ink() -> None:
    skills = set()
    for row in range(20):
        made = make("pdfs", 3, row, small_world())
        skills.add(made.asks[0].skill.split(".")[0])
        ink = np.asarray(made.image.convert("L")) < 200
        free = ink.copy()
        for mark in made.marks:
            x1, y1, x2, y2 = mark.box
            assert ink[y1:y2, x1:x2].any(), mark
            if mark.kind == "char":
                free[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        lines = [mark.text for mark in made.of("line")]
        assert all(any(line in whole for whole in LINES) for line in lines)
        places = [next(n for n, whole in enumerate(LINES) if line in whole) for line in lines]
        assert places == list(range(places[0], places[0] + len(places)))
        words = [mark.text for mark in made.of("word")]
        assert words == " ".join(lines).split()
        assert "".join(words) == "".join(mark.text for mark in made.of("char"))
        assert free.mean() < 0.06  # neighbours may be cut into, but not shown
    assert skills == {"pdf_line", "pdf_block", "pdf_page"}


def test_single_lines_are_at_most_60_characters() -> None:
    page = PdfPage(content=show(" ".join(["word"] * 40), 10, 100, 9), box=(0, 0, 900, 200))
    for row in range(10):
        made = make("pdfs", 1, row, world_of(pdf_of([page])))
        [line] = made.of("line")
        assert 4 <= len(line.text) <= 60


@pytest.mark.parametrize(
    "other",
    [
        show("snake case", 20, 60) + "52 59 3 0.4 re f\n",  # a rule instead of an underscore
        "3 Tr " + show("nobody sees this", 20, 60) + "0 Tr ",
        "1 1 1 rg " + show("white on white", 20, 60) + "0 g ",
        show("caf\xe9 au lait", 20, 60),
        "0.7 0.7 -0.7 0.7 0 0 cm " + show("slanted", 60, 20),
    ],
)
@pytest.mark.usefixtures("undamaged")
def test_lines_that_may_lie_are_not_shown(other: str) -> None:
    world = world_of(pdf_of([PdfPage(content=show(GOOD, 20, 150) + other)]))
    words = GOOD.split()
    parts = [" ".join(words[a:b]) for a in range(5) for b in range(a + 1, 6)]
    for row in range(8):
        [line] = make("pdfs", 1, row, world).of("line")
        assert line.text in (*parts, "snake", "case")  # each half is what it says


def test_a_split_without_a_usable_page_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdfs, "TRIES", 3)
    with pytest.raises(OSError, match="none of 3 pages shows what its text says"):
        make("pdfs", 1, 1, world_of(pdf_of([PdfPage()])))


def test_pages_of_english_are_found() -> None:
    assert is_english(ENGLISH)
    assert is_english(ENGLISH.replace("is", "\u201cis\u201d"))
    assert not is_english(ENGLISH[:100])
    assert not is_english("Het is een bladzijde over het maken van plaatjes uit een tekst. " * 9)
    assert not is_english(ENGLISH.replace("t", "\ue001"))
    assert not is_english(ENGLISH + "0.25 0.31 17 " * 60)


def test_prose_is_told_from_code() -> None:
    assert is_prose(["Its", "first", "keeper", "(a", '"monk")', "wrote", "it;"])
    assert not is_prose([r"12", r"\def\x{a_b}", r"3.5", r"&", r"17", r"\\"])


def test_letters_without_their_heights_are_not_trusted() -> None:
    def line(heights: dict[str, tuple[float, float]]) -> list[str] | None:
        found = []
        for glyph in glyphs("the quality of good handwork", 0, 0):
            top, bottom = heights.get(chr(glyph.code), (4, 12))
            x1, _, x2, _ = glyph.box
            found.append(replace(glyph, box=(x1, top, x2, bottom)))
        [one] = lines_of(found)
        return shown_text(one)

    tall, low = dict.fromkeys("bdfhkl", (0.0, 12.0)), dict.fromkeys("gpqy", (4.0, 15.0))
    assert line({**tall, **low}) == ["the", "quality", "of", "good", "handwork"]
    assert line({}) is line(low) is line(tall) is None  # small capitals
    assert line({**tall, **low, "k": (4, 12)}) is None  # in one word
    uneven = {char: (0.0, 5.0 + 3 * n) for n, char in enumerate("aeouwr")}
    assert line({**tall, **low, **uneven}) is None  # signs of any size


def test_signs_that_no_plain_font_has_are_not_trusted() -> None:
    def shown(code: int, sure: bool = True) -> list[str] | None:
        sign = Glyph(code=code, box=(0, 0, 9, 12), sure=sure)
        return shown_text(lines_of([sign, *glyphs("ace", 10, 0)])[0])

    assert shown_text(lines_of(glyphs("a + b = cd", 0, 0))[0]) is None  # a formula
    accent = Glyph(code=ord("^"), box=(11, -3, 17, 2))
    assert shown_text(lines_of([*glyphs("for", -20, 0), accent, *glyphs("et", 10, 0)])[0]) is None
    assert shown(0x2022) == ["-ace"]
    assert shown(0x201C) == ['"ace']
    assert shown(0xE9) is shown(0x3B1) is shown(0xE000) is shown(ord("x"), sure=False) is None


def test_documents_are_looked_through_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prose = [
        show(ENGLISH[at : at + 60], 20, 150 - 14 * n) for n, at in enumerate(range(0, 300, 60))
    ]
    mixed = pdf_of(
        [
            PdfPage(content="".join(prose)),
            PdfPage(content=show("1 2 3", 20, 20)),
            PdfPage(content="".join(prose).replace("/F0", "/F1")),
        ]
    )
    assert examined(mixed) == Document(source=mixed, pages=(1, 3))
    assert examined(mixed, frozenset({"times"})).pages == (1,)
    assert examined(b"%PDF-").pages == examined(small_pdf()).pages == ()
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(mixed)
    (folder / "b.pdf").write_bytes(b"no PDF")
    monkeypatch.setenv("VL2_CACHE", str(tmp_path))
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(pdf_pages, "faces", lambda split: small_world().print_faces[0])
    for fetched in (lambda names: [folder], lambda names: pytest.fail("fetched again")):
        monkeypatch.setattr(pdf_pages, "fetch_all", fetched)
        documents.cache_clear()
        [found] = documents("heldout")
        assert (found.name, found.pages) == ("a.pdf", (1, 3))
    documents.cache_clear()


def test_splits_share_no_package() -> None:
    train, heldout = pdf_pages.PACKAGES["train"], pdf_pages.PACKAGES["heldout"]
    assert not set(train) & set(heldout)
    pins = pdf_pages.packages()
    assert {pins[name].use for name in (*train, *heldout)} == {"pages"}


def test_facts_say_where_a_crop_is_from() -> None:
    made: Made = make("pdfs", 1, 1, small_world())
    assert json.dumps(made.facts) in [f'{{"document": "bytes", "page": {n}}}' for n in (1, 2)]
