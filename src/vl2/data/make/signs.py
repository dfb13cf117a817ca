"""Signs, labels, posters, buttons, stickers, book covers, name and price tags before a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.make.chance import between, chance, integer, pick, pick_weighted
from vl2.data.make.fonts import Face
from vl2.data.make.naming import COLOURS
from vl2.data.make.paper import MIN_CONTRAST, any_colour, finish, ground, luminance
from vl2.data.make.sample import Made
from vl2.data.make.shapes import WAYS, draw_shape, named_colour
from vl2.data.make.sheet import Colour, Sheet, Style
from vl2.data.make.signs_asks import Sign, sign_asks
from vl2.data.make.texts import price
from vl2.data.make.warp import lay, seen
from vl2.data.make.words import short_text
from vl2.data.make.world import World
from vl2.geometry import PixelBox

FORMS = {
    "train": ("board", "board", "stop", "poster", "button", "sticker", "tag", "name", "book"),
    "heldout": ("plate", "plate", "pill", "placard", "burst", "ticket", "badge", "cover"),
}
SAYINGS = {
    "train": (
        *("STOP", "EXIT", "Open", "Closed", "No parking", "Push", "Sale", "Fire exit", "Toilets"),
        *("Reception", "Platform 3", "Wet floor", "Please knock", "Room 12", "Info", "Taxi", "Bus"),
        *("No smoking", "Mind the step", "Free coffee", "Today only", "For rent", "Lost cat"),
    ),
    "heldout": (
        *("Entrance", "Danger", "One way", "Private", "Tickets", "Staff only", "Gate B4", "Pull"),
        *("Sold out", "Keep out", "Way out", "Please wait here", "Parking", "Quiet please"),
        *("New", "50% off", "Hot drinks", "Beware of the dog", "Garage sale", "Lift"),
    ),
}
SYMBOLS = ("star", "heart", "circle", "cross", "diamond", "triangle", "square", "ring")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a sort of sign looks like and is called."""

    noun: str
    outline: str
    ratio: tuple[float, float]  # width by height
    texts: str  # what stands on it


_FORMS = {
    "board": Form(noun="sign", outline="rounded", ratio=(1.2, 3.2), texts="saying"),
    "stop": Form(noun="sign", outline="octagon", ratio=(1, 1), texts="short"),
    "poster": Form(noun="poster", outline="rounded", ratio=(0.6, 0.85), texts="notice"),
    "button": Form(noun="button", outline="rounded", ratio=(1.8, 4), texts="short"),
    "sticker": Form(noun="sticker", outline="ellipse", ratio=(1, 1.6), texts="short"),
    "tag": Form(noun="price tag", outline="tag", ratio=(1.4, 2), texts="price"),
    "name": Form(noun="name tag", outline="rounded", ratio=(1.3, 1.9), texts="name"),
    "book": Form(noun="book", outline="rounded", ratio=(0.62, 0.8), texts="book"),
    "plate": Form(noun="sign", outline="cut", ratio=(1.1, 3), texts="saying"),
    "pill": Form(noun="button", outline="pill", ratio=(2, 4.5), texts="short"),
    "placard": Form(noun="poster", outline="cut", ratio=(0.65, 0.95), texts="notice"),
    "burst": Form(noun="sticker", outline="burst", ratio=(1, 1), texts="short"),
    "ticket": Form(noun="price tag", outline="ticket", ratio=(1.5, 2.2), texts="price"),
    "badge": Form(noun="name tag", outline="pill", ratio=(1.8, 2.4), texts="name"),
    "cover": Form(noun="book", outline="cut", ratio=(0.7, 0.9), texts="book"),
}
INNER = {"octagon": 0.72, "ellipse": 0.66, "burst": 0.6, "pill": 0.78, "tag": 0.74, "ticket": 0.8}
"""The part of an outline's width and height that text may fill."""


@dataclass(slots=True)
class Panel:
    """A sign in the making."""

    sheet: Sheet
    mask: Image.Image
    ink: Colour
    sign: Sign
    inner: PixelBox = field(default=(0, 0, 0, 0))


def make(rng: np.random.Generator, world: World) -> Made:
    """One to six signs in rows on a scene, turned and seen from the side a little."""
    rows, columns = pick(rng, ((1, 1), (1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3)))
    names = world.style(FORMS)
    only = pick(rng, names) if chance(rng, 0.6) else None
    size = (
        integer(rng, 220 * columns, 420 + 260 * columns),
        integer(rng, 200 * rows, 360 + 200 * rows),
    )
    sheet = Sheet(scene(rng, world, size))
    signs = []
    for row in range(rows):
        for column in range(columns):
            cell = (size[0] * column // columns, size[1] * row // rows)
            room = (size[0] // columns, size[1] // rows)
            name = only or pick(rng, names)
            if min(room) >= 100 and (len(signs) == 0 or chance(rng, 0.85)):
                signs.append(_put(rng, world, sheet, _FORMS[name], (*cell, *room)))
    image, marks = finish(rng, sheet, strength=0.7)
    found = [replace(sign, box=marks[sign.at].box) for sign in signs]
    facts = {
        "signs": [{"noun": s.noun, "colour": s.colour, "text": list(s.lines)} for s in found],
    }
    asks = tuple(sign_asks(rng, world, found, marks, columns))
    return Made(image=image, marks=marks, asks=asks, facts=facts)


def scene(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Image.Image:
    """A wall; sometimes with another colour from a horizon down, or a post."""
    image = ground(rng, world, size)
    draw = ImageDraw.Draw(image)
    if chance(rng, 0.3):
        low = round(size[1] * between(rng, 0.6, 0.85))
        draw.rectangle((0, low, *size), fill=any_colour(rng))
    if chance(rng, 0.2):
        x, thick = size[0] // 2, max(4, size[0] // integer(rng, 25, 60))
        draw.rectangle((x - thick, size[1] // 2, x + thick, size[1]), fill=any_colour(rng))
    return image


def _put(
    rng: np.random.Generator, world: World, sheet: Sheet, form: Form, cell: tuple[int, ...]
) -> Sign:
    """Draw one sign somewhere in its cell."""
    left, top, width, height = cell
    share, ratio = between(rng, 0.55, 0.88), between(rng, *form.ratio)
    wide = min(width * share, height * share * ratio)
    size = (max(80, round(wide)), max(40, round(wide / ratio)))
    behind = (left + width // 4, top + height // 4, left + width * 3 // 4, top + height * 3 // 4)
    panel = _panel(rng, world, form, size, named_colour(rng, sheet.image, behind))
    _TEXTS[form.texts](rng, world, panel)
    flat = chance(rng, 0.45)
    to, around = seen(rng, size, *((0, 0) if flat else (7, 0.09)))
    free = (max(0, width - around[0]), max(0, height - around[1]))
    drop = between(rng, 0.35, 0.65) if width < sheet.size[0] else rng.random()  # rows stay rows
    at = (left + integer(rng, 0, free[0]), top + round(free[1] * drop))
    start = len(sheet.marks)
    sheet.mark(panel.sign.name, (0, 0, 1, 1))
    box = lay(sheet, panel.sheet, panel.mask, at, to)
    sheet.marks[start] = replace(sheet.marks[start], box=box)
    return replace(panel.sign, at=start)


def _panel(
    rng: np.random.Generator,
    world: World,
    form: Form,
    size: tuple[int, int],
    painted: tuple[str, Colour],
) -> Panel:
    """A bare sign with its border, or a band as posters and books have."""
    name, colour = painted
    sheet = Sheet(Image.new("RGB", size, colour))
    ink_name, ink = _ink(rng, colour)
    width, height = size
    share = INNER.get(form.outline, 0.86)
    dx, dy = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
    mask = outline(form.outline, size)
    if chance(rng, 0.45):
        thick = max(2, round(min(size) * 0.03))
        inside = outline(form.outline, (width - 6 * thick, height - 6 * thick))
        ring = outline(form.outline, (width - 4 * thick, height - 4 * thick))
        sheet.image.paste(ink, (2 * thick, 2 * thick), ring)
        sheet.image.paste(colour, (3 * thick, 3 * thick), inside)
        dx, dy = max(dx, 4 * thick), max(dy, 4 * thick)
    sign = Sign(noun=form.noun, colour=name, ink=ink_name, texts=form.texts)
    inner = (dx, dy, width - dx, height - dy)
    return Panel(sheet=sheet, mask=mask, ink=ink, sign=sign, inner=inner)


def _ink(rng: np.random.Generator, behind: Colour) -> tuple[str, Colour]:
    """A named colour that is read on another; black or white in most cases."""
    dark = luminance(behind) > 0.5
    likely = dict.fromkeys(COLOURS, 1.0) | {"black" if dark else "white": 14.0}
    for _ in range(12):
        name = pick_weighted(rng, likely)
        colour = COLOURS[name][0]
        if abs(luminance(colour) - luminance(behind)) >= MIN_CONTRAST:
            return name, colour
    return ("black", (0, 0, 0)) if dark else ("white", (255, 255, 255))


def outline(shape: str, size: tuple[int, int]) -> Image.Image:
    """The mask of a sign's outline."""
    width, height = 3 * size[0], 3 * size[1]
    mask = Image.new("L", (width, height))
    draw, whole, short = ImageDraw.Draw(mask), (0, 0, width - 1, height - 1), min(width, height)
    if shape in ("rounded", "pill"):
        draw.rounded_rectangle(whole, short // (2 if shape == "pill" else 14), fill=255)
    elif shape == "ellipse":
        draw.ellipse(whole, fill=255)
    elif shape in ("octagon", "cut"):
        cut = short * (0.293 if shape == "octagon" else 0.07)
        xs, ys = (0, cut, width - cut, width), (0, cut, height - cut, height)
        corners = ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1))
        draw.polygon([(xs[x], ys[y]) for x, y in corners], fill=255)
    elif shape == "burst":
        turns = [(math.tau * n / 40, 1.0 if n % 2 else 0.86) for n in range(40)]
        points = [
            (width / 2 * (1 + r * math.cos(a)), height / 2 * (1 + r * math.sin(a)))
            for a, r in turns
        ]
        draw.polygon(points, fill=255)
    elif shape == "tag":
        tip, hole = width * 0.13, short * 0.05
        draw.polygon(
            [(0, height / 2), (tip, 0), (width, 0), (width, height), (tip, height)], fill=255
        )
        draw.ellipse((tip * 0.5, height / 2 - hole, tip * 0.5 + 2 * hole, height / 2 + hole), 0)
    else:  # a ticket
        draw.rectangle(whole, fill=255)
        notch = short * 0.1
        for x in (0, width):
            draw.ellipse((x - notch, height / 2 - notch, x + notch, height / 2 + notch), fill=0)
    return mask.resize(size, Image.Resampling.BOX)


def _saying(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """A few words, with an arrow or a symbol beside them or without."""
    x1, y1, x2, y2 = panel.inner
    side = round(min(y2 - y1, (x2 - x1) * 0.3) * between(rng, 0.6, 0.95))
    if chance(rng, 0.5) and side >= 18:
        shape = "arrow" if chance(rng, 0.65) else pick(rng, SYMBOLS)
        way = pick(rng, list(WAYS)) if shape == "arrow" else ""
        mask = draw_shape(shape, side, WAYS[way] if way else 0)
        at_left = chance(rng, 0.5)
        x, y = x1 if at_left else x2 - side, (y1 + y2 - side) // 2
        panel.sheet.image.paste(panel.ink, (x, y), mask)
        ink = mask.point([255 * (v > 127) for v in range(256)]).getbbox()
        assert ink is not None
        panel.sheet.mark(shape, (x + ink[0], y + ink[1], x + ink[2], y + ink[3]))
        panel.sign = replace(panel.sign, arrow=way, symbol="" if way else shape)
        gap = side + side // 5
        panel.inner = (x1 + gap, y1, x2, y2) if at_left else (x1, y1, x2 - gap, y2)
    text = pick(rng, world.style(SAYINGS)) if chance(rng, 0.4) else short_text(rng, world)
    _set(panel, [(_cased(rng, text), 1.0)], world.face(rng, hand=chance(rng, 0.08)))


def _short(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """One or two words."""
    text = pick(rng, world.style(SAYINGS)) if chance(rng, 0.5) else world.texts.word(rng)
    _set(panel, [(_cased(rng, text), 1.0)], world.face(rng, hand=chance(rng, 0.1)))


def _notice(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """A title, and one to three smaller texts below it."""
    head = world.texts.phrase(rng, 1, 3) if chance(rng, 0.6) else pick(rng, world.style(SAYINGS))
    parts = [(_cased(rng, head.strip(".,;:()\"'") or "News"), 0.5)]
    parts += [(world.texts.snippet(rng), 0.16) for _ in range(integer(rng, 1, 3))]
    _set(panel, parts, world.face(rng))


def _price(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """A product and its price."""
    parts = [(world.texts.product(rng), 0.3), (price(rng), 0.6)]
    _set(panel, parts if chance(rng, 0.75) else parts[::-1], world.plain_face(rng))


def _name(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """A name, with what such tags say above it."""
    head = pick(rng, ("Hello, my name is", "VISITOR", "Guest", "Speaker", "STAFF", "My name is"))
    name = pick(rng, world.texts.first_names) if chance(rng, 0.4) else world.texts.person(rng)
    job = [(pick(rng, world.texts.jobs), 0.2)] if chance(rng, 0.3) else []
    _set(panel, [(head, 0.22), (name, 0.5), *job], world.plain_face(rng))


def _book(rng: np.random.Generator, world: World, panel: Panel) -> None:
    """A title and its author."""
    title = world.texts.phrase(rng, 1, 5).strip(".,;:()\"'").title() or "Letters"
    author = (world.texts.person(rng), 0.18)
    parts, first = [(title, 0.6), author], chance(rng, 0.7)
    panel.sign = replace(panel.sign, title_first=first)
    _set(panel, parts if first else parts[::-1], world.plain_face(rng))


_TEXTS = {
    "saying": _saying,
    "short": _short,
    "notice": _notice,
    "price": _price,
    "name": _name,
    "book": _book,
}


def _cased(rng: np.random.Generator, text: str) -> str:
    return text.upper() if chance(rng, 0.45) else text


def _set(panel: Panel, parts: Sequence[tuple[str, float]], face: Face) -> None:
    """Set texts one below the other, each in its share of the inner height, as large as it fits."""
    x1, y1, x2, y2 = panel.inner
    total = sum(share for _, share in parts)
    y, spoken = float(y1), []
    for text, share in parts:
        room = (y2 - y1) * share / total
        plain = Style(face=face, size=40, colour=panel.ink)
        rows, style = largest(text, plain, (x2 - x1, room * 0.94))
        if style.size < 11:
            y += room
            continue
        top = y + (room - style.leading * len(rows)) / 2
        for k, row in enumerate(rows):
            x = x1 + (x2 - x1 - style.width(style.shown(row))) / 2
            panel.sheet.text(x, top + k * style.leading, row, style)
        spoken.append(tuple(style.shown(row) for row in rows))
        y += room
    panel.sign = replace(panel.sign, parts=tuple(spoken))


def largest(text: str, style: Style, room: tuple[float, float]) -> tuple[list[str], Style]:
    """The text in one to three rows, and the largest style up to 120 pixels at which it fits."""
    best, words = ([text], replace(style, size=1)), text.split()
    for count in range(1, min(3, len(words)) + 1):
        rows = _rows(words, count)
        widest = max(style.width(style.shown(row)) for row in rows)
        size = min(style.size * room[0] / max(widest, 1), room[1] / (1.3 * count), 120)
        if size > best[1].size * 1.1:
            best = rows, replace(style, size=int(size))
    rows, style = best
    while style.size > 8 and max(style.width(style.shown(row)) for row in rows) > room[0]:
        style = replace(style, size=style.size - 1)
    return rows, style


def _rows(words: Sequence[str], count: int) -> list[str]:
    """The words in so many rows of about equal length."""
    target, rows = sum(map(len, words)) / count, [[words[0]]]
    for k, word in enumerate(words[1:], 1):
        full = sum(map(len, rows[-1])) + len(word) / 2 > target
        if len(rows) < count and (full or len(words) - k <= count - len(rows)):
            rows.append([word])
        else:
            rows[-1].append(word)
    return [" ".join(row) for row in rows]
