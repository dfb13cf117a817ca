"""What text stands on, and what happens to a picture on its way: light, blur, noise, JPEG."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vl2.data.make.chance import between, chance, integer, pick
from vl2.data.make.sample import Mark
from vl2.data.make.sheet import Colour, Sheet
from vl2.data.make.warp import moved_marks
from vl2.data.make.world import World
from vl2.geometry import PixelBox

GROUNDS = {
    "train": ("flat", "flat", "gradient", "clouds", "stripes", "grain", "blocks"),
    "heldout": ("flat", "flat", "radial", "weave", "blots"),
}
"""Families of backgrounds of each split; flat paper is what both have."""
MIN_CONTRAST = 0.38
"""Least difference in luminance (0..1) between letters and what is around them."""
GREY_BAR = (127, 127, 127)


def luminance(colour: Sequence[float]) -> float:
    """Perceived brightness of an RGB colour, 0..1."""
    red, green, blue = (value / 255 for value in colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def any_colour(rng: np.random.Generator) -> Colour:
    """An RGB colour, hue and saturation free."""
    hue, saturation, value = rng.random(), rng.random() ** 1.5, between(rng, 0.05, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(float(hue), float(saturation), value)
    return round(red * 255), round(green * 255), round(blue * 255)


def grey(value: int) -> Colour:
    """A colour without a hue."""
    return value, value, value


def light_colour(rng: np.random.Generator) -> Colour:
    """Paper: white in half of the cases, else a light tint."""
    if chance(rng, 0.5):
        return (255, 255, 255)
    return integer(rng, 225, 255), integer(rng, 225, 255), integer(rng, 225, 255)


def ink(rng: np.random.Generator, ground: Sequence[float], *, plain: bool = False) -> Colour:
    """A colour that stands out from `ground`: black or white, or any other."""
    dark = luminance(ground) > 0.5
    if plain or chance(rng, 0.45):
        value = integer(rng, 0, 50)
        return grey(value if dark else 255 - value)
    for _ in range(20):
        colour = any_colour(rng)
        if abs(luminance(colour) - luminance(ground)) >= MIN_CONTRAST:
            return colour
    return (0, 0, 0) if dark else (255, 255, 255)


def ground(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Image.Image:
    """A background of two similar colours, RGB."""
    width, height = size
    first = np.array(light_colour(rng) if chance(rng, 0.5) else any_colour(rng), np.float32)
    kind = pick(rng, world.style(GROUNDS))
    if kind == "flat":
        return Image.new("RGB", size, tuple(int(v) for v in first))
    second = np.clip(first + rng.uniform(-38, 38, 3), 0, 255).astype(np.float32)
    mix = _patterns(rng, kind, width, height)[..., None].astype(np.float32)
    return Image.fromarray((first * (1 - mix) + second * mix).astype(np.uint8), "RGB")


def mean_colour(image: Image.Image, box: PixelBox) -> tuple[float, ...]:
    """The average RGB colour inside a box."""
    return tuple(np.asarray(image.crop(box).resize((4, 4))).reshape(-1, 3).mean(0).tolist())


def finish(
    rng: np.random.Generator, sheet: Sheet, strength: float = 1.0
) -> tuple[Image.Image, tuple[Mark, ...]]:
    """The picture as a camera, a scanner or a screen would give it, and the marks where they are.

    Args:
        rng: decides what happens; half of the pictures stay as they are.
        sheet: what was drawn.
        strength: scales how often and how far pictures are spoilt; 0 leaves all as they are.
    """
    image, marks = sheet.image, list(sheet.marks)
    if chance(rng, 0.12 * strength):
        image, marks = rotated(image, marks, between(rng, -3.0, 3.0))
    if chance(rng, 0.08 * strength):
        image, marks = barred(rng, image, marks)
    if chance(rng, 0.4 * strength):
        for _ in range(integer(rng, 1, 2)):
            image = pick(rng, (_blurred, _noisy, _compressed, _compressed, _dimmed, _shaded))(
                rng, image
            )
    return image, tuple(marks)


def same_colours(before: Image.Image, after: Image.Image) -> bool:
    """Whether colours kept their names: nothing was added around, dimmed or shaded by much."""
    if before.size != after.size:
        return False
    small = [np.asarray(image.resize((8, 8)), np.float32) for image in (before, after)]
    return bool(np.abs(small[0] - small[1]).max() < 45)


def rotated(
    image: Image.Image, marks: Sequence[Mark], degrees: float
) -> tuple[Image.Image, list[Mark]]:
    """Turned counter-clockwise on a larger picture; new corners have the colour of the edge."""
    edge = tuple(int(v) for v in np.asarray(image)[0].mean(0))
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=edge)
    angle = np.deg2rad(-degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    before, after = np.array(image.size) / 2, np.array(turned.size) / 2
    forward = np.vstack([np.column_stack([turn, after - turn @ before]), (0, 0, 1)])
    return turned, moved_marks(marks, forward)


def barred(
    rng: np.random.Generator, image: Image.Image, marks: Sequence[Mark]
) -> tuple[Image.Image, list[Mark]]:
    """With grey bars on two sides, as the processor pads pictures to a canvas."""
    pad = round(between(rng, 0.05, 0.4) * max(image.size))
    sides = (pad, 0, pad, 0) if chance(rng, 0.5) else (0, pad, 0, pad)
    moved = []
    for mark in marks:
        x1, y1, x2, y2 = mark.box
        moved.append(
            replace(mark, box=(x1 + sides[0], y1 + sides[1], x2 + sides[0], y2 + sides[1]))
        )
    return ImageOps.expand(image, sides, GREY_BAR), moved


def _patterns(rng: np.random.Generator, kind: str, width: int, height: int) -> np.ndarray:
    """[height, width] in 0..1: how much of the second colour is where."""
    x, y = np.arange(width)[None] / width, np.arange(height)[:, None] / height
    angle = between(rng, 0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    if kind == "gradient":
        return (along - along.min()) / (np.ptp(along) + 1e-6)
    if kind == "radial":
        away = np.hypot(x - rng.random(), y - rng.random())
        return away / away.max()
    if kind == "stripes":
        return ((along * between(rng, 4, 30)) % 1 < between(rng, 0.2, 0.8)).astype(np.float32)
    if kind == "weave":
        step = between(rng, 20, 120)
        return 0.5 + 0.25 * (np.sin(x * step) + np.sin(y * step))
    if kind == "blocks":
        across, down = integer(rng, 2, 8), integer(rng, 2, 8)
        return _scaled(rng.random((down, across)), width, height, Image.Resampling.NEAREST)
    if kind == "grain":
        return rng.random((height, width))
    cells = {"clouds": integer(rng, 3, 8), "blots": integer(rng, 10, 24)}[kind]
    return _scaled(rng.random((cells, cells)), width, height, Image.Resampling.BICUBIC)


def _scaled(values: np.ndarray, width: int, height: int, how: Image.Resampling) -> np.ndarray:
    picture = Image.fromarray((values * 255).astype(np.uint8)).resize((width, height), how)
    return np.asarray(picture, np.float32) / 255


def _blurred(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(between(rng, 0.3, 0.9)))


def _noisy(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    sigma = np.float32(between(rng, 2.0, 14.0))
    pixels = np.asarray(image, np.float32)
    pixels = pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _compressed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=integer(rng, 35, 95))
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def _dimmed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    gain, lift = between(rng, 0.5, 1.05), between(rng, 0, 25)
    return image.point([min(255, round(value * gain + lift)) for value in range(256)] * 3)


def _shaded(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A soft shadow from one side, as on a photographed page."""
    width, height = image.size
    shade = 1 - between(rng, 0.1, 0.5) * _patterns(rng, "gradient", width, height)
    pixels = np.asarray(image, np.float32) * shade[..., None].astype(np.float32)
    return Image.fromarray(pixels.astype(np.uint8), "RGB")
