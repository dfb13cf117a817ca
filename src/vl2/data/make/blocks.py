"""A block of running text of up to 60 words, left-aligned, centred or justified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vl2.data.make.chance import chance, integer, log_between, pick
from vl2.data.make.paper import finish, ground, ink, mean_colour
from vl2.data.make.reading import line_asks, locate_asks, read_asks
from vl2.data.make.sample import Made, Mark, union
from vl2.data.make.sheet import Sheet, Style, wrap
from vl2.data.make.world import World
from vl2.geometry import PixelBox

ALIGNMENTS = ("left", "left", "left", "centre", "justified")


def make(rng: np.random.Generator, world: World) -> Made:
    """A paragraph, or a short list, on plain ground."""
    face = world.face(rng, hand=True) if chance(rng, 0.08) else world.plain_face(rng)
    style = Style(face=face, size=round(log_between(rng, 20 if face.hand else 13, 40)))
    width = integer(rng, 12 * style.size, 26 * style.size)
    lines = block_lines(rng, world, style, width)
    step = style.leading + integer(rng, 0, style.size // 2)
    margin = integer(rng, style.size // 2, 2 * style.size)
    size = (width + 2 * margin, step * len(lines) + 2 * margin)
    sheet = Sheet(ground(rng, world, size))
    colour = ink(rng, mean_colour(sheet.image, (0, 0, *size)), plain=chance(rng, 0.7))
    set_block(
        sheet,
        (margin, margin),
        lines,
        replace(style, colour=colour),
        width=width,
        step=step,
        alignment=pick(rng, ALIGNMENTS),
    )
    image, marks = finish(rng, sheet)
    found = [mark for mark in marks if mark.kind == "line"]
    skill = "hand" if face.hand else "block"
    asks = read_asks(rng, found, skill) + line_asks(rng, found, skill)
    asks += locate_asks(rng, [mark for mark in marks if mark.kind == "word"], skill, most=1)
    return Made(image=image, marks=marks, asks=tuple(asks))


def block_lines(rng: np.random.Generator, world: World, style: Style, width: int) -> list[str]:
    """Wrapped sentences, or items with a dash or a number before each."""
    if chance(rng, 0.8):
        return wrap(world.texts.paragraph(rng, 8, 60), style, width)
    numbered, bullet = chance(rng, 0.5), pick(rng, "-*+")
    items = [world.texts.phrase(rng, 1, 6) for _ in range(integer(rng, 2, 7))]
    marked = [f"{n}. {item}" if numbered else f"{bullet} {item}" for n, item in enumerate(items, 1)]
    return [line for item in marked for line in wrap(item, style, width)]


def set_block(
    sheet: Sheet,
    at: tuple[int, int],
    lines: list[str],
    style: Style,
    *,
    width: int,
    step: int,
    alignment: str = "left",
) -> PixelBox:
    """Set lines one below the other and mark the block; returns its box."""
    boxes = []
    for row, line in enumerate(lines):
        y = at[1] + row * step
        free = width - style.width(style.shown(line))
        if alignment == "justified" and row < len(lines) - 1 and 0 < free < 0.25 * width:
            boxes.append(_justified(sheet, (at[0], y), line, style, free))
            continue
        x = at[0] + (free // 2 if alignment == "centre" else free if alignment == "right" else 0)
        boxes.append(sheet.text(x, y, line, style))
    return sheet.mark(" ".join(lines), union(boxes), "block")


def _justified(sheet: Sheet, at: tuple[int, int], line: str, style: Style, free: int) -> PixelBox:
    """One line whose words are set apart, so that it ends at the right edge."""
    words = line.split()
    if len(words) < 2:
        return sheet.text(*at, line, style)
    gap, x, first = free / (len(words) - 1), float(at[0]), len(sheet.marks)
    for word in words:
        sheet.text(x, at[1], word, style)
        x += style.width(style.shown(f"{word} ")) + gap
    return _joined(sheet, first)


def _joined(sheet: Sheet, first: int) -> PixelBox:
    """Make one line of the lines that were marked since number `first`."""
    since = sheet.marks[first:]
    pieces = [mark for mark in since if mark.kind == "line"]
    box = union([mark.box for mark in pieces])
    whole = Mark(kind="line", text=" ".join(mark.text for mark in pieces), box=box)
    sheet.marks[first:] = [whole, *(mark for mark in since if mark.kind != "line")]
    return box
