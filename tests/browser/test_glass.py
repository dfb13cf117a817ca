"""The glass box and the menu of models: a small random model with tiles, experts and an adapter."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect
from tests.browser.stub import ROUTE, answer_with, ask, place_of, stream
from tests.browser.watch import Watch
from tests.e2e.serving import Server, serving
from tests.e2e.small_model import save_adapter, save_small_model

pytestmark = pytest.mark.browser

TOKENS = 8
Opener = Callable[..., tuple[Page, Watch]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model, adapter = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("adapter") / "one"
    save_small_model(model)
    save_adapter(model, adapter, seed=0, targets=("attention", "experts"))
    with serving(str(model), "--name", "test", "--adapter", f"one={adapter}") as running:
        yield running


def shorten(page: Page, **fields: Any) -> list[dict[str, Any]]:
    """Let random answers end after a few tokens; what was asked."""
    asked: list[dict[str, Any]] = []

    def forward(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.continue_(post_data=json.dumps({**asked[-1], "max_tokens": TOKENS, **fields}))

    page.route(ROUTE, forward)
    return asked


def test_the_model_or_an_adapter_of_it_is_chosen(page: Page, wide: Path):
    asked = shorten(page)
    menu = page.locator("#models")
    expect(menu.locator("option")).to_have_text(["test", "test:one"])
    expect(menu).to_have_value("test")
    page.set_input_files("#files", wide)
    ask(page, "What is it?")
    menu.select_option("test:one")
    page.reload()
    expect(menu).to_have_value("test:one")
    ask(page, "What is it?")
    names = [body["model"] for body in asked]
    assert names == ["test", "test:one"]
    for turn, name in zip(page.locator(".turn .figures").all(), names, strict=True):
        expect(turn).to_contain_text(f"{name} ·")
    base, adapted = page.locator(".turn .text").all_inner_texts()
    assert base != adapted


def array(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype=np.uint8).reshape(shape)


def coded(values: np.ndarray) -> str:
    return b64encode(values.astype(np.uint8).tobytes()).decode()


def made_trace(
    spans: list[tuple[int, int]], hot: dict[tuple[int, str], tuple[int, int]]
) -> dict[str, Any]:
    """A trace on two released tiles; of token and view in `hot` one cell (row, column) has all."""
    tokens, side = len(spans), 14
    views = {"overview": np.zeros((tokens, side, side)), "mosaic": np.zeros((tokens, side, 28))}
    for (token, view), cell in hot.items():
        views[view][token][cell] = 255
    told = {name: {"attention": coded(view)} for name, view in views.items()}
    told["overview"]["area"], told["mosaic"]["area"] = [0, 0.25, 1, 0.75], [0, 0, 1, 1]
    edges = [round(min(n * 28, 378) / 384, 5) for n in range(15)]
    grid = {"tiles_wide": 2, "tiles_high": 1, "side": side, "edges": edges}
    return {
        "tokens": [list(span) for span in spans],
        "layers": [],
        "experts": 0,
        "experts_per_token": 0,
        "token_experts": "",
        "scale": [0.5] * tokens,
        "pictures": [{**grid, "tile_experts": "", **told}],
    }


def cell_of(picture: dict[str, Any], view: str, row: int, column: int) -> np.ndarray:
    """x1, y1, x2, y2 of a cell as shares of the picture, which lies in a part of the canvas."""
    wide = picture["tiles_wide"] if view == "mosaic" else 1
    high = picture["tiles_high"] if view == "mosaic" else 1
    side, edges = picture["side"], picture["edges"]

    def stretch(at: int, tiles: int) -> tuple[float, float]:
        tile, own = divmod(at, side)
        return (tile + edges[own]) / tiles, (tile + edges[own + 1]) / tiles

    (x1, x2), (y1, y2) = stretch(column, wide), stretch(row, high)
    left, top, right, low = picture[view]["area"]
    wide_, high_ = right - left, low - top
    return np.array(
        [(x1 - left) / wide_, (y1 - top) / high_, (x2 - left) / wide_, (y2 - top) / high_]
    )


def on_screen(page: Page, shares: np.ndarray) -> np.ndarray:
    """The same in pixels of the screen."""
    left, top, right, low = place_of(page, "#stage image")
    return shares * ([right - left, low - top] * 2) + [left, top] * 2


def cells(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """What the cells over the picture show, and where on the screen they are."""
    script = """
        () => [...document.querySelectorAll(".heat .cell")].map((e) => {
          const { left, top, right, bottom } = e.getBoundingClientRect();
          return [Number(e.style.getPropertyValue("--v")), left, top, right, bottom];
        })
    """
    found = np.array(page.evaluate(script))
    return found[:, 0], found[:, 1:]


def ask_traced(page: Page, server: Server, file: Path) -> dict[str, Any]:
    """Ask with the glass box on; the trace of the same request, asked for here."""
    asked = shorten(page)
    page.set_input_files("#files", file)
    page.click("#trace")
    ask(page, "What is it?")
    body = {**asked[0], "max_tokens": TOKENS, "stream": False}
    del body["stream_options"]
    assert body["trace"] is True
    return server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["trace"]


def test_the_heat_lies_where_the_trace_says(page: Page, server: Server, wide: Path):
    trace = ask_traced(page, server, wide)
    [picture] = trace["pictures"]
    assert (picture["tiles_wide"], picture["tiles_high"]) == (2, 1)
    tokens, side = len(trace["tokens"]), picture["side"]
    page.locator(".token").first.focus()
    for token in range(tokens):
        expect(page.locator(f".token[data-token='{token}']")).to_be_focused()
        for view, columns in (("overview", side), ("mosaic", 2 * side)) if token == 3 else ():
            page.click(f".look[data-view={view}]")
            wanted = array(picture[view]["attention"], tokens, side, columns)[token]
            shown, places = cells(page)
            np.testing.assert_allclose(shown, wanted.ravel() / 255, atol=0.001)
            hottest = int(np.argmax(shown))
            assert wanted.ravel()[hottest] == wanted.max()
            place = cell_of(picture, view, *divmod(hottest, columns))
            np.testing.assert_allclose(places[hottest], on_screen(page, place), atol=0.5)
            share = wanted.sum() / 255 * trace["scale"][token]
            told = page.locator(f".look[data-view={view}] .look-share").inner_text()
            assert float(told.split()[0]) == pytest.approx(100 * share, abs=0.5)
            page.locator(f".token[data-token='{token}']").focus()
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    expect(page.locator(".token").first).to_be_focused()
    page.locator(".token").nth(2).hover()
    expect(page.locator(".token.seen")).to_have_attribute("data-token", "2")
    page.locator(".said").hover()
    expect(page.locator(".token.seen")).to_have_attribute("data-token", "0")


def picture_of(page: Page, file: Path) -> np.ndarray:
    page.locator(".said").hover()
    page.locator("#stage").screenshot(path=file)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_a_hot_cell_is_hot_on_its_pixels(page: Page, wide: Path, tmp_path: Path):
    # The last column of a released tile is half as wide; the overview has padding above.
    places = [("mosaic", (5, 13)), ("overview", (3, 6)), ("overview", (1, 6))]
    hot = {(1 + at, view): cell for at, (view, cell) in enumerate(places)}
    trace = made_trace([(at, at + 1) for at in range(4)], hot)
    answer_with(page, stream({"content": "abcd"}, {"content": "", "trace": trace}))
    page.emulate_media(reduced_motion="reduce")
    page.set_input_files("#files", wide)
    page.click("#trace")
    ask(page, "What?")
    page.locator("#heat-scale").evaluate("e => { e.style.visibility = 'hidden' }")
    for (token, view), cell in hot.items():
        page.click(f".look[data-view={view}]")
        page.locator(".token").first.click()
        cold = picture_of(page, tmp_path / "cold.png")
        page.locator(".token").nth(token).click()
        changed = np.abs(picture_of(page, tmp_path / "hot.png") - cold).max(axis=2) > 20
        ys, xs = np.nonzero(changed)
        left, top, _, _ = place_of(page, "#stage")
        found = [left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1]
        shares = cell_of(trace["pictures"][0], view, *cell)
        np.testing.assert_allclose(found, on_screen(page, shares), atol=1.5)
        assert len(xs) > 0.9 * (found[2] - found[0]) * (found[3] - found[1])
        x, y = shares.reshape(2, 2).mean(axis=0)
        told = f"at {percent(x)} from the left, {percent(y)} from the top."
        told = told if y > 0 else "in the padding"
        expect(page.locator(".said")).to_contain_text(f"Most {told}")
    expect(page.locator(".glass")).to_contain_text("This model has no experts.")


def best(counts: np.ndarray, tokens: int) -> str:
    order = sorted(np.nonzero(counts)[0], key=lambda expert: (-counts[expert], expert))
    return ", ".join(f"{one} ({percent(counts[one] / tokens)})" for one in order[:3])


def percent(share: float) -> str:
    digits = 1 if share < 0.1 else 0
    scaled = int(share * 100 * 10**digits + 0.5) / 10**digits
    return f"{scaled:g}\N{NO-BREAK SPACE}%"


def test_experts_are_those_of_the_trace(page: Page, server: Server, wide: Path):
    trace = ask_traced(page, server, wide)
    [picture], layers, experts = trace["pictures"], len(trace["layers"]), trace["experts"]
    tokens, per_token = len(trace["tokens"]), trace["experts_per_token"]
    used = array(trace["token_experts"], tokens, layers, per_token)
    of_tiles = array(picture["tile_experts"], 3, layers, experts).astype(int)
    answer = np.stack([np.bincount(used[:, n].ravel(), minlength=experts) for n in range(layers)])
    side = picture["side"]
    for tile, counts in (("", of_tiles.sum(axis=0)), ("0", of_tiles[0]), ("2", of_tiles[2])):
        page.click(f".tile-choice[data-tile='{tile}']")
        of_all = 3 * side**2 if tile == "" else side**2
        rows = page.locator(".as-table tbody tr").all()
        for layer, row in enumerate(rows):
            token = int(page.get_attribute(".token.seen", "data-token") or "")
            wanted = [
                str(trace["layers"][layer]),
                best(counts[layer], of_all),
                best(answer[layer], tokens),
                ", ".join(map(str, used[token, layer])),
            ]
            assert row.locator("th, td").all_text_contents() == wanted
        drawn = page.locator("[data-use=pictureTokens] .cell")
        places = drawn.evaluate_all("all => all.map(e => Number(e.dataset.at))")
        assert places == np.nonzero(counts.ravel())[0].tolist()
    expect(page.locator(".heat-tile.chosen")).to_have_attribute("data-tile", "2")
    hottest = int(np.argmax(of_tiles[2].ravel()))
    page.locator(f"[data-use=pictureTokens] .cell[data-at='{hottest}']").hover()
    count = int(of_tiles[2].ravel()[hottest])
    told = f"Layer {trace['layers'][hottest // experts]}, expert {hottest % experts}"
    expect(page.locator(".readout")).to_contain_text(told)
    expect(page.locator(".readout")).to_contain_text(f"picture tokens ({count})")
    page.keyboard.press("Tab")
    page.locator("[data-use=pictureTokens] .matrix").press("ArrowRight")
    expect(page.locator("#say")).to_contain_text("Layer")


def test_without_a_trace_everything_is_as_it_was(page: Page, wide: Path):
    asked = answer_with(page, stream({"content": "a red one"}))
    page.set_input_files("#files", wide)
    ask(page, "What?")
    assert "trace" not in asked[0]
    page.click("#trace")
    ask(page, "And?")  # answered without one
    assert asked[1]["trace"] is True
    assert page.locator("[data-act=glass]:visible").count() == 0
    assert page.locator(".glass:visible, .heat .cell").count() == 0
    page.reload()
    expect(page.locator("#trace")).to_have_attribute("aria-pressed", "true")
    page.click("#trace")
    ask(page, "Off?")
    assert "trace" not in asked[2]


def test_the_box_opens_and_closes_with_its_answer(page: Page, wide: Path):
    trace = made_trace([(0, 4), (4, 8)], {(1, "mosaic"): (5, 13)})
    answer_with(page, stream({"content": "cold hot"}, {"content": "", "trace": trace}))
    page.set_input_files("#files", wide)
    page.click("#trace")
    ask(page, "What?")
    expect(page.locator(".heat .cell")).to_have_count(392)
    expect(page.locator(".token.seen")).to_have_text("hot")  # it looked at the picture most
    page.reload()
    expect(page.locator(".heat .cell")).to_have_count(0)
    toggle = page.locator("[data-act=glass]")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(page.locator(".heat .cell")).to_have_count(392)
    page.set_viewport_size({"width": 390, "height": 844})
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.click("#language")
    toggle.click()
    expect(page.locator(".heat .cell")).to_have_count(0)
    toggle.click()
    page.click("[data-act=edit]")
    expect(page.locator(".heat .cell")).to_have_count(0)
    bare = {**trace, "pictures": []}
    answer_with(page, stream({"content": "cold hot"}, {"content": "", "trace": bare}))
    ask(page, "What?")
    expect(page.locator(".token")).to_have_count(2)
    assert page.locator(".heat .cell, .look").count() == 0


def test_the_heat_of_a_part_lies_on_the_whole_picture(page: Page, wide: Path):
    trace = made_trace([(0, 2)], {(0, "mosaic"): (5, 13)})
    answer_with(page, stream({"content": "it"}, {"content": "", "trace": trace}))
    page.set_input_files("#files", wide)
    page.wait_for_selector("#stage image")
    page.click("#trace")
    page.focus("#select")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator(".heat .cell")).to_have_count(392)
    left, top, right, low = place_of(page, ".part")
    hottest = cells(page)[1][5 * 28 + 13]
    x1, y1, x2, y2 = cell_of(trace["pictures"][0], "mosaic", 5, 13)
    wide_, high_ = right - left, low - top
    wanted = [left + x1 * wide_, top + y1 * high_, left + x2 * wide_, top + y2 * high_]
    np.testing.assert_allclose(hottest, wanted, atol=1.5)


def test_of_several_pictures_each_has_its_own_heat(page: Page, wide: Path, tmp_path: Path):
    file = tmp_path / "other.png"
    Image.new("RGB", (300, 150), "white").save(file)
    spans = [(0, 4), (4, 8)]
    trace = made_trace(spans, {(1, "mosaic"): (5, 13)})
    trace["pictures"] += made_trace(spans, {(1, "overview"): (7, 7)})["pictures"]
    answer_with(page, stream({"content": "cold hot"}, {"content": "", "trace": trace}))
    page.set_input_files("#files", [wide, file])
    page.click("#trace")
    ask(page, "What?")
    expect(page.locator(".heat .cell")).to_have_count(392)
    page.click(".look[data-picture='1'][data-view=overview]")
    expect(page.locator("#facts")).to_contain_text("other.png")
    assert np.flatnonzero(cells(page)[0]).tolist() == [7 * 14 + 7]
    page.locator(".thumb").first.click()  # the box goes with the picture
    pressed = page.locator(".look[aria-pressed=true]")
    expect(pressed).to_have_attribute("data-picture", "0")
    assert not cells(page)[0].any()
    page.click(".look[data-picture='0'][data-view=mosaic]")
    assert np.flatnonzero(cells(page)[0]).tolist() == [5 * 28 + 13]


def test_a_conversation_outlives_traces_that_do_not_fit(page: Page, wide: Path):
    text = "a" * 300
    trace = made_trace([(at, at + 1) for at in range(300)], {})
    answer_with(page, stream({"content": text}, {"content": "", "trace": trace}))
    page.evaluate("sessionStorage.setItem('full', 'x'.repeat(5 * 2 ** 20 - 150_000))")
    page.set_input_files("#files", wide)
    page.click("#trace")
    ask(page, "What?")
    expect(page.locator(".token")).to_have_count(300)
    page.reload()
    expect(page.locator(".turn .text")).to_have_text(text)
    expect(page.locator("[data-act=glass]")).to_be_hidden()
