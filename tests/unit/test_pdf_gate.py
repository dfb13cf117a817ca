import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops
from tests.unit.pdf_files import PdfPage, encrypted_pdf, pdf_of, show

from vl2.processing.pdf_error import PdfError
from vl2.processing.pdf_gate import Pdf, PdfPolicy, page_numbers

PAGE = PdfPage(content=show("Hello big (world)", 30, 120, 14) + show("second line", 30, 100))
WHOLE = pdf_of([PAGE])


def ink(image: Image.Image) -> tuple[int, int, int, int] | None:
    return ImageChops.invert(image.convert("L")).point(lambda v: 255 * (v > 60)).getbbox()


def numbers_of(source: bytes | str | Path, policy: PdfPolicy) -> list[int]:
    with Pdf(source, policy) as pdf:
        return pdf.pages()


def refused(source: bytes | str | Path, policy: PdfPolicy | None = None) -> str:
    with pytest.raises(PdfError) as caught:
        numbers_of(source, policy or PdfPolicy())
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_a_page_becomes_a_picture_and_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(WHOLE)
    for source in (WHOLE, tmp_path / "a.pdf", str(tmp_path / "a.pdf")):
        with Pdf(source) as pdf:
            image = pdf.render(1, dpi=72)
            assert (len(pdf), image.size, image.mode) == (1, (300, 200), "RGB")
            assert image.getpixel((0, 0)) == (255, 255, 255)
            lines = pdf.text(1, dpi=72)
            assert [line.text for line in lines] == ["Hello big (world)", "second line"]
            assert [w.text for w in lines[0].words] == ["Hello", "big", "(world)"]
            assert [line.block for line in lines] == [0, 0]
            assert "second line" in pdf.plain_text(1)
            assert pdf.fonts(1) == {"Helvetica"}


@settings(max_examples=25, deadline=None)
@given(
    turned=st.sampled_from([0, 90, 180, 270]),
    crop=st.booleans(),
    dpi=st.floats(40, 200),
    origin=st.tuples(st.integers(-50, 300), st.integers(-50, 300)),
)
def test_boxes_lie_where_the_ink_is(
    turned: int, crop: bool, dpi: float, origin: tuple[int, int]
) -> None:
    x, y = origin
    page = PdfPage(
        content=show("Wide jelly-fish", x + 60, y + 90, 24),
        box=(x, y, x + 400, y + 200),
        crop=(x + 31.5, y + 20, x + 381, y + 144.25) if crop else None,
        turned=turned,
    )
    with Pdf(pdf_of([page])) as pdf:
        image, [line] = pdf.render(1, dpi), pdf.text(1, dpi)
        view = pdf.view(1, dpi)
    assert line.text == "Wide jelly-fish"
    assert image.size == view.size
    assert view.scale == pytest.approx(dpi / 72)
    assert view.points == pytest.approx((image.width * 72 / dpi, image.height * 72 / dpi), abs=2)
    assert line.box == pytest.approx(ink(image), abs=2)
    for word in line.words:  # each box holds the ink of its own word
        found = ink(image.crop([round(v) for v in word.box]))
        assert found is not None
        assert found[2] - found[0] == pytest.approx(word.box[2] - word.box[0], abs=2)


def test_a_part_of_a_page_is_the_same_pixels() -> None:
    with Pdf(WHOLE) as pdf:
        whole, part = pdf.render(1, 100), pdf.render(1, 100, box=(30, 90, 200, 190))
    ours, theirs = (np.asarray(i, int) for i in (part, whole.crop((30, 90, 200, 190))))
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (None, list(range(1, 11))),
        ("1-3,5", [1, 2, 3, 5]),
        (" 9 - , 2", [9, 10, 2]),
        ("4,4,3-5", [4, 3, 5]),
    ],
)
def test_ranges_of_pages(chosen: str | None, numbers: list[int]) -> None:
    assert page_numbers(chosen, 10) == numbers


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("", "pages are '': expected numbers and ranges from 1 such as 1-3,5"),
        ("0", "expected numbers and ranges from 1"),
        ("3-1", "expected numbers and ranges from 1"),
        ("-3", "expected numbers and ranges from 1"),
        ("a", "expected numbers and ranges from 1"),
        ("\u0661", "expected numbers and ranges from 1"),
        ("1,11", "pages are '1,11', but the PDF has 10 pages: choose from 1 to 10"),
        ("11-", "the PDF has 10 pages"),
        ("99999999999", "expected numbers"),
    ],
)
def test_no_such_range(chosen: str, message: str) -> None:
    with pytest.raises(PdfError) as caught:
        page_numbers(chosen, 10)
    assert message in str(caught.value)


@given(st.text("0123456789-, ", max_size=12), st.integers(1, 20))
def test_chosen_pages_exist_or_are_refused(chosen: str, count: int) -> None:
    try:
        numbers = page_numbers(chosen, count)
    except PdfError:
        return
    assert numbers
    assert len(set(numbers)) == len(numbers)
    assert all(1 <= number <= count for number in numbers)


def test_what_is_refused(tmp_path: Path) -> None:
    assert refused(encrypted_pdf()) == "encrypted"
    assert refused(pdf_of([])) == "no_pages"
    assert refused(b"") == refused(b"\x89PNG\r\n\x1a\n" + bytes(99)) == "not_a_pdf"
    assert refused(WHOLE[:200]) == refused(b"%PDF-1.7\n" + bytes(range(256)) * 9) == "damaged"
    assert refused(tmp_path) == refused(tmp_path / "none.pdf") == refused("a\0.pdf") == "missing"
    assert refused(WHOLE, PdfPolicy(max_bytes=100)) == "too_many_bytes"
    assert refused(pdf_of([PAGE] * 3), PdfPolicy(max_pages=2)) == "too_many_pages"


def test_refusals_tell_no_path(tmp_path: Path) -> None:
    path = tmp_path / "private.pdf"
    path.write_bytes(b"%PDF-" + bytes(50))
    with pytest.raises(PdfError, match=r"^the PDF is damaged") as caught:
        Pdf(path)
    assert "private" not in str(caught.value)


def test_numbers_and_resolutions_are_checked() -> None:
    with Pdf(WHOLE) as pdf:
        for number in (0, 2, -1):
            with pytest.raises(PdfError, match=f"pages are '{number}', but the PDF has 1 pages"):
                pdf.text(number)
        for dpi in (0, -3, float("nan"), float("inf")):
            with pytest.raises(PdfError, match=r"dpi is .*: expected a number above 0"):
                pdf.render(1, dpi)
    with pytest.raises(PdfError, match="the PDF is closed"):
        pdf.render(1)
    pdf.close()


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(1, 2000))
def test_no_page_has_too_many_pixels(width: float, height: float, dpi: float) -> None:
    page = PdfPage(content=show("a", 0, 0), box=(0, 0, width, height))
    with Pdf(pdf_of([page]), PdfPolicy(max_pixels=50_000)) as pdf:
        view = pdf.view(1, dpi)
        assert view.size[0] * view.size[1] <= 50_000
        assert view.scale <= dpi / 72
        assert pdf.render(1, dpi).size == view.size
        pdf.text(1, dpi)


def test_hyphens_ligatures_and_columns() -> None:
    words = [
        show("Second column", 200, 150),
        show("ends here.", 200, 135),
        show("The first one has a hy-", 20, 150),
        show("phen and a table:", 20, 135),
        show("one", 20, 100) + show("two", 110, 100) + show("three", 230, 100),
        show("Heading", 20, 180, 20),
    ]
    page = PdfPage(content="".join(words), box=(0, 0, 300, 210))
    with Pdf(pdf_of([page])) as pdf:
        found = [line.text for line in pdf.text(1)]
    assert found == [
        *("Heading", "The first one has a hy-", "phen and a table:"),
        *("Second column", "ends here.", "one", "two", "three"),
    ]


def test_a_scan_has_no_text() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "orange").save(buffer, "PDF", resolution=72)
    with Pdf(buffer.getvalue()) as pdf:
        assert pdf.text(1) == ()
        assert pdf.render(1, 72).getpixel((40, 30)) == pytest.approx((255, 165, 0), abs=3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(pdf_of([PAGE, PAGE]))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(5, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(len(damaged) // 2, len(damaged)))
    try:
        with Pdf(bytes(damaged[:end]), PdfPolicy(max_pixels=10_000)) as pdf:
            for number in pdf.pages():
                pdf.render(number)
                pdf.text(number)
    except PdfError:
        pass


def test_threads_take_turns() -> None:
    with Pdf(pdf_of([PAGE] * 8)) as pdf:
        found: list[str] = []

        def read(number: int) -> None:
            pdf.render(number, 40)
            found.append(pdf.text(number)[0].text)

        threads = [threading.Thread(target=read, args=(n,)) for n in pdf.pages()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["Hello big (world)"] * 8


def test_the_missing_package_is_named() -> None:
    script = "import sys; sys.modules['pypdfium2'] = None\nimport vl2.processing.pdf_gate"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.endswith('ValueError: PDFs need a package: pip install "vl2[pdf]"\n')
