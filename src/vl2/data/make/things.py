"""Named things as clip art, for naming, counting, places, relations; and things without a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from vl2.data.make.chance import (
    between,
    chance,
    integer,
    log_between,
    pick,
    pick_weighted,
    shuffled,
    some,
)
from vl2.data.make.drawings import Drawing, Drawings, Thing, load
from vl2.data.make.naming import COLOURS, shade
from vl2.data.make.paper import finish, ground, mean_colour, same_colours
from vl2.data.make.sample import Made
from vl2.data.make.shapes import named_colour, touch
from vl2.data.make.sheet import Sheet
from vl2.data.make.thing_questions import LETTERED, Put, thing_asks
from vl2.data.make.world import World

SIDES = (120, 1000)
SCENES = {"one": 0.28, "few": 0.3, "many": 0.3, "unknown": 0.1, "none": 0.02}
SMALLEST, SMALLEST_INK = 24, 48  # pixels of the longer side
LINE_CONTRAST = 200  # least sum of differences in red, green and blue, of lines and ground
LARGEST = 2.5  # times the size of the drawing's file


def make(rng: np.random.Generator, world: World) -> Made:
    """None to eight drawings that do not touch."""
    size = drawn_size(rng, *SIDES)
    colour = pick(rng, list(COLOURS)) if chance(rng, 0.35) else ""
    sheet = Sheet(
        Image.new("RGB", size, shade(rng, colour)) if colour else ground(rng, world, size)
    )
    puts: list[Put] = []
    chosen = _chosen(rng, world.drawings())
    for thing, drawing in chosen:
        if (put := _put(rng, sheet, puts, len(chosen), (thing, drawing))) is not None:
            puts.append(put)
            sheet.mark(put.name, put.box)
    image, marks = finish(rng, sheet)
    kept = same_colours(sheet.image, image)
    puts = [
        replace(put, box=mark.box, colour=put.colour if kept else "")
        for put, mark in zip(puts, marks, strict=True)
    ]
    puts.sort(key=lambda put: (put.box[1], put.box[0]))
    colour = colour if kept else ""
    asks = thing_asks(rng, puts, image.size, colour, world.drawings())
    facts = {
        "things": [{"name": p.name, "known": p.thing is not None, "box": p.box} for p in puts],
        "background": colour,
    }
    return Made(image=image, marks=marks, asks=tuple(asks), facts=facts)


def drawn_size(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Width and height from low to high; squares are more frequent than strips."""
    side, slant = log_between(rng, low, high), between(rng, -1, 1) ** 3
    wide, tall = side * 2**slant, side / 2**slant
    return round(min(max(wide, low), high)), round(min(max(tall, low), high))


def _chosen(rng: np.random.Generator, material: Drawings) -> list[tuple[Thing | None, Drawing]]:
    """Which things come, each with one of its drawings, and no two of one kin."""
    scene = pick_weighted(rng, SCENES)
    if scene == "none":
        return []
    if scene == "unknown":
        few = [pick(rng, material.things)] if chance(rng, 0.3) else []
        known = [(thing, pick(rng, thing.drawings)) for thing in few]
        return [(None, pick(rng, material.unknown)), *known]
    wanted = {"one": 1, "few": integer(rng, 2, 4), "many": integer(rng, 1, 3)}[scene]
    things: list[Thing] = []
    offered = some(rng, material.things, 3 * wanted)
    if chance(rng, 0.08):  # else hardly any picture had a person
        offered.insert(0, pick(rng, [t for t in material.things if t.group == "person"]))
    for thing in offered:
        if len(things) < wanted and all(thing.kin != other.kin for other in things):
            things.append(thing)
    copies = [1] * len(things)
    if scene == "many" and things[0].many != "-":
        copies[0] = integer(rng, 2, 5)
    chosen: list[tuple[Thing | None, Drawing]] = []
    for thing, count in zip(things, copies, strict=True):
        same = pick(rng, thing.drawings) if chance(rng, 0.6) else None
        chosen += [(thing, same or pick(rng, thing.drawings)) for _ in range(count)]
    return shuffled(rng, chosen)


def _put(
    rng: np.random.Generator,
    sheet: Sheet,
    others: Sequence[Put],
    count: int,
    item: tuple[Thing | None, Drawing],
) -> Put | None:
    """Paste a drawing where it touches no other and can be seen; None where there is no room."""
    thing, drawing = item
    room = min((sheet.size[0] * sheet.size[1] / count) ** 0.5, *sheet.size)
    least = SMALLEST_INK if drawing.ink else SMALLEST
    for attempt in range(25):
        side = max(least, between(rng, 0.3, 0.95 - 0.025 * attempt) * room)
        wanted = scaled(drawing, side)
        corner = [integer(rng, 0, max(0, sheet.size[k] - wanted[k])) for k in (0, 1)]
        if not _free((corner[0], corner[1]), wanted, sheet.size, others):
            continue
        cut = drawn(rng, drawing, wanted, mirrored=thing is None or thing.name not in LETTERED)
        x, y = (max(0, min(corner[k], sheet.size[k] - cut.size[k])) for k in (0, 1))
        if not _free((x, y), cut.size, sheet.size, others):
            continue
        box, name = (x, y, x + cut.width, y + cut.height), drawing.colour
        if drawing.ink:
            name, colour = named_colour(rng, sheet.image, box)
            if np.abs(np.subtract(mean_colour(sheet.image, box), colour)).sum() < LINE_CONTRAST:
                continue
            name = "" if name in ("black", "white", "grey") else name  # of lines: who knows
            sheet.image.paste(colour, (x, y), cut.getchannel("A"))
        elif stands_out(cut, sheet.image.crop(box)):
            sheet.image.paste(cut, (x, y), cut)
        else:
            continue
        return Put(thing=thing, box=box, colour=name)
    return None


def scaled(drawing: Drawing, side: float) -> tuple[int, int]:
    """The drawing's size when its longer side is `side` pixels, or as large as its file allows."""
    width, height = load(drawing.path).size
    scale = min(side / max(width, height), LARGEST)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _free(
    at: tuple[int, int], size: tuple[int, int], whole: tuple[int, int], others: Sequence[Put]
) -> bool:
    box = (*at, at[0] + size[0], at[1] + size[1])
    inside = box[2] <= whole[0] and box[3] <= whole[1]
    return inside and not any(touch(box, other.box) for other in others)


def drawn(
    rng: np.random.Generator, drawing: Drawing, size: tuple[int, int], *, mirrored: bool
) -> Image.Image:
    """The drawing in this size, sometimes mirrored or turned a little, cut to its ink."""
    image = load(drawing.path).resize(size, Image.Resampling.BILINEAR)
    if mirrored and chance(rng, 0.35):
        image = ImageOps.mirror(image)
    if chance(rng, 0.2):
        image = image.rotate(between(rng, -14, 14), Image.Resampling.BILINEAR, expand=True)
    box = image.getchannel("A").point(_VISIBLE).getbbox()
    return image.crop(box) if box else image


_VISIBLE = [255 * (value > 40) for value in range(256)]
"""What counts as ink of a smoothed edge."""


def stands_out(cut: Image.Image, behind: Image.Image) -> bool:
    """Whether at least half of a drawing differs from what it is pasted on."""
    front = np.asarray(cut.resize((20, 20)), np.float32)
    apart = np.abs(front[..., :3] - np.asarray(behind.resize((20, 20)), np.float32)).sum(-1)
    inked = front[..., 3] > 100
    return bool(inked.any()) and float((apart[inked] > 100).mean()) > 0.5
