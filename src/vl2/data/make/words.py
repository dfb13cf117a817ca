"""A word, a code or a short line in large print: signs, labels, titles."""

from __future__ import annotations

import numpy as np

from vl2.data.make.chance import between, chance, integer, log_between, pick
from vl2.data.make.paper import finish, ground, ink, mean_colour
from vl2.data.make.reading import locate_asks, read_asks
from vl2.data.make.sample import Made
from vl2.data.make.sheet import Sheet, Style
from vl2.data.make.world import World
from vl2.geometry import PixelBox

SIDE = (112, 760)


def make(rng: np.random.Generator, world: World) -> Made:
    """One to three short texts, each 20 to 160 pixels high, that do not touch."""
    size = (round(log_between(rng, *SIDE)), round(log_between(rng, *SIDE)))
    size = (max(size[0], size[1] // 3), size[1])
    sheet = Sheet(ground(rng, world, size))
    taken: list[PixelBox] = []
    hand = chance(rng, 0.12)
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        if (box := _place(rng, world, sheet, taken, hand)) is not None:
            taken.append(box)
    image, marks = finish(rng, sheet)
    lines = [mark for mark in marks if mark.kind == "line"]
    skill = "hand" if hand else "word"
    asks = read_asks(rng, lines, skill) + locate_asks(rng, lines, skill)
    return Made(image=image, marks=marks, asks=tuple(asks))


def short_text(rng: np.random.Generator, world: World) -> str:
    """A word, a few words, or what stands on labels."""
    kind = rng.random()
    if kind < 0.4:
        return world.texts.word(rng)
    if kind < 0.6:
        text = world.texts.phrase(rng, 2, 4)
        return pick(rng, (text, text.upper(), text.title()))
    return world.texts.snippet(rng)


def _place(
    rng: np.random.Generator, world: World, sheet: Sheet, taken: list[PixelBox], hand: bool
) -> PixelBox | None:
    """Set one text where it touches none of the others; None where there is no room."""
    face = world.face(rng, hand=hand)
    width, height = sheet.size
    text = short_text(rng, world)
    style = Style(face=face, size=round(log_between(rng, 22, min(150, height * 0.8))))
    if chance(rng, 0.15):
        style = Style(face=face, size=style.size, spacing=between(rng, 0, 0.3) * style.size)
    room = 0.94 * width
    needed = style.width(style.shown(text))
    if needed > room:
        style = Style(face=face, size=int(style.size * room / needed))
        needed = style.width(style.shown(text))
    tall = round(style.size * 1.35)
    if style.size < 18 or tall > height or needed > width:
        return None
    for _ in range(12):
        x, y = integer(rng, 0, width - needed), integer(rng, 0, height - tall)
        box = (x, y, x + needed, y + tall)
        if all(x >= b[2] or b[0] >= box[2] or y >= b[3] or b[1] >= box[3] for b in taken):
            colour = ink(rng, mean_colour(sheet.image, box))
            sheet.text(
                x, y, text, Style(face=face, size=style.size, colour=colour, spacing=style.spacing)
            )
            return box
    return None
