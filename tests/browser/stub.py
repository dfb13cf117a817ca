"""What tests of the page share: answers that they write themselves, questions, places."""

from __future__ import annotations

import json
import time
from typing import Any

from playwright.sync_api import Page, Route, expect

ROUTE = "**/v1/chat/completions"
RED = (60, 40, 150, 100)
"""x1, y1, x2, y2 of the red rectangle in the picture `wide`."""


def box(
    label: str, place: tuple[float, float, float, float], span: tuple[int, int] | None
) -> dict[str, Any]:
    names = dict(zip(("x1", "y1", "x2", "y2"), place, strict=True))
    more = {"score": 0.9, "image_index": 0, "page": None, "span": span and list(span)}
    return {"label": label, **names, **more}


def token(text: str, logprob: float, **others: float) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

    return {
        **one(text, logprob),
        "top_logprobs": [one(text, logprob), *(one(*pair) for pair in others.items())],
    }


def stream(*deltas: dict[str, Any], logprobs: list[dict[str, Any]] | None = None) -> str:
    """The body of a stream of these deltas."""
    chunks: list[dict[str, Any]] = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        chunks.append({"choices": [choice]})
    last = {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}
    if logprobs is not None:
        last["logprobs"] = {"content": logprobs}
    chunks.append({"choices": [last]})
    usage = {
        "prompt_tokens": 50,
        "completion_tokens": 9,
        "prompt_tokens_details": {"image_tokens": 41},
        "images": [],
    }
    chunks.append({"choices": [], "usage": usage})
    told = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*told, ": ping\n\n", "data: [DONE]\n\n"])


def answer_with(page: Page, *bodies: str) -> list[dict[str, Any]]:
    """Answer the next questions with these streams, the last one again; what was asked."""
    asked: list[dict[str, Any]] = []
    left = list(bodies)

    def fulfil(route: Route) -> None:
        asked.append(route.request.post_data_json)
        body = left.pop(0) if len(left) > 1 else left[0]
        route.fulfill(body=body, content_type="text/event-stream")

    page.unroute(ROUTE)
    page.route(ROUTE, fulfil)
    return asked


def ask(page: Page, question: str, mode: str = "text") -> None:
    """Ask and wait until the answer has ended."""
    before = page.locator(".turn").count()
    page.check(f'#modes input[value="{mode}"]', force=True)
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.locator(".turn").nth(before).wait_for()
    ended(page)


def ended(page: Page) -> None:
    """Wait until nothing is being answered."""
    page.locator("#send").wait_for()
    expect(page.locator(".turn:last-child .answered")).to_have_attribute("aria-busy", "false")


def until(page: Page, script: str, seconds: float = 20) -> None:
    """Wait for what a script tells; Playwright's own way needs `eval`, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, script
        page.wait_for_timeout(30)


def place_of(page: Page, selector: str) -> list[float]:
    script = (
        "e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] }"
    )
    return page.locator(selector).evaluate(script)
