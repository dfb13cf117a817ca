"""Whole pages: titles, headings, one or two columns of text, lists, page numbers, small print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vl2.data.make.blocks import ALIGNMENTS, set_block
from vl2.data.make.chance import chance, integer, phrase, pick, some
from vl2.data.make.paper import finish, ink, light_colour
from vl2.data.make.reading import LINE_NAME, LINES, line_asks, locate
from vl2.data.make.sample import Ask, Made, Mark, Spot, ask
from vl2.data.make.sheet import Sheet, Style, wrap
from vl2.data.make.texts import date
from vl2.data.make.world import World

LAYOUTS = {
    "train": ("article", "letter", "columns", "notice"),
    "heldout": ("chapter", "leaflet"),
}
TITLE = ("What is the title[ of the page|]?", "What is the heading?", "[Give|Tell me] the title.")
BLOCKS = ("Where are the [blocks|paragraphs] of text?", "Locate [each|every] paragraph.")
FIRST = ("What is the first line[ of the text|]?", "How does the page begin?")
LAST = ("What is the last line?", "How does the page end?")
COUNT = ("How many [paragraphs|blocks of text] are there?",)


@dataclass(slots=True)
class _Page:
    """The column that is being filled."""

    sheet: Sheet
    body: Style
    heading: Style
    left: int
    top: int
    width: int
    bottom: int


def make(rng: np.random.Generator, world: World) -> Made:
    """A page of 450 to 1000 pixels with 8 to 40 lines of 10 to 22 pixels."""
    width = integer(rng, 450, 960)
    height = round(width * pick(rng, (1.0, 1.29, 1.41, 0.75)))
    sheet = Sheet(Image.new("RGB", (width, height), light_colour(rng)))
    colour = ink(rng, (250, 250, 250), plain=True)
    face, other = world.plain_face(rng), world.plain_face(rng)
    size = integer(rng, 12, 22)
    margin = integer(rng, width // 24, width // 9)
    page = _Page(
        sheet=sheet,
        body=Style(face=face, size=size, colour=colour),
        heading=Style(
            face=pick(rng, (face, other)),
            size=round(size * pick(rng, (1.2, 1.5, 1.9))),
            colour=colour if chance(rng, 0.6) else ink(rng, (250, 250, 250)),
        ),
        left=margin,
        top=margin,
        width=width - 2 * margin,
        bottom=height - margin,
    )
    title = _FILL[pick(rng, world.style(LAYOUTS))](rng, world, page)
    image, marks = finish(rng, sheet, strength=0.7)
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, marks, title)))


def _title(rng: np.random.Generator, world: World, page: _Page, words: int = 6) -> str:
    """A heading of one line; the page goes on below it."""
    text = world.texts.phrase(rng, 1, words).strip(".,;:").capitalize()
    style = page.heading
    while style.width(text) > page.width and " " in text:
        text = text.rsplit(" ", 1)[0]
    page.sheet.text(page.left, page.top, text, style)
    page.top += round(style.leading * 1.3)
    return style.shown(text)


def _paragraph(
    rng: np.random.Generator, world: World, page: _Page, alignment: str = "left"
) -> bool:
    """A paragraph below what stands there; False when the column is full."""
    step = page.body.leading
    room = (page.bottom - page.top) // step
    if room < 2:
        return False
    lines = wrap(world.texts.paragraph(rng, 12, 60), page.body, page.width)[:room]
    set_block(
        page.sheet,
        (page.left, page.top),
        lines,
        page.body,
        width=page.width,
        step=step,
        alignment=alignment,
    )
    page.top += step * len(lines) + round(step * 0.6)
    return True


def _article(rng: np.random.Generator, world: World, page: _Page) -> str:
    title = _title(rng, world, page)
    alignment = pick(rng, ALIGNMENTS)
    for _ in range(integer(rng, 2, 6)):
        if chance(rng, 0.2) and page.bottom - page.top > 6 * page.body.leading:
            _title(rng, world, replace_heading(page), 4)
        if not _paragraph(rng, world, page, alignment):
            break
    _footer(rng, page)
    return title


def replace_heading(page: _Page) -> _Page:
    """The same column with the smaller headings of sections."""
    page.heading = replace(page.heading, size=max(page.body.size, round(page.heading.size * 0.9)))
    return page


def _letter(rng: np.random.Generator, world: World, page: _Page) -> str:
    texts, style = world.texts, page.body
    step = style.leading
    for line in (texts.person(rng), texts.street(rng), texts.city(rng)):
        page.sheet.text(page.left, page.top, line, style)
        page.top += step
    when = date(rng)
    page.sheet.text(page.left + page.width - style.width(when), page.top, when, style)
    page.top += 2 * step
    title = _title(rng, world, page)
    page.sheet.text(page.left, page.top, f"Dear {texts.person(rng)},", style)
    page.top += round(1.5 * step)
    while page.bottom - page.top > 7 * step and _paragraph(rng, world, page):
        if chance(rng, 0.35):
            break
    for line in ("Kind regards,", texts.person(rng)):
        page.sheet.text(page.left, page.top, line, style)
        page.top += step
    return title


def _columns(rng: np.random.Generator, world: World, page: _Page) -> str:
    """Two columns below one title; the left one is read first."""
    page.body = replace(page.body, size=max(11, page.body.size - 4))
    title = _title(rng, world, page)
    top, gap, whole = page.top, page.body.size * 2, page.width
    page.width = (whole - gap) // 2
    for left in (page.left, page.left + page.width + gap):
        page.left, page.top = left, top
        while _paragraph(rng, world, page):
            pass
    return title


def _notice(rng: np.random.Generator, world: World, page: _Page) -> str:
    page.heading = replace(page.heading, size=round(page.heading.size * 1.4))
    page.body = replace(page.body, size=page.body.size + 4)
    title = _title(rng, world, page, 3)
    for _ in range(integer(rng, 1, 3)):
        _paragraph(rng, world, page, "centre")
    return title


def _chapter(rng: np.random.Generator, world: World, page: _Page) -> str:
    page.sheet.text(page.left, page.top, f"Chapter {integer(rng, 1, 30)}", page.body)
    page.top += 2 * page.body.leading
    title = _title(rng, world, page)
    while _paragraph(rng, world, page, "justified"):
        if chance(rng, 0.25):
            break
    _footer(rng, page)
    return title


def _leaflet(rng: np.random.Generator, world: World, page: _Page) -> str:
    title = _title(rng, world, page, 4)
    for _ in range(integer(rng, 1, 4)):
        if page.bottom - page.top < 5 * page.body.leading:
            break
        _title(rng, world, replace_heading(page), 3)
        _paragraph(rng, world, page)
    return title


def _footer(rng: np.random.Generator, page: _Page) -> None:
    """A page number below the column, if there is room."""
    if chance(rng, 0.5) and page.top < page.bottom:
        text = pick(rng, (str(integer(rng, 1, 400)), f"Page {integer(rng, 1, 40)}"))
        middle = page.left + (page.width - page.body.width(text)) // 2
        page.sheet.text(
            middle, page.bottom, text, replace(page.body, size=max(10, page.body.size - 2))
        )


_FILL: dict[str, Callable[[np.random.Generator, World, _Page], str]] = {
    "article": _article,
    "letter": _letter,
    "columns": _columns,
    "notice": _notice,
    "chapter": _chapter,
    "leaflet": _leaflet,
}


def _asks(rng: np.random.Generator, marks: tuple[Mark, ...], title: str) -> list[Ask]:
    """Lines with places, title, blocks and how the page begins and ends."""
    lines = [mark for mark in marks if mark.kind == "line"]
    blocks = [mark for mark in marks if mark.kind == "block"]
    asks = [ask("page.title", phrase(rng, pick(rng, TITLE)), title)]
    spot = Spot(label=LINE_NAME, boxes=tuple(line.box for line in lines))
    asks.append(ask("page.lines", phrase(rng, pick(rng, LINES)), (spot,)))
    asks += line_asks(rng, lines, "page")
    if blocks:
        places = Spot(label="paragraph", boxes=tuple(block.box for block in blocks))
        asks.append(ask("page.blocks", phrase(rng, pick(rng, BLOCKS)), (places,)))
        asks.append(ask("page.count", phrase(rng, pick(rng, COUNT)), str(len(blocks))))
    asks.append(ask("page.first", phrase(rng, pick(rng, FIRST)), lines[0].text))
    asks.append(ask("page.last", phrase(rng, pick(rng, LAST)), lines[-1].text))
    words = [mark for mark in marks if mark.kind == "word" and len(mark.text) > 3]
    if words:
        name = pick(rng, words).text
        boxes = tuple(word.box for word in words if word.text == name)
        asks.append(locate(rng, "page", name, boxes))
    return some(rng, asks, 6)
