"""The page in a real Chromium: conversations, parts of pictures, export, small screens, keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect
from tests.browser.stub import RED, answer_with, ask, box, ended, place_of, stream
from tests.browser.watch import Watch
from tests.e2e.serving import Server

pytestmark = pytest.mark.browser

WEB = Path(__file__).parents[2] / "src" / "vl2" / "serve" / "web"
Opener = Callable[..., tuple[Page, Watch]]


def test_a_key_is_asked_for_once(watched: Opener, server: Server, wide: Path):
    page, watch = watched()
    missing = {"error": {"message": "no valid API key", "code": "unauthorized"}}

    def guard(route: Route) -> None:
        known = route.request.headers.get("authorization") == "Bearer right-key-1"
        route.fallback() if known else route.fulfill(status=401, json=missing)

    page.route("**/v1/**", guard)
    page.goto(server.url)
    page.fill("#key", "wrong-key-1")
    page.click("#key-dialog .primary")
    expect(page.locator("#key-why")).to_contain_text("not accepted")
    page.fill("#key", "right-key-1")
    page.press("#key", "Enter")  # as OK does
    expect(page.locator("#model .name")).to_have_text("nano")
    page.set_input_files("#files", wide)
    ask(page, "What is it?")
    assert page.locator(".bad").count() == 0
    page.reload()
    expect(page.locator("#model .name")).to_have_text("nano")
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator("#key-dialog")).to_be_hidden()
    assert watch.foreign == []


def test_history_and_pictures_are_sent_again_and_edited(page: Page, wide: Path):
    asked = answer_with(page, stream({"content": "one"}), stream({"content": "two"}))
    page.set_input_files("#files", [wide, WEB / "examples" / "ring.png"])
    ask(page, "First?", "find")
    page.click("#history")  # the embedded model is asked without by default
    ask(page, "Second?", "boxes")
    roles = [message["role"] for message in asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    kinds = [part["type"] for part in asked[1]["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "grounding"]
    assert asked[1]["messages"][1]["content"] == "one"
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#strip li")).to_have_count(2)
    asked = answer_with(page, stream({"content": "three"}))
    page.locator(".turn").first.locator("[data-act=edit]").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#question")).to_have_value("First?")
    page.fill("#question", "Third?")
    page.press("#question", "Enter")
    expect(page.locator(".text")).to_have_text("three")
    [message] = asked[0]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "grounding"]


def test_the_layouts_and_their_tiles_are_shown(page: Page, wide: Path):
    cut = {"tiles_wide": 2, "tiles_high": 1, "read_width": 768, "read_height": 384, "tokens": 1234}
    one = {**cut, "tiles_wide": 1, "read_width": 384, "tokens": 421}
    told = {"size": [300, 150], "notes": [], "layouts": {"released": cut, "content": one}}
    page.route("**/v1/layout", lambda route: route.fulfill(json=told))
    asked = answer_with(page, stream({"content": "fine"}))
    page.set_input_files("#files", wide)
    expect(page.locator("#facts")).to_contain_text("1,234 tokens")
    page.click("#reading summary")
    rows = page.locator(".layout")
    expect(rows.nth(0)).to_contain_text(re.compile("2 . 1 tiles [+] overview . 1,234 tokens"))
    rows.nth(0).locator("button").click()
    expect(page.locator(".tile")).to_have_count(2)
    picture, left = place_of(page, "#stage image"), place_of(page, ".tile >> nth=0")
    np.testing.assert_allclose(left[:2], picture[:2], atol=1)
    assert left[2] == pytest.approx((picture[0] + picture[2]) / 2, abs=1)
    rows.nth(1).locator("input").check()
    expect(page.locator(".tile")).to_have_count(1)
    ask(page, "What?")
    assert asked[0]["tiling"] == "content"


def test_a_question_can_go_without_the_conversation(page: Page, wide: Path):
    asked = answer_with(page, stream({"content": "one"}))
    page.set_input_files("#files", wide)
    ask(page, "First?")
    expect(page.locator("#history")).to_have_attribute("aria-pressed", "false")
    page.set_input_files("#files", WEB / "examples" / "ring.png")
    ask(page, "Second?")
    page.locator(".thumb").first.click()
    ask(page, "Third?")
    [first], [second], [third] = (one["messages"] for one in asked)
    pictures = [message["content"][0]["image_url"]["url"] for message in (first, second, third)]
    assert pictures[0] == pictures[2] != pictures[1]
    assert {len(message["content"]) for message in (first, second, third)} == {2}
    page.click("#history")
    ask(page, "Fourth?")
    assert [message["role"] for message in asked[3]["messages"]] == ["user", "assistant"] * 3 + [
        "user"
    ]


def test_a_part_of_the_picture_is_asked_about(page: Page, wide: Path):
    page.set_input_files("#files", wide)
    found = box("it", (5, 5, 85, 55), (0, 2))
    asked = answer_with(page, stream({"content": "it", "boxes": [found]}))
    page.wait_for_selector("#stage image")
    frame = place_of(page, "#stage image")
    part = (frame[2] - frame[0]) / 300
    page.mouse.move(frame[0] + RED[0] * part, frame[1] + RED[1] * part)
    page.mouse.down()
    page.mouse.move(frame[0] + 100 * part, frame[1] + 70 * part, steps=3)
    page.mouse.move(frame[0] + RED[2] * part, frame[1] + RED[3] * part, steps=3)
    page.mouse.up()
    page.click("#region .primary")
    ended(page)
    content = asked[0]["messages"][0]["content"]
    assert content[1]["text"] == "What is this?"
    script = """
        async (url) => {
          const image = Object.assign(new Image(), { src: url });
          await image.decode();
          return [image.width, image.height];
        }
    """
    size = page.evaluate(script, content[0]["image_url"]["url"])
    np.testing.assert_allclose(size, [90, 60], atol=2)
    x1, y1, x2, y2 = place_of(page, ".box .edge")  # on the whole picture
    wanted = [RED[0] + 5, RED[1] + 5, RED[0] + 85, RED[1] + 55]
    base = np.array([frame[0], frame[1]] * 2)
    np.testing.assert_allclose((np.array([x1, y1, x2, y2]) - base) / part, wanted, atol=3)


def test_a_part_is_chosen_with_keys(page: Page, wide: Path):
    asked = answer_with(page, stream({"content": "it"}))
    page.set_input_files("#files", wide)
    page.wait_for_selector("#stage image")
    page.focus("#select")
    page.keyboard.press("Enter")
    expect(page.locator(".selection")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#select")).to_be_focused()
    page.keyboard.press("Enter")
    before = page.get_attribute(".selection", "x")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute(".selection", "x") != before
    expect(page.locator("#region .primary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".turn .text")).to_have_text("it")
    expect(page.locator("#question")).to_be_focused()  # the button that was pressed is gone
    page.focus("#select")
    page.keyboard.press("Enter")
    ask(page, "the corner", "find")  # a question of one's own about the part
    parts = [request["messages"][0]["content"] for request in asked]
    assert [len(messages["messages"]) for messages in asked] == [1, 1]
    assert parts[0][1] == {"type": "text", "text": "What is this?"}
    assert parts[1][1] == {"type": "grounding", "query": "the corner"}
    assert parts[0][0] != parts[1][0]


def test_a_cleared_conversation_can_be_had_back(page: Page, wide: Path):
    answer_with(page, stream({"content": "a red one", "boxes": [box("red", RED, (2, 5))]}))
    page.set_input_files("#files", wide)
    ask(page, "What?")
    page.click("#new")
    expect(page.locator(".headline")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)
    page.click(".notice .act")
    expect(page.locator(".phrase")).to_have_text("red")
    expect(page.locator(".box")).to_have_count(1)


def test_pictures_are_pasted_and_get_suggestions(page: Page, wide: Path):
    url = page.evaluate(
        """
        () => {
          const canvas = document.createElement("canvas");
          Object.assign(canvas, { width: 900, height: 1200 });
          const context = canvas.getContext("2d");
          context.fillStyle = "white"; context.fillRect(0, 0, 900, 1200);
          context.fillStyle = "black"; context.font = "28px serif";
          const line = "Words on a page of text ".repeat(3);
          for (let y = 80; y < 1150; y += 40) context.fillText(line, 60, y);
          return canvas.toDataURL();
        }
        """
    )
    page.evaluate(
        """
        url => {
          const bytes = Uint8Array.from(atob(url.split(",")[1]), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "image.png", { type: "image/png" }));
          window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }
        """,
        url,
    )
    expect(page.locator(".idea").first).to_have_text("Summarise this page.")


def test_files_are_dropped(page: Page, wide: Path):
    script = """
        (bytes) => {
          const data = new DataTransfer();
          for (const name of ["one.png", "two.png"]) {
            data.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
          }
          const tell = (kind) => document.body.dispatchEvent(
            new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
          tell("dragenter");
          const over = document.body.classList.contains("over");
          tell("drop");
          return [over, document.body.classList.contains("over")];
        }
    """
    assert page.evaluate(script, list(wide.read_bytes())) == [True, False]
    expect(page.locator("#strip li")).to_have_count(2)


def test_the_export_works_alone(page: Page, watched: Opener, wide: Path, tmp_path: Path):
    answer_with(page, stream({"content": "a red one", "boxes": [box("red", RED, (2, 5))]}))
    page.set_input_files("#files", wide)
    ask(page, "What?")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "out.html"
    download.value.save_as(file)
    text = file.read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    alone, watch = watched(base_url="file://")
    alone.goto(file.as_uri())
    expect(alone.locator(".phrase")).to_have_text("red")
    place = alone.locator(".edge").evaluate("e => [e.x.baseVal.value, e.width.baseVal.value]")
    assert place == [60, 90]
    alone.locator(".phrase").hover()
    width = alone.locator(".edge").evaluate("e => getComputedStyle(e).strokeWidth")
    assert width == "6px"
    assert watch.foreign == []
    assert watch.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_does_not_scroll_sideways(
    watched: Opener, server: Server, wide: Path, scheme: str
):
    page, watch = watched(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(server.url)
    page.wait_for_selector(".example")
    sideways = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(sideways) <= 0
    text = "| " + " | ".join(["column"] * 12) + " |\n" + "|---" * 12 + "|\n\n" + "x" * 300
    answer_with(page, stream({"content": text, "boxes": [box("r" * 40, RED, None)]}))
    page.set_input_files("#files", wide)
    ask(page, "What? " + "y" * 200)
    assert page.evaluate(sideways) <= 0
    expect(page.locator("#question")).to_be_in_viewport()
    expect(page.locator("#stage")).to_be_in_viewport()
    assert watch.foreign == []
    assert watch.errors == []


def test_languages_and_themes_are_chosen_and_kept(page: Page):
    page.click("#language")
    expect(page.locator(".headline")).to_have_text("就图片提问。")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#theme")
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.reload()
    expect(page.locator(".headline")).to_have_text("就图片提问。")
    assert page.get_attribute("html", "data-theme") == "dark"


def test_colours_are_the_system_s_unless_one_is_chosen(page: Page):
    light, dark = "rgb(245, 243, 238)", "rgb(19, 21, 24)"
    body = page.locator("body")
    for system, wanted in (("light", (light, light, dark)), ("dark", (dark, light, dark))):
        page.emulate_media(color_scheme=system)
        for colour in wanted:  # as the system, light, dark
            expect(body).to_have_css("background-color", colour)
            page.click("#theme")


def test_both_languages_have_all_texts(page: Page):
    script = """
        async () => {
          const text = await (await fetch("/web/js/i18n.js")).text();
          const [en, zh] = [...text.matchAll(/const (?:en|zh) = \\{([^]*?)\\n\\};/g)]
            .map(([, body]) => [...body.matchAll(/(\\w+): "((?:[^"\\\\]|\\\\.)*)"/g)]
              .map(([, key, value]) => `${key} ${[...value.matchAll(/\\{\\w+\\}/g)].sort()}`)
              .sort());
          return [en, zh];
        }
    """
    en, zh = page.evaluate(script)
    assert len(en) > 90
    assert en == zh


def test_everything_can_be_reached_and_has_a_name(page: Page, wide: Path):
    answer_with(page, stream({"content": "a red one", "boxes": [box("red", RED, (2, 5))]}))
    page.set_input_files("#files", wide)
    ask(page, "What?")
    nameless = page.evaluate(
        """
        () => [...document.querySelectorAll("button, input, textarea, [role=button], svg[role]")]
          .filter((e) => e.checkVisibility() && !(e.textContent.trim() || e.ariaLabel
            || e.labels?.length || e.getAttribute("aria-labelledby")))
          .map((e) => e.outerHTML)
        """
    )
    assert nameless == []
    expect(page.locator("#say")).to_contain_text("Boxes: 1. a red one")
    reached = set()
    page.evaluate("document.activeElement?.blur()")
    for _ in range(45):
        page.keyboard.press("Tab")
        script = """
            () => {
              const { id, className } = document.activeElement;
              return id || (className.baseVal ?? className);
            }
        """
        reached.add(page.evaluate(script).split(" ")[0])
    assert {"skip", "export", "theme", "box", "phrase", "question", "select", "pick"} <= reached
