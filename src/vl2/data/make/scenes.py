"""Landscapes, patterns, gradients, noise and empty pages; and text that nobody can read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from vl2.data.make.chance import between, chance, integer, phrase, pick, pick_weighted, some
from vl2.data.make.drawings import Thing
from vl2.data.make.fonts import Split
from vl2.data.make.naming import COLOURS, one, shade
from vl2.data.make.paper import finish, ground, ink, mean_colour, same_colours
from vl2.data.make.reading import READ
from vl2.data.make.sample import Ask, Made, ask
from vl2.data.make.scene_questions import part, pattern_asks, scene_asks
from vl2.data.make.scenery import Scenery, landscape
from vl2.data.make.shapes import draw_shape
from vl2.data.make.sheet import Colour, Sheet, Style
from vl2.data.make.thing_questions import Put
from vl2.data.make.things import drawn, drawn_size, scaled, stands_out
from vl2.data.make.world import World

SIDES = (120, 1000)
SCENES = {"landscape": 0.62, "pattern": 0.2, "blank": 0.08, "illegible": 0.1}
VISITORS = {"animal": 0.5, "vehicle": 0.3, "person": 0.2}
"""Groups of things that may stand on the ground of a landscape, and how often."""
NOT_ON_LAND = ("boat", "fish", "octopus", "crab")
"""Their kin that do not."""
PATTERNS: dict[Split, tuple[str, ...]] = {
    "train": ("stripes", "checks", "gradient", "dots", "noise"),
    "heldout": ("bars", "checks", "gradient", "stars", "noise"),
}
"""Families of patterns; the plain ones are what both splits have."""
ILLEGIBLE = "I cannot read it."
TOO_SMALL = (1.5, 2.4)  # pixels per em
TOO_BLURRED = (0.32, 0.42)  # standard deviation of the blur in ems
ANY_TEXT = ("Is there [any|] text[ in the picture|]?", "[Do you see|Can you see] [any|] text?")


def make(rng: np.random.Generator, world: World) -> Made:
    """A scene, a pattern, an empty page, or print that is too small or too blurred to be read."""
    size = drawn_size(rng, *SIDES)
    kind = pick_weighted(rng, SCENES)
    if kind == "landscape":
        return _landscape(rng, world, size)
    if kind == "illegible":
        return _illegible(rng, world, size)
    if kind == "blank":
        colour = "white" if chance(rng, 0.4) else pick(rng, list(COLOURS))
        sheet = Sheet(Image.new("RGB", size, shade(rng, colour)))
        what = "an empty picture" if colour == "white" else f"an empty {colour} picture"
    else:
        image, what, colour = pattern(rng, pick(rng, PATTERNS[world.split]), size)
        sheet = Sheet(image)
    image, _ = finish(rng, sheet, strength=0.6)
    if not same_colours(sheet.image, image):
        image = sheet.image
    asks = pattern_asks(rng, what, colour, world.drawings())
    return Made(image=image, marks=(), asks=tuple(asks), facts={"shows": what})


def _landscape(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Made:
    scenery = landscape(rng, world.split, size)
    puts = [Put(thing=part(name), box=box) for name, box in scenery.parts]
    if chance(rng, 0.45):
        puts += _visitors(rng, world, scenery)
    sheet = Sheet(scenery.image)
    for put in puts:
        sheet.mark(put.name, put.box)
    image, marks = finish(rng, sheet)
    found = [replace(put, box=mark.box) for put, mark in zip(puts, marks, strict=True)]
    found.sort(key=lambda put: (put.box[1], put.box[0]))
    asks = scene_asks(rng, scenery, found, image.size, world.drawings())
    things = [{"name": put.name, "box": put.box} for put in found]
    facts = {"things": things, "stuff": scenery.stuff, "time": scenery.time, "sky": scenery.sky}
    return Made(image=image, marks=marks, asks=tuple(asks), facts=facts)


def _visitors(rng: np.random.Generator, world: World, scenery: Scenery) -> list[Put]:
    """One to three named things on the ground."""
    width, height = scenery.image.size
    guests: list[Thing] = []
    group = pick_weighted(rng, VISITORS)
    for thing in some(rng, world.drawings().things, 250):
        fitting = thing.group == group and thing.kin not in NOT_ON_LAND
        if fitting and all(thing.kin != guest.kin for guest in guests):
            guests.append(thing)
    puts = []
    for thing in guests[: integer(rng, 1, 3)]:
        drawing = pick(rng, [d for d in thing.drawings if not d.ink] or thing.drawings)
        for _ in range(10):
            side = max(24, min(width, height) * between(rng, 0.14, 0.32))
            cut = drawn(rng, drawing, scaled(drawing, side), mirrored=False)
            foot = integer(rng, min(scenery.horizon + 4, height - 1), height - 1)
            x = integer(rng, 0, max(1, width - cut.width))
            box = (x, foot - cut.height, x + cut.width, foot)
            if scenery.free(box) and stands_out(cut, scenery.image.crop(box)):
                scenery.image.paste(cut, box[:2], cut)
                scenery.parts.append((thing.name, box))
                puts.append(Put(thing=thing, box=box))
                break
    return puts


def pattern(
    rng: np.random.Generator, kind: str, size: tuple[int, int]
) -> tuple[Image.Image, str, str]:
    """A picture of two colours, what one calls it, and its background where it has one."""
    first, second, tones = _two_colours(rng)
    width, height = size
    step = max(6, round(min(size) * between(rng, 0.05, 0.25)))
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    if kind == "gradient":
        mix = (y / height if chance(rng, 0.5) else x / width) + np.zeros(size[::-1])
        return _mixed(mix, tones), f"a gradient from {first} to {second}", ""
    if kind == "noise":
        grains = rng.integers(0, 256, (height, width, 3 if chance(rng, 0.5) else 1))
        pixels = np.broadcast_to(grains, (height, width, 3)).astype(np.uint8)
        return Image.fromarray(pixels, "RGB"), "noise", ""
    if kind in ("stripes", "bars"):
        way = pick(rng, ("horizontal", "vertical", "diagonal"))
        along = {"horizontal": y + 0 * x, "vertical": x + 0 * y, "diagonal": x + y}[way]
        share = 0.5 if kind == "stripes" else between(rng, 0.3, 0.7)
        mix = (along / step % 1 < share).astype(np.float32)
        return _mixed(mix, tones), f"{way} {first} and {second} stripes", ""
    if kind == "checks":
        mix = ((x // step + y // step) % 2).astype(np.float32)
        return _mixed(mix, tones), f"a {first} and {second} checkerboard", ""
    image = Image.new("RGB", size, tones[0])
    shape, name = ("circle", "dots") if kind == "dots" else ("star", "stars")
    mask = draw_shape(shape, max(4, round(step * 0.6)), 0.0)
    for top in range(step // 4, height, step):
        for left in range(step // 4, width, step):
            image.paste(tones[1], (left, top), mask)
    return image, f"many {second} {name}", first


def _two_colours(rng: np.random.Generator) -> tuple[str, str, tuple[Colour, Colour]]:
    """Two names and colours that nobody takes for each other."""
    while True:
        first, second = some(rng, list(COLOURS), 2)
        tones = shade(rng, first), shade(rng, second)
        if np.abs(np.subtract(*tones)).sum() > 170:
            return first, second, tones


def _mixed(mix: np.ndarray, tones: tuple[Colour, Colour]) -> Image.Image:
    low, high = (np.array(tone, np.float32) for tone in tones)
    part_of = mix[..., None].astype(np.float32)
    return Image.fromarray((low * (1 - part_of) + high * part_of).astype(np.uint8), "RGB")


def _illegible(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Made:
    """Lines of print, each letter a few pixels high or blurred away."""
    blurred = chance(rng, 0.5)
    size = size if blurred else (min(size[0], 600), min(size[1], 600))
    em = integer(rng, 12, max(13, min(size) // 8)) if blurred else 9  # as drawn
    style = Style(face=world.plain_face(rng), size=em)
    scale = 1.0 if blurred else em / between(rng, *TOO_SMALL)
    whole = (round(size[0] * scale), round(size[1] * scale))
    sheet = Sheet(ground(rng, world, size if blurred else (8, 8)).resize(whole))
    style = replace(style, colour=ink(rng, mean_colour(sheet.image, (0, 0, *whole)), plain=True))
    most = max(1, int((whole[1] - 2 * em) / style.leading))
    lines = integer(rng, min(most, 2), min(most, 5 if blurred else 40))
    left = integer(rng, 2, max(3, whole[0] // 4))
    top = integer(rng, 2, max(3, whole[1] - lines * style.leading - 2))
    letters = int((whole[0] - left) / (0.6 * em))
    for line in range(lines):
        text = world.texts.paragraph(rng, 3, 40)[: max(4, letters)]
        sheet.text(left, top + line * style.leading, text.strip() or "text", style)
    image = sheet.image
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(em * between(rng, *TOO_BLURRED)))
    else:
        image = image.resize(size, Image.Resampling.BOX)
    image, _ = finish(rng, Sheet(image), strength=0.5)
    asks: list[Ask] = [ask("scene.illegible", phrase(rng, pick(rng, READ)), ILLEGIBLE)]
    asks.append(ask("scene.text", phrase(rng, pick(rng, ANY_TEXT)), "Yes"))
    missing = pick(rng, world.drawings().things).name
    asks.append(ask("scene.there", f"Is there {one(missing)}?", "No"))
    return Made(image=image, marks=(), asks=tuple(asks), facts={"shows": "illegible text"})
