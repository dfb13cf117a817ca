import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.processing.pdf_text import MOST_BLOCKS, Glyph, PageBox, around, lines_of, reading_order


def glyphs(text: str, x: float, y: float, width: float = 10.0) -> list[Glyph]:
    """Letters of 10 x 12 pixels; spaces have no width, as in pdfium's reports."""
    return [
        Glyph(
            code=ord(char),
            box=(x + n * width, y, x + (n + (not char.isspace())) * width - 1, y + 12),
        )
        for n, char in enumerate(text)
    ]


def test_a_ligature_is_split_evenly() -> None:
    shared = (0.0, 0.0, 12.0, 10.0)
    [line] = lines_of([Glyph(code=ord("f"), box=shared), Glyph(code=ord("i"), box=shared)])
    assert [(c.text, c.box) for c in line.chars] == [
        ("f", (0, 0, 6, 10)),
        ("i", (6, 0, 12, 10)),
    ]
    [line] = lines_of([Glyph(code=0xFB03, box=shared)])
    assert [(c.text, c.box[0]) for c in line.chars] == [("f", 0), ("f", 4), ("i", 8)]


def test_halves_of_a_character_are_one() -> None:
    shared = (0.0, 0.0, 12.0, 10.0)
    [line] = lines_of([Glyph(code=0xD835, box=shared), Glyph(code=0xDC4E, box=shared)])
    assert line.text == "\U0001d44e"


@pytest.mark.parametrize("code", [0, 1, 0xE000, 0xFFFE, 0xFFFF, 0xD835])
def test_what_no_font_names_is_unsure(code: int) -> None:
    [line] = lines_of([Glyph(code=code, box=(0, 0, 9, 9)), *glyphs("ab", 10, 0)])
    assert line.text == "\ufffdab"
    assert [char.sure for char in line.chars] == [False, True, True]


def test_a_word_goes_on_in_the_next_line() -> None:
    found = lines_of([*glyphs("one hy-", 0, 0), *glyphs("phen two", 0, 20)])
    assert [line.text for line in found] == ["one hy-", "phen two"]
    assert [line.block for line in found] == [0, 0]


def test_a_raised_number_stays_on_its_line() -> None:
    raised = [Glyph(code=ord("2"), box=(31, -4, 35, 4)), *glyphs(" m", 30, 0)]
    for end in ([], [Glyph(code=10, box=(0, 0, 0, 0))]):
        [line] = lines_of([*glyphs("two", 0, 0), *end, *raised])
        assert line.text.replace(" ", "") == "two2m"


def test_a_dash_before_a_line_belongs_to_it() -> None:
    dash = Glyph(code=ord("-"), box=(0, 6, 4, 7))
    [line] = lines_of([dash, Glyph(code=32, box=(4, 6, 4, 7)), *glyphs("item", 14, 0)])
    assert line.text == "- item"


def test_dots_that_lead_to_a_number_are_on_its_line() -> None:
    dots = [
        Glyph(code=code, box=(40 + 8 * n, 11, 41 + 8 * n * (code > 32), 12))
        for n in range(20)
        for code in (32, ord("."))
    ]
    [line] = lines_of([*glyphs("One", 0, 0), *dots, *glyphs(" 7", 200, 0)])
    assert line.text == "One" + " ." * 20 + " 7"


def test_text_upwards_comes_last() -> None:
    upwards = [
        Glyph(code=ord(c), box=(0, 90 - 10 * n, 12, 99 - 10 * n), angle=270)
        for n, c in enumerate("side")
    ]
    found = lines_of([*upwards, Glyph(code=10, box=(0, 0, 0, 0)), *glyphs("main text", 30, 40)])
    assert [line.text for line in found] == ["main text", "side"]
    assert found[1].box == (0, 60, 12, 99)


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.floats(0, 900)] * 2, *[st.floats(1, 300)] * 2), max_size=12))
def test_reading_order_names_each_block_once(rows: list[tuple[float, ...]]) -> None:
    boxes: list[PageBox] = [(x, y, x + w, y + h) for x, y, w, h in rows]
    assert sorted(reading_order(boxes)) == list(range(len(boxes)))


@given(st.permutations(range(6)))
def test_columns_are_read_one_after_the_other(places: list[int]) -> None:
    blocks = [  # a title, two columns of two, a footer
        *((0, 0, 100, 10), (0, 20, 45, 40), (0, 50, 45, 90)),
        *((55, 20, 100, 60), (55, 65, 100, 90), (0, 95, 100, 99)),
    ]
    order = reading_order([blocks[place] for place in places])
    assert [places[index] for index in order] == list(range(6))


def test_a_page_of_many_blocks_keeps_its_order() -> None:
    boxes = [(0.0, -float(n), 1.0, 1.0 - n) for n in range(MOST_BLOCKS + 1)]
    assert reading_order(boxes) == list(range(MOST_BLOCKS + 1))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 0x10FFFF), st.tuples(*[st.integers(-50, 50)] * 4)), max_size=30
    )
)
def test_any_report_becomes_lines(reports: list[tuple[int, tuple[int, int, int, int]]]) -> None:
    found = lines_of(Glyph(code=code, box=box, angle=code % 360) for code, box in reports)
    printed = {
        box for c, box in reports if box[0] < box[2] and box[1] < box[3] and not chr(c).isspace()
    }
    assert sum(len(line.chars) for line in found) >= len(printed)
    for line in found:
        assert line.box == around([word.box for word in line.words])
    if printed:
        assert around([line.box for line in found]) == around(sorted(printed))
