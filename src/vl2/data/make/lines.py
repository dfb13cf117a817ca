"""A line of print of up to 60 characters, 9 to 80 pixels high, alone or in a strip of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vl2.data.make.chance import chance, integer, log_between, pick
from vl2.data.make.paper import finish, ground, ink, mean_colour
from vl2.data.make.reading import line_asks, locate_asks, read_asks
from vl2.data.make.sample import Made
from vl2.data.make.sheet import Sheet, Style
from vl2.data.make.world import World


def make(rng: np.random.Generator, world: World) -> Made:
    """One to three lines of one style, as a crop of a page, a caption or a strip shows them."""
    face = world.face(rng, hand=chance(rng, 0.08))
    style = Style(face=face, size=round(log_between(rng, 11, 64)))
    texts = [line_text(rng, world) for _ in range(pick(rng, (1, 1, 1, 2, 3)))]
    widths = [style.width(style.shown(text)) for text in texts]
    left, right = integer(rng, 1, 2 * style.size), integer(rng, 1, 2 * style.size)
    top, bottom = integer(rng, 1, style.size), integer(rng, 1, style.size)
    step = style.leading + integer(rng, 0, style.size // 3)
    size = (left + max(widths) + right, top + step * len(texts) + bottom)
    sheet = Sheet(ground(rng, world, size))
    style = replace(
        style, colour=ink(rng, mean_colour(sheet.image, (0, 0, *size)), plain=chance(rng, 0.5))
    )
    for row, text in enumerate(texts):
        sheet.text(left, top + row * step, text, style)
    image, marks = finish(rng, sheet)
    lines = [mark for mark in marks if mark.kind == "line"]
    skill = "hand" if face.hand else "line"
    asks = read_asks(rng, lines, skill)
    asks += line_asks(rng, lines, skill) if len(lines) > 1 else []
    asks += locate_asks(rng, [mark for mark in marks if mark.kind == "word"], skill, most=1)
    return Made(image=image, marks=marks, asks=tuple(asks))


def line_text(rng: np.random.Generator, world: World) -> str:
    """Running text of 8 to 60 characters, or several short pieces beside each other."""
    if chance(rng, 0.75):
        return world.texts.of_length(rng, 8, 60)
    return " ".join(world.texts.snippet(rng) for _ in range(integer(rng, 1, 3)))[:60].strip()
