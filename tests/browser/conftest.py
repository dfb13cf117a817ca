"""A real Chromium in front of a real server with the embedded model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.browser.stub import RED
from tests.browser.watch import Watch
from tests.e2e.serving import Server, serving

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ASKED = 15_000
"""Milliseconds that the page may take for anything, on a busy machine."""

expect.set_options(timeout=ASKED)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving("nano") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that the variable CHROMIUM names; none is a failure.

    It ends with the module: playwright keeps an event loop running in this thread meanwhile, in
    which tests of other modules could not start their own.
    """
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(
            "no Chromium is found: install it (apt-get install chromium), set CHROMIUM to its "
            'path, or leave these tests out with -m "not browser"',
            pytrace=False,
        )
    with sync_playwright() as play:
        # Without a sandbox, since tests in containers run as root; /dev/shm is small there.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        found = play.chromium.launch(executable_path=path, args=flags)
        yield found
        found.close()


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Callable[..., tuple[Page, Watch]]]:
    """Opens pages whose requests, errors and dialogs are written down."""
    contexts: list[BrowserContext] = []

    def open_page(**more: object) -> tuple[Page, Watch]:
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **more}
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(ASKED)
        page = context.new_page()
        watch = Watch.of(page, str(more.get("base_url", server.url)))
        return page, watch

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(watched: Callable[..., tuple[Page, Watch]], server: Server) -> Iterator[Page]:
    """The page, ready for a question; it must end without a foreign request or an error."""
    opened, watch = watched()
    opened.goto(server.url)
    opened.wait_for_selector(".model.ready")
    opened.wait_for_selector(".example")
    yield opened
    assert watch.foreign == []
    assert watch.errors == []
    assert watch.dialogs == []


@pytest.fixture
def png_file(tmp_path: Path) -> Callable[..., Path]:
    """Saves a picture and says where."""

    def save(image: Image.Image, name: str = "made.png") -> Path:
        file = tmp_path / name
        image.save(file)
        return file

    return save


@pytest.fixture
def wide(png_file: Callable[..., Path]) -> Path:
    """300 x 150 pixels of blue with a red rectangle of known place."""
    image = Image.new("RGB", (300, 150), (20, 30, 200))
    ImageDraw.Draw(image).rectangle((RED[0], RED[1], RED[2] - 1, RED[3] - 1), fill=(255, 0, 0))
    return png_file(image)
