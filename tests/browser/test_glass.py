"""The glass box and the menu of models: a small random model with tiles, experts and an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from tests.browser.stub import ROUTE, ask
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
