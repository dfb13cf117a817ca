"""The page in a real Chromium: answers, boxes, pages, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, Route, expect
from tests.browser.stub import (
    RED,
    ROUTE,
    answer_with,
    ask,
    box,
    ended,
    place_of,
    stream,
    token,
    until,
)
from tests.browser.watch import Watch
from tests.e2e.serving import Server
from tests.unit.pdf_files import PdfPage, pdf_of, show

pytestmark = pytest.mark.browser

WEB = Path(__file__).parents[2] / "src" / "vl2" / "serve" / "web"
EXAMPLES = json.loads((WEB / "examples" / "examples.json").read_text(encoding="utf-8"))
ORIENTATION = 0x0112
Opener = Callable[..., tuple[Page, Watch]]


def red_of(page: Page, tmp_path: Path) -> list[float]:
    """Where the red rectangle is on the screen, from its pixels."""
    file = tmp_path / "screen.png"
    left, top, _, _ = place_of(page, "#stage")
    page.locator(".boxes").evaluate("e => { e.style.visibility = 'hidden' }")
    page.locator("#stage").screenshot(path=file)
    page.locator(".boxes").evaluate("e => { e.style.visibility = '' }")
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    ys, xs = np.nonzero((pixels[..., 0] > 137) & (pixels[..., 2] < 100))  # half way from blue
    return [left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1]


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[e["file"] for e in EXAMPLES])
def test_example_questions_are_answered_right(page: Page, number: int):
    example = EXAMPLES[number]
    for at, question in enumerate(example["questions"]):
        if at == 0:
            page.locator(".example").nth(number).click()
            page.locator(".turn").wait_for()
        else:
            page.locator(".idea", has_text=question["text"]).click()
            page.locator(".turn").nth(at).wait_for()
        ended(page)
        expect(page.locator(".turn:last-child .text")).to_have_text(question["answer"])
        if question["mode"] == "boxes":
            assert page.locator(".box").count() >= 1
    assert page.locator(".bad").count() == 0


def test_boxes_lie_on_the_pixels_that_they_name(page: Page, wide: Path, tmp_path: Path):
    answer_with(page, stream({"content": "a red one", "boxes": [box("red", RED, (2, 9))]}))
    page.set_input_files("#files", wide)
    ask(page, "Locate it.")
    for zoomed in (False, True):
        if zoomed:
            page.click("#zoom-in")
        found = place_of(page, ".box .edge")
        np.testing.assert_allclose(found, red_of(page, tmp_path), atol=1.5)


def test_boxes_lie_right_on_photographs_that_are_turned(page: Page, tmp_path: Path):
    # Stored lying on its side, as telephones do; the server and the page turn it upright.
    upright = Image.new("RGB", (150, 300), (20, 30, 200))
    place = (20, 60, 100, 140)
    ImageDraw.Draw(upright).rectangle((20, 60, 99, 139), fill=(255, 0, 0))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = tmp_path / "photo.jpg"
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(file, exif=exif, quality=95, subsampling=0)
    answer_with(page, stream({"content": "red", "boxes": [box("red", place, (0, 3))]}))
    page.set_input_files("#files", file)
    expect(page.locator("#facts")).to_contain_text(re.compile("150 . 300"))
    ask(page, "Locate it.")
    np.testing.assert_allclose(place_of(page, ".box .edge"), red_of(page, tmp_path), atol=2)


def test_boxes_of_several_pictures_go_to_their_own(page: Page, wide: Path, tmp_path: Path):
    other = tmp_path / "other.png"
    Image.new("RGB", (90, 90), "white").save(other)
    boxes = [box("red", RED, (0, 3)), {**box("white", (5, 5, 80, 80), (8, 13)), "image_index": 1}]
    answer_with(page, stream({"content": "red and white", "boxes": boxes}))
    page.set_input_files("#files", [wide, other])
    ask(page, "Locate both.")
    expect(page.locator(".box")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text("made.png")
    page.locator(".phrase").nth(1).click()
    expect(page.locator("#facts")).to_contain_text("other.png")
    expect(page.locator(".box")).to_have_attribute("data-box", "1")


def test_boxes_of_the_model_hold_their_things(page: Page, png_file: Callable[..., Path]):
    image = Image.open(WEB / "examples" / "ring.png").convert("RGB")
    page.set_input_files("#files", png_file(image))
    ask(page, "Locate the blue ring.")
    frame = place_of(page, "#stage image")
    part = (frame[2] - frame[0]) / image.width
    x1, y1, x2, y2 = place_of(page, ".box .edge")
    middle = ((x1 + x2) / 2 - frame[0]) / part, ((y1 + y2) / 2 - frame[1]) / part
    assert abs(middle[0] - 130) < 12, middle  # the ring is drawn at (50, 40), 160 pixels wide
    assert abs(middle[1] - 120) < 12, middle


def test_an_answer_streams_with_its_boxes(watched: Opener, server: Server, wide: Path):
    page, _ = watched()
    # A stream whose events the test lets go one by one.
    page.add_init_script(
        """
        const real = window.fetch;
        window.fetch = (path, options) => {
          if (path !== "/v1/chat/completions") return real(path, options);
          const coded = new TextEncoder();
          const body = new ReadableStream({ start(controller) {
            window.push = (text) => controller.enqueue(coded.encode(text));
          } });
          return Promise.resolve(new Response(body, { status: 200 }));
        };
        """
    )
    page.goto(server.url)
    page.wait_for_selector(".model.ready")
    page.set_input_files("#files", wide)
    page.fill("#question", "What?")
    page.press("#question", "Enter")
    until(page, "() => Boolean(window.push)")
    body = stream(
        {"content": "a r"}, {"content": "ed"}, {"content": "", "boxes": [box("red", RED, (2, 5))]}
    )
    first, second, third, rest = body.split("\n\n", 3)
    push = "text => window.push(text)"
    page.evaluate(push, first + "\n\n")
    expect(page.locator(".text")).to_have_text("a r")
    page.evaluate(push, second[:30])  # an event in two halves
    page.evaluate(push, second[30:] + "\n\n")
    expect(page.locator(".text")).to_have_text("a red")
    expect(page.locator("#stop")).to_be_visible()
    assert page.locator(".box").count() == 0
    page.evaluate(push, third + "\n\n")
    expect(page.locator(".box")).to_have_count(1)
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator(".phrase")).to_have_text("red")
    page.evaluate(
        """
        () => {
          window.moved = 0; // a box that is put in again would appear once more
          const count = (changes) => { window.moved += changes.length };
          const boxes = document.querySelector(".boxes");
          new MutationObserver(count).observe(boxes, { childList: true });
        }
        """
    )
    page.evaluate(push, rest)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".figures")).to_contain_text("9 tokens")
    assert page.evaluate("() => window.moved") == 0


def test_a_phrase_and_its_box_light_together(page: Page, wide: Path):
    # Code points outside the basic plane count once for the server, twice in the page.
    text = "😀 **red** and blue"
    boxes = [box("red", RED, (4, 7)), box("blue", (200, 20, 220, 40), (14, 18))]
    answer_with(page, stream({"content": text, "boxes": boxes}))
    page.set_input_files("#files", wide)
    ask(page, "Describe it.")
    phrases = page.locator(".phrase")
    expect(phrases).to_have_text(["red", "blue"])
    phrases.nth(1).hover()
    expect(page.locator(".box.lit")).to_have_attribute("data-box", "1")
    page.locator(".box").nth(0).hover()
    expect(page.locator(".phrase.lit")).to_have_text("red")
    before = page.get_attribute("#stage", "viewBox")
    phrases.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).not_to_have_attribute("viewBox", before or "")
    # The other box slides away from the pointer, which rests: that puts out nothing of this one.
    page.locator(".box").nth(0).dispatch_event("pointerleave")
    expect(page.locator(".box.lit")).to_have_attribute("data-box", "1")


def test_words_of_low_confidence_show_what_else_it_could_be(page: Page, wide: Path):
    tokens = [token("a ", -0.01), token("red", -1.6, crimson=-2.0), token(" one", -0.02)]
    body = stream({"content": "a red one", "boxes": [box("red", RED, (2, 5))]}, logprobs=tokens)
    answer_with(page, body)
    page.set_input_files("#files", wide)
    ask(page, "Describe it.")
    expect(page.locator(".unsure")).to_have_text("red")
    page.locator(".unsure").hover()
    expect(page.locator("#peek")).to_contain_text("20 % sure")
    expect(page.locator("#peek")).to_contain_text("crimson 14 %")
    expect(page.locator("#peek img")).to_be_visible()


def test_tables_and_markdown_are_rendered(page: Page, wide: Path):
    page.set_input_files("#files", wide)
    answer_with(page, stream({"content": "# T\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n- x\n- y"}))
    ask(page, "A table.")
    text = page.locator(".text")
    expect(text.locator("h1")).to_have_text("T")
    expect(text.locator("th")).to_have_text(["a", "b"])
    expect(text.locator("td strong")).to_have_text("2")
    expect(text.locator("li")).to_have_text(["x", "y"])


def test_pages_of_a_pdf_are_pictures(page: Page, tmp_path: Path):
    file = tmp_path / "two.pdf"
    pages = [PdfPage(content=show("K7", 90, 80, 90)), PdfPage(content=show("B2", 90, 80, 90))]
    file.write_bytes(pdf_of(pages))
    page.set_input_files("#files", file)
    expect(page.locator("#strip li .page")).to_have_text(["1", "2"])
    expect(page.locator("#facts")).to_contain_text(re.compile("two.pdf, page [12]"))
    with page.expect_request(ROUTE) as request:
        ask(page, "What does it say?")
    [part, _] = request.value.post_data_json["messages"][0]["content"]
    assert part["file"]["pages"] == "1,2"
    assert page.locator(".bad").count() == 0
    assert page.locator(".text").inner_text().strip()


def test_of_a_long_pdf_pages_are_chosen(page: Page, tmp_path: Path):
    file = tmp_path / "long.pdf"
    file.write_bytes(pdf_of([PdfPage(content=show(str(n), 20, 100)) for n in range(40)]))
    page.set_input_files("#files", file)
    page.fill("#pages", "39-41")  # the last one is not there: asked again
    page.click("#pages-dialog .primary")
    expect(page.locator("#pages-why")).to_contain_text("41")
    page.fill("#pages", "3,39-40")
    page.press("#pages", "Enter")
    expect(page.locator("#strip li .page")).to_have_text(["3", "39", "40"])
    page.set_input_files("#files", file)
    page.click("#pages-dialog .cancel")
    expect(page.locator("#pages-dialog")).to_be_hidden()
    expect(page.locator("#strip li")).to_have_count(3)


def test_stop_ends_the_answer_here_and_in_the_engine(page: Page, server: Server, wide: Path):
    def lengthen(route: Route) -> None:
        body = {**route.request.post_data_json, "max_tokens": 3000, "min_tokens": 2999}
        route.continue_(post_data=json.dumps(body))

    page.route(ROUTE, lengthen)
    page.set_input_files("#files", wide)
    page.fill("#question", "Describe the picture.")
    page.press("#question", "Enter")
    until(page, "() => document.querySelector('.text')?.innerText.length > 40")
    page.click("#stop")
    expect(page.locator(".remarks")).to_contain_text("Stopped.")
    server.free_blocks()  # waits until nothing runs any longer
    assert len(page.locator(".text").inner_text()) > 40
    page.unroute(ROUTE)
    ask(page, "Describe the picture.")
    expect(page.locator(".turn")).to_have_count(2)
    assert page.locator(".bad").count() == 0


def test_errors_are_told_where_they_belong(page: Page, tmp_path: Path, wide: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(b"%PDF-1.4 nothing")
    for file, told in ((broken, "broken.png"), (text, "notes.txt"), (bad, "damaged")):
        page.set_input_files("#files", file)
        expect(page.locator(".notice.error").last).to_contain_text(told)
    top, bottom = place_of(page, ".notices")[1::2]
    assert 0 < top < bottom < 500  # away from where questions are written
    page.set_input_files("#files", wide)
    page.evaluate("import('/web/js/state.js').then(m => { m.state.model = {id: 'other'} })")
    with page.expect_response(ROUTE):
        ask(page, "What?")
    expect(page.locator(".answered .bad")).to_contain_text("this server has nano")


def test_a_picture_that_the_server_refuses_is_told_by_its_name(page: Page, tmp_path: Path):
    drawn, cut = tmp_path / "drawn.svg", tmp_path / "cut.png"
    drawn.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"/>')
    whole = (WEB / "examples" / "text.png").read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    for file, told in ((drawn, "unsupported"), (cut, "damaged")):
        page.set_input_files("#files", file)
        expect(page.locator(".notice.error").last).to_contain_text(f"{file.name}: ")
        expect(page.locator(".notice.error").last).to_contain_text(told)
        expect(page.locator("#strip li")).to_have_count(0)
    page.route("**/v1/layout", lambda route: route.fulfill(status=429, json={}))
    page.set_input_files("#files", [cut, WEB / "examples" / "ring.png"])
    ask(page, "What is it?")
    expect(page.locator(".answered .bad")).to_contain_text("cut.png: the picture is damaged")


def test_a_small_model_says_what_it_can_see(page: Page, wide: Path):
    expect(page.locator(".invite .scope")).to_contain_text("nano is a small model")
    page.set_input_files("#files", wide)
    expect(page.locator(".fine .scope")).to_contain_text("112 ")


def test_a_lost_server_and_a_broken_stream_are_told(page: Page, wide: Path):
    page.set_input_files("#files", wide)
    expect(page.locator("#facts")).to_contain_text("tokens")
    answer_with(page, stream({"content": "half"}).split("data: [DONE]")[0])
    ask(page, "What?")
    expect(page.locator(".turn:last-child .bad")).to_contain_text("ended before the answer")
    late = json.dumps({"error": {"message": "the engine stopped", "code": "engine_error"}})
    answer_with(page, f"data: {late}\n\ndata: [DONE]\n\n")
    ask(page, "What?")
    expect(page.locator(".turn:last-child .bad")).to_have_text("the engine stopped")
