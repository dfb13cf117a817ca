"""Plain landscapes from primitives: sky, sun, moon, clouds, mountains, sea, road, trees, houses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vl2.data.make.chance import between, chance, integer, pick, pick_weighted
from vl2.data.make.fonts import Split
from vl2.data.make.shapes import touch
from vl2.data.make.sheet import Colour
from vl2.geometry import PixelBox

TIMES = {"day": 0.6, "night": 0.2, "sunset": 0.12, "rain": 0.08}
SKIES: dict[str, dict[str, tuple[Colour, Colour]]] = {
    # by what one calls the colour: at the top and at the horizon
    "day": {"blue": ((70, 140, 230), (170, 210, 250))},
    "sunset": {"orange": ((235, 110, 40), (255, 190, 90)), "red": ((190, 30, 40), (240, 90, 50))},
    "night": {"black": ((2, 2, 8), (12, 12, 22)), "dark blue": ((8, 14, 60), (25, 40, 110))},
    "rain": {"grey": ((110, 115, 122), (165, 168, 172))},
}
GROUNDS: dict[str, tuple[Colour, str]] = {
    "grass": ((80, 160, 60), "green"),
    "sand": ((230, 205, 140), "yellow"),
    "snow": ((240, 244, 250), "white"),
    "": ((140, 105, 70), "brown"),  # bare earth, which one does not name
}
CLEAR = 0.52
"""The upper part of the sky, of its height, that no mountain reaches into."""
STYLES: dict[Split, tuple[str, ...]] = {"train": ("flat", "lined"), "heldout": ("soft",)}
"""How things are drawn; evaluation has a style and shapes of its own."""
CROWNS: dict[Split, tuple[str, ...]] = {"train": ("ball", "cone"), "heldout": ("balls", "tiers")}
ROOFS: dict[Split, tuple[str, ...]] = {"train": ("gable",), "heldout": ("hip", "flat")}


@dataclass(kw_only=True, slots=True)
class Scenery:
    """A landscape in the making."""

    image: Image.Image
    split: Split
    time: str
    sky: str  # the colour of the sky
    ground: str  # "grass", "sand", "snow" or ""
    ground_colour: str
    horizon: int
    style: str
    parts: list[tuple[str, PixelBox]] = field(default_factory=list)  # what can be counted
    stuff: list[str] = field(default_factory=list)  # what cannot: "sea", "mountains"

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """What draws on the picture."""
        return ImageDraw.Draw(self.image)

    def free(self, box: PixelBox) -> bool:
        """Whether a box is on the picture and touches no part."""
        inside = box[0] >= 0 and box[1] >= 0
        inside = inside and box[2] <= self.image.width and box[3] <= self.image.height
        return inside and not any(touch(box, other, 6) for _, other in self.parts)


def landscape(rng: np.random.Generator, split: Split, size: tuple[int, int]) -> Scenery:
    """A landscape and all that is on it, in the order from far to near."""
    time = pick_weighted(rng, TIMES)
    sky = pick(rng, list(SKIES[time]))
    ground = pick(rng, list(GROUNDS))
    scenery = Scenery(
        image=_sky(rng, size, SKIES[time][sky]),
        split=split,
        time=time,
        sky=sky,
        ground=ground,
        ground_colour=GROUNDS[ground][1] if time in ("day", "sunset") else "",
        horizon=round(size[1] * between(rng, 0.38, 0.68)),
        style=pick(rng, STYLES[split]),
    )
    _above(rng, scenery)
    _far(rng, scenery)
    _ground(rng, scenery)
    for put, share, most in ((_house, 0.4, 2), (_tree, 0.6, 5), (_fence, 0.12, 1)):
        for _ in range(integer(rng, 1, most) if chance(rng, share) else 0):
            put(rng, scenery)
    if time == "rain":
        _rain(rng, scenery)
    return scenery


def _sky(
    rng: np.random.Generator, size: tuple[int, int], colours: tuple[Colour, Colour]
) -> Image.Image:
    shift = rng.integers(-14, 15, 3)
    top, low = (np.clip(np.array(colour) + shift, 0, 255) for colour in colours)
    mix = (np.arange(size[1]) / size[1])[:, None, None]
    rows = np.repeat(top * (1 - mix) + low * mix, size[0], axis=1)
    return Image.fromarray(rows.astype(np.uint8), "RGB")


def _paint(
    scenery: Scenery,
    colour: Colour,
    box: PixelBox,
    shape: Callable[[ImageDraw.ImageDraw, int], None],
) -> None:
    """Draw a shape as a smooth mask in the style of the picture; coordinates are from `box`."""
    wide, tall = max(1, box[2] - box[0]), max(1, box[3] - box[1])
    mask = Image.new("L", (2 * wide, 2 * tall))
    shape(ImageDraw.Draw(mask), 255)
    mask = mask.resize((wide, tall), Image.Resampling.BOX)
    tone = _tone(scenery, colour)
    if scenery.style == "lined" and min(wide, tall) > 8:
        scenery.image.paste((25, 25, 25), box[:2], mask)
        mask = mask.filter(ImageFilter.MinFilter(3))
    scenery.image.paste(tone, box[:2], mask)
    if scenery.style == "soft":  # lit from above
        light = np.linspace(60, 0, tall)[:, None] / 255
        faint = Image.fromarray((np.asarray(mask) * light).astype(np.uint8))
        scenery.image.paste((255, 255, 255), box[:2], faint)


def _tone(scenery: Scenery, colour: Colour, *, far: bool = False) -> Colour:
    """The colour in the light of the hour; at night things stand out from what is far."""
    dim = {"night": 0.32 if far else 0.65, "rain": 0.8}.get(scenery.time, 1.0)
    return round(colour[0] * dim), round(colour[1] * dim), round(colour[2] * dim)


def _lit(colour: Colour, by: int) -> Colour:
    return (
        min(255, max(0, colour[0] + by)),
        min(255, max(0, colour[1] + by)),
        min(255, max(0, colour[2] + by)),
    )


def _above(rng: np.random.Generator, scenery: Scenery) -> None:
    """What is in the sky."""
    width, side = scenery.image.width, min(scenery.image.size)
    if scenery.time == "night" and chance(rng, 0.6):
        scenery.stuff.append("stars")
        for _ in range(integer(rng, 25, 80)):
            x, y = integer(rng, 0, width - 1), integer(rng, 0, scenery.horizon)
            size = integer(rng, 1, max(1, side // 160))
            scenery.draw.ellipse((x, y, x + size, y + size), fill=(255, 255, 235))
    light = {"day": "sun", "sunset": "sun", "night": "moon"}.get(scenery.time)
    if light and chance(rng, 0.65):
        across = round(side * between(rng, 0.1, 0.22))
        x = integer(rng, 2, max(3, width - across - 2))
        y = integer(rng, 2, max(3, round(scenery.horizon * CLEAR) - across))
        _light(rng, scenery, light, (x, y, x + across, y + across))
    if scenery.time in ("day", "rain"):
        for _ in range(integer(rng, 1, 4) if chance(rng, 0.6) else 0):
            wide = round(side * between(rng, 0.18, 0.34))
            tall = round(wide * between(rng, 0.4, 0.55))
            x = integer(rng, 0, max(1, width - wide))
            y = integer(rng, 0, max(1, round(scenery.horizon * CLEAR) - tall))
            _cloud(rng, scenery, (x, y, x + wide, y + tall))


def _light(rng: np.random.Generator, scenery: Scenery, name: str, box: PixelBox) -> None:
    if not scenery.free(box) or box[3] > scenery.horizon * CLEAR:
        return
    low = scenery.time == "sunset"
    colour = (255, 240, 120) if low else (255, 215, 40) if name == "sun" else (240, 238, 210)
    night, scenery.time = scenery.time, "day"  # it shines: the night does not dim it
    full = 2 * (box[2] - box[0])
    bite = full // 3 if name == "moon" and chance(rng, 0.6) else 0

    def disc(draw: ImageDraw.ImageDraw, fill: int) -> None:
        draw.ellipse((0, 0, full - 1, full - 1), fill=fill)
        if bite:
            draw.ellipse((bite, -bite // 4, full + bite, full - bite // 2), fill=0)

    _paint(scenery, colour, box, disc)
    scenery.time = night
    scenery.parts.append((name, box))


def _cloud(rng: np.random.Generator, scenery: Scenery, box: PixelBox) -> None:
    if not scenery.free(box) or box[3] > scenery.horizon * CLEAR:
        return
    wide, tall = 2 * (box[2] - box[0]), 2 * (box[3] - box[1])
    puffs = [(0.0, 0.4, 0.4, 1.0), (0.25, 0.0, 0.7, 0.85), (0.55, 0.3, 1.0, 1.0)]

    def shape(draw: ImageDraw.ImageDraw, fill: int) -> None:
        for x1, y1, x2, y2 in puffs:
            draw.ellipse((x1 * wide, y1 * tall, x2 * wide - 1, y2 * tall - 1), fill=fill)

    grey = scenery.time == "rain"
    _paint(
        scenery,
        (120, 122, 128) if grey else _lit((246, 248, 252), -integer(rng, 0, 12)),
        box,
        shape,
    )
    scenery.parts.append(("cloud", box))


def _far(rng: np.random.Generator, scenery: Scenery) -> None:
    """Mountains or hills at the horizon, or the sea, sometimes with a boat."""
    width, height = scenery.image.size
    kind = pick_weighted(rng, {"mountains": 0.3, "hills": 0.25, "sea": 0.25, "": 0.2})
    if kind == "mountains":
        low = round(scenery.horizon * between(rng, CLEAR, 0.7))
        _peaks(rng, scenery, (0, low, width, scenery.horizon + 2))
    if kind == "hills":
        top = scenery.horizon - round(height * between(rng, 0.08, 0.16))
        phase, waves = between(rng, 0, 6), between(rng, 1.0, 2.5)
        x = np.linspace(0, 2 * width, 40)
        tall = 2 * (scenery.horizon + 2 - top)
        y = tall * (0.45 - 0.4 * np.sin(phase + x / width * np.pi * waves))
        ridge = [*zip(x.tolist(), y.tolist(), strict=True), (2 * width, tall), (0, tall)]
        box = (0, top, width, scenery.horizon + 2)
        _paint(scenery, (95, 145, 85), box, lambda draw, fill: draw.polygon(ridge, fill=fill))
    if kind:
        scenery.stuff.append(kind)


def _peaks(rng: np.random.Generator, scenery: Scenery, box: PixelBox) -> None:
    count = integer(rng, 2, 4)
    room = (box[2] - box[0]) / count
    colour = pick(rng, ((120, 120, 130), (130, 110, 95), (95, 110, 140)))
    for k in range(count):
        half = round(room * between(rng, 0.6, 0.9))
        middle = round((k + between(rng, 0.4, 0.6)) * room)
        top = box[1] + round((box[3] - box[1]) * between(rng, 0.05, 0.4))
        peak = (middle - half, top, middle + half, box[3])
        tall = 2 * (box[3] - top)
        _polygon(scenery, colour, peak, [(0, tall), (2 * half, 0), (4 * half, tall)])
        snow = [(1.5 * half, 0.25 * tall), (2 * half, 0), (2.5 * half, 0.25 * tall)]
        _polygon(scenery, (240, 242, 246), peak, snow)


def _ground(rng: np.random.Generator, scenery: Scenery) -> None:
    """Ground from the horizon down; before it the sea, on it a road."""
    width, height = scenery.image.size
    shore = scenery.horizon
    if "sea" in scenery.stuff:
        shore = round(scenery.horizon + (height - scenery.horizon) * between(rng, 0.35, 0.7))
        whole = (0, scenery.horizon, width, shore)
        scenery.image.paste(_tone(scenery, (40, 105, 180)), whole)
        if chance(rng, 0.5):
            _boat(rng, scenery, shore)
    colour = _lit(GROUNDS[scenery.ground][0], integer(rng, -12, 12))
    scenery.image.paste(_tone(scenery, colour, far=True), (0, shore, width, height))
    if scenery.ground:
        scenery.stuff.append(scenery.ground)
    scenery.horizon = shore
    if chance(rng, 0.25):
        half, tall = round(width * 0.16), 2 * (height - shore)
        near, bend = integer(rng, half, width - half), between(rng, -half, half)
        edges = [(2 * half + bend, 0), (2.3 * half + bend, 0), (4 * half, tall), (0, tall)]
        _polygon(scenery, (85, 85, 90), (near - half, shore, near + half, height), edges)
        scenery.stuff.append("road")


def _boat(rng: np.random.Generator, scenery: Scenery, shore: int) -> None:
    side = round(min(scenery.image.size) * between(rng, 0.1, 0.2))
    x = integer(rng, 0, max(1, scenery.image.width - side))
    y = max(0, integer(rng, scenery.horizon, shore) - side)
    box = (x, y, x + side, y + side)
    if not scenery.free(box):
        return
    full = 2 * side
    hull = [(0, 0.72), (1, 0.72), (0.8, 1), (0.2, 1)]
    sail = [(0.5, 0), (0.5, 0.66), (0.95, 0.66)]
    _polygon(scenery, (120, 60, 30), box, [(full * px, full * py) for px, py in hull])
    white = pick(rng, ((250, 250, 250), (220, 60, 50), (250, 220, 90)))
    _polygon(scenery, white, box, [(full * px, full * py) for px, py in sail])
    scenery.parts.append(("boat", box))


def _polygon(
    scenery: Scenery, colour: Colour, box: PixelBox, points: Sequence[tuple[float, float]]
) -> None:
    _paint(scenery, colour, box, lambda draw, fill: draw.polygon(list(points), fill=fill))


def _standing(
    rng: np.random.Generator, scenery: Scenery, low: float, high: float, slim: float
) -> PixelBox | None:
    """A free box that stands on the ground, larger the nearer; None where there is no room."""
    width, height = scenery.image.size
    for _ in range(12):
        foot = integer(rng, scenery.horizon + 2, height - 1)
        near = 0.6 + 0.8 * (foot - scenery.horizon) / (height - scenery.horizon)
        tall = round(min(width, height) * between(rng, low, high) * near)
        wide = round(tall * slim)
        x = integer(rng, 0, max(1, width - wide))
        box = (x, foot - tall, x + wide, foot)
        if scenery.free(box):
            return box
    return None


def _tree(rng: np.random.Generator, scenery: Scenery) -> None:
    if (box := _standing(rng, scenery, 0.16, 0.38, between(rng, 0.5, 0.75))) is None:
        return
    wide, tall = 2 * (box[2] - box[0]), 2 * (box[3] - box[1])
    trunk = (0.43 * wide, 0.55 * tall, 0.57 * wide, tall)
    _paint(scenery, (105, 70, 40), box, lambda draw, fill: draw.rectangle(trunk, fill=fill))
    green = pick(rng, ((35, 115, 45), (60, 140, 50), (90, 150, 40)))
    crown = pick(rng, CROWNS[scenery.split])

    def leaves(draw: ImageDraw.ImageDraw, fill: int) -> None:
        if crown == "ball":
            draw.ellipse((0, 0, wide - 1, 0.72 * tall), fill=fill)
        elif crown == "balls":
            draw.ellipse((0, 0.25 * tall, 0.6 * wide, 0.7 * tall), fill=fill)
            draw.ellipse((0.4 * wide, 0.25 * tall, wide - 1, 0.7 * tall), fill=fill)
            draw.ellipse((0.18 * wide, 0, 0.82 * wide, 0.5 * tall), fill=fill)
        elif crown == "cone":
            draw.polygon([(0, 0.85 * tall), (wide / 2, 0), (wide, 0.85 * tall)], fill=fill)
        else:
            for top, low, half in ((0.0, 0.38, 0.3), (0.2, 0.62, 0.4), (0.42, 0.86, 0.5)):
                sides = [((0.5 - half) * wide, low * tall), ((0.5 + half) * wide, low * tall)]
                draw.polygon([(wide / 2, top * tall), *sides], fill=fill)

    _paint(scenery, green, box, leaves)
    scenery.parts.append(("tree", box))


def _house(rng: np.random.Generator, scenery: Scenery) -> None:
    if (box := _standing(rng, scenery, 0.2, 0.36, between(rng, 0.9, 1.3))) is None:
        return
    wide, tall = 2 * (box[2] - box[0]), 2 * (box[3] - box[1])
    wall = pick(rng, ((235, 225, 200), (200, 90, 70), (240, 240, 240), (245, 215, 110)))
    roof = pick(rng, ((160, 50, 40), (90, 60, 50), (70, 75, 90)))
    kind = pick(rng, ROOFS[scenery.split])
    eaves = 0.15 if kind == "flat" else 0.42

    def block(*edges: float) -> Callable[[ImageDraw.ImageDraw, int], None]:
        place = [edge * (wide if k % 2 == 0 else tall) for k, edge in enumerate(edges)]
        return lambda draw, fill: draw.rectangle(place, fill=fill)

    _paint(scenery, wall, box, block(0.08, eaves, 0.92, 1.0))
    inset = {"gable": 0.5, "hip": 0.28, "flat": 0.02}[kind]
    ridge = [(0, eaves), (inset, 0), (1 - inset, 0), (1, eaves)]
    _polygon(scenery, roof, box, [(wide * px, tall * py) for px, py in ridge])
    _paint(scenery, (95, 60, 35), box, block(0.42, 0.7, 0.58, 1.0))
    shine = (255, 220, 120) if scenery.time == "night" else (150, 200, 235)
    for left in (0.16, 0.68):
        _paint(scenery, shine, box, block(left, 0.52, left + 0.16, 0.68))
    scenery.parts.append(("house", box))


def _fence(rng: np.random.Generator, scenery: Scenery) -> None:
    box = _standing(rng, scenery, 0.06, 0.1, between(rng, 3.0, 5.0))
    if box is None:
        return
    wide, tall = 2 * (box[2] - box[0]), 2 * (box[3] - box[1])

    def boards(draw: ImageDraw.ImageDraw, fill: int) -> None:
        step = 0.5 * tall
        for k in range(int(wide / step)):
            draw.rectangle((k * step, 0, (k + 0.45) * step, tall), fill=fill)
        for level in (0.25, 0.65):
            draw.rectangle((0, level * tall, wide, (level + 0.15) * tall), fill=fill)

    white, brown = (250, 250, 250), (150, 105, 60)
    colour = pick(rng, (white, brown))
    _paint(scenery, brown if scenery.ground == "snow" else colour, box, boards)
    scenery.parts.append(("fence", box))


def _rain(rng: np.random.Generator, scenery: Scenery) -> None:
    width, height = scenery.image.size
    long = max(6, height // 30)
    for _ in range(width * height // 2500 + 40):
        x, y = integer(rng, 0, width), integer(rng, 0, height)
        scenery.draw.line((x, y, x - long // 3, y + long), fill=(205, 215, 228))
    scenery.stuff.append("rain")
