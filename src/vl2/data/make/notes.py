"""Handwritten notes on paper: shopping and to-do lists, letters, postcards, messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, log_between, phrase, pick, some
from vl2.data.make.fonts import load
from vl2.data.make.naming import capitalised
from vl2.data.make.notes_asks import Item, Note, note_asks
from vl2.data.make.paper import finish, ground, luminance
from vl2.data.make.pen import Pen
from vl2.data.make.sample import Made
from vl2.data.make.sheet import Colour, Sheet, Style, wrap
from vl2.data.make.texts import clock, date, phone
from vl2.data.make.warp import lay, seen
from vl2.data.make.world import World
from vl2.geometry import PixelBox

FORMS = {
    "train": ("shopping", "shopping", "todo", "todo", "letter", "reminder"),
    "heldout": ("packing", "chores", "chores", "postcard", "message"),
}
PAPERS = {
    "train": ("ruled", "ruled", "squared", "plain", "yellow"),
    "heldout": ("dotted", "legal", "cream"),
}
TITLES = {
    "shopping": ("Shopping list", "Shopping", "To buy", "Groceries", "Buy"),
    "todo": ("To do", "TODO", "Today", "Tasks", "This week"),
    "packing": ("Packing list", "To pack", "For the trip", "Take along"),
    "chores": ("Chores", "Jobs", "Don't forget", "Tomorrow", "Weekend"),
}
JOBS = {
    "train": (
        *("Call {name}", "Buy {thing}", "Pay the rent", "Clean the kitchen", "Mail to {name}"),
        *("Book a flight", "Water the plants", "Meet {name} at {time}", "Return books", "Gym"),
        *("Fix the bike", "Order {thing}", "Dentist {time}", "Send the invoice", "Walk the dog"),
    ),
    "heldout": (
        *("Ring {name}", "Get {thing}", "Wash the car", "Visit {name}", "Iron shirts", "Bank"),
        *("Mow the lawn", "Post the letter", "Pick up {name} {time}", "Feed the cat", "Hoover"),
        *(
            "Take out the bins",
            "Sort {thing}",
            "Doctor at {time}",
            "Paint the fence",
            "Bake a cake",
        ),
    ),
}
WISHES = {
    "train": ("Best wishes,", "Yours,", "Love,", "See you soon,", "Kind regards,"),
    "heldout": ("Cheers,", "All the best,", "Take care,", "Hugs,", "Sincerely,"),
}
MARKERS = ("- ", "* ", "{n}. ", "{n}) ", "", "[box]", "[box]")
AMOUNTS = ("", "", "", "2 ", "3 ", "6 ", "1 kg ", "500 g ", "2x ")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteLine:
    """A line of a note before it is set."""

    text: str
    item: int = -1  # which item of a list it is
    indent: float = 0.0  # font sizes
    box: bool = False  # with a square to tick before it


def make(rng: np.random.Generator, world: World) -> Made:
    """A note of one to a dozen lines that fills the picture or lies on something."""
    face = world.face(rng, hand=True)
    style = Style(face=face, size=round(log_between(rng, 20, 48)))
    note, rows = _written(rng, world, style)
    paper = Sheet(Image.new("RGB", (1, 1)))
    paper.image, left, step = _paper(rng, world, rows, style)
    paper = Sheet(paper.image)
    style = replace(style, colour=_ink(rng, paper.image))
    note = _set(rng, paper, note, rows, style, (left, step))
    sheet = paper if chance(rng, 0.55) else _lying(rng, world, paper)
    image, marks = finish(rng, sheet, strength=0.8)
    lines = [mark for mark in marks if mark.kind == "line"]
    facts = {
        "form": note.form,
        "title": note.title,
        "items": [item.text for item in note.items],
        "done": [item.done for item in note.items],
        "to": note.to,
        "by": note.by,
    }
    asks = tuple(note_asks(rng, world, note, lines))
    return Made(image=image, marks=marks, asks=asks, facts=facts)


def _written(rng: np.random.Generator, world: World, style: Style) -> tuple[Note, list[NoteLine]]:
    """What the note says, as rows."""
    form = pick(rng, world.style(FORMS))
    if form in TITLES:
        return _list(rng, world, style, form)
    to, by = some(rng, world.texts.first_names, 2)
    body = wrap(world.texts.paragraph(rng, 6, 34), style, style.size * between(rng, 9, 15))
    if form in ("letter", "postcard"):
        day = date(rng) if chance(rng, 0.6) else ""
        greeting = pick(rng, ("Dear {to},", "Hi {to},", "Hello {to},")).format(to=to)
        texts = [greeting, *body, pick(rng, world.style(WISHES)), by]
        rows = [NoteLine(text=day)] * bool(day) + [NoteLine(text=text) for text in texts]
        return Note(form=form, to=style.shown(to), by=style.shown(by), date=day), rows
    if form == "message":
        number = phone(rng)
        texts = [f"For: {to}", f"From: {by}", f"Tel: {number}", *body[:4]]
        rows = [NoteLine(text=text) for text in texts]
        note = Note(form=form, to=style.shown(to), by=style.shown(by), phone=number)
        return note, rows
    return Note(form=form), [NoteLine(text=text) for text in body[:4]]


def _list(
    rng: np.random.Generator, world: World, style: Style, form: str
) -> tuple[Note, list[NoteLine]]:
    """A title in most cases, and two to nine items."""
    count, marker = integer(rng, 2, 9), pick(rng, MARKERS)
    title = pick(rng, TITLES[form]) if chance(rng, 0.8) else ""
    if form in ("shopping", "packing"):
        source = world.texts.goods if chance(rng, 0.7) else world.texts.nouns
        amount = chance(rng, 0.4) and form == "shopping"
        names = [f"{pick(rng, AMOUNTS) if amount else ''}{n}" for n in some(rng, source, count)]
    else:
        names = [
            phrase(
                rng,
                job,
                name=pick(rng, world.texts.first_names),
                thing=pick(rng, world.texts.nouns),
                time=clock(rng),
            )
            for job in some(rng, world.style(JOBS), count)
        ]
    big = chance(rng, 0.3)
    names = [style.shown(capitalised(name) if big else name)[:30].strip() for name in names]
    ticked = marker == "[box]" or chance(rng, 0.15)
    items = [Item(text=name, done=chance(rng, 0.4) if ticked else None) for name in names]
    rows = [NoteLine(text=title)] * bool(title)
    indent = between(rng, 0, 0.8) if title else 0.0
    for n, item in enumerate(items, 1):
        lead = "" if marker == "[box]" else marker.format(n=n)
        box = marker == "[box]"
        rows.append(
            NoteLine(text=f"{lead}{item.text}", item=n - 1, indent=indent + 1.2 * box, box=box)
        )
    note = Note(form=form, title=style.shown(title), items=tuple(items), boxes=marker == "[box]")
    return note, rows


def _paper(
    rng: np.random.Generator, world: World, rows: Sequence[NoteLine], style: Style
) -> tuple[Image.Image, int, int]:
    """Paper for the rows, where its text begins, and the distance of its lines."""
    kind, step = pick(rng, world.style(PAPERS)), round(style.leading * between(rng, 1.0, 1.3))
    left = round(style.size * between(rng, 0.8, 2.0))
    widths = [style.width(style.shown(row.text)) + row.indent * style.size for row in rows]
    width = round(left + max(widths) + style.size * between(rng, 1, 4))
    height = step * (len(rows) + integer(rng, 1, 3)) + step // 2
    tint = (integer(rng, 244, 255), integer(rng, 244, 255), integer(rng, 240, 255))
    colours: dict[str, Colour] = {
        "yellow": (integer(rng, 245, 255), integer(rng, 225, 245), integer(rng, 120, 170)),
        "legal": (255, integer(rng, 240, 250), integer(rng, 170, 200)),
        "cream": (integer(rng, 235, 250), integer(rng, 222, 238), integer(rng, 195, 215)),
    }
    sheet = Sheet(Image.new("RGB", (width, height), colours.get(kind, tint)))
    faint = (integer(rng, 160, 200), integer(rng, 185, 215), integer(rng, 215, 240))
    if kind in ("ruled", "legal", "squared"):
        for y in range(step + step // 2, height, step if kind != "squared" else step // 2):
            sheet.draw.line((0, y, width, y), fill=faint)
    if kind == "squared":
        for x in range(step // 4, width, step // 2):
            sheet.draw.line((x, 0, x, height), fill=faint)
    if kind == "dotted":
        for y in range(step // 2, height, step // 2):
            for x in range(step // 4, width, step // 2):
                sheet.draw.point((x, y), fill=(150, 150, 160))
    if kind == "legal" or (kind == "ruled" and chance(rng, 0.5)):
        x = round(left - 0.5 * style.size)
        sheet.draw.line((x, 0, x, height), fill=(225, 120, 120))
    return sheet.image, left, step


def _ink(rng: np.random.Generator, paper: Image.Image) -> Colour:
    """A pen: blue, black, a pencil, now and then red or green."""
    pens: tuple[Colour, ...] = (
        *((20, 40, 140), (15, 30, 100), (20, 20, 25), (40, 40, 45), (95, 95, 100)),
        *((170, 20, 30), (10, 95, 50), (90, 30, 120)),
    )
    assert luminance(paper.getpixel((2, 2))) > 0.6  # pyright: ignore[reportArgumentType]
    return pick(rng, pens[:5] if chance(rng, 0.8) else pens)


def _set(
    rng: np.random.Generator,
    sheet: Sheet,
    note: Note,
    rows: Sequence[NoteLine],
    style: Style,
    place: tuple[int, int],
) -> Note:
    """Write the rows on the lines of the paper, not quite evenly; tick and strike what is done."""
    left, step = place
    up = load(style.face, style.size).getmetrics()[0]
    lean, shake = between(rng, -0.01, 0.01), 0.06 * style.size
    pen = Pen(rng, sheet, width=max(1, style.size // 16), wobble=style.size / 14)
    for n, row in enumerate(rows):
        base = (n + 1) * step + step // 2 + between(rng, -shake, shake) + lean * n * step
        x = left + row.indent * style.size + between(rng, -shake, shake)
        box = sheet.text(x, base - up, row.text, style)
        if row.item < 0:
            continue
        done = bool(note.items[row.item].done)
        if row.box:
            side = 0.75 * style.size
            square = (x - 1.15 * style.size, base - side, x - 1.15 * style.size + side, base)
            _square(pen, square, done)
        elif done:
            y = (box[1] + box[3]) / 2
            pen.line([(box[0] - 4, y), (box[2] + 4, y + between(rng, -3, 3))])
    pen.lift(style.colour)
    return note


def _square(pen: Pen, square: tuple[float, float, float, float], ticked: bool) -> None:
    x1, y1, x2, y2 = square
    pen.closed([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    if ticked:
        middle = (x1 + 0.4 * (x2 - x1), y2 - 0.15 * (y2 - y1))
        pen.line([(x1 + 0.15 * (x2 - x1), y1 + 0.5 * (y2 - y1)), middle, (x2 + 3, y1 - 3)])


def _lying(rng: np.random.Generator, world: World, paper: Sheet) -> Sheet:
    """The paper on a ground, turned and seen from the side a little."""
    to, around = seen(rng, paper.size, 4, 0.04)
    margin = integer(rng, 10, 90)
    sheet = Sheet(ground(rng, world, (around[0] + 2 * margin, around[1] + 2 * margin)))
    box: PixelBox = lay(sheet, paper, Image.new("L", paper.size, 255), (margin, margin), to)
    sheet.mark("note", box)
    return sheet
