"""Draw one scene: choose a size, a background, objects and places, and keep every box exact."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from vl2.data.synthetic.augment import augmented
from vl2.data.synthetic.backgrounds import draw_background
from vl2.data.synthetic.chance import between, chance, pick, pick_weighted, shuffled
from vl2.data.synthetic.colours import (
    COLOURS,
    Colour,
    contrast,
    from_hsv,
    jittered,
    lightness_contrast,
    sampled_lab,
)
from vl2.data.synthetic.fonts import by_family
from vl2.data.synthetic.lettering import Lettering, largest_cap_height, letter
from vl2.data.synthetic.scene import Box, CharBox, Scene, SceneObject, SceneRecipe, Size
from vl2.data.synthetic.shapes import MAX_ROTATION, SHAPES, shape_masks
from vl2.data.synthetic.strings import random_text

MIN_CAP_HEIGHT, MAX_CAP_HEIGHT = 16.0, 70.0
MIN_SHAPE, MAX_SHAPE = 18.0, 60.0
MIN_SHAPE_CONTRAST = 32.0
"""CIE76 difference between a shape and what is behind it."""
MIN_TEXT_CONTRAST = 38.0
"""Difference in lightness L* between letters and what is behind them."""
GAP = 3
"""Pixels left free around every object."""


class _Board:
    """The picture in the making: the pixels, the taken places and the objects so far."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.image = Image.fromarray(pixels, "RGB")
        self.behind = sampled_lab(pixels)
        self.objects: list[SceneObject] = []

    def free_place(self, rng: np.random.Generator, size: Size) -> tuple[int, int] | None:
        """A random top left corner where a box of `size` touches nothing, or None."""
        across, down = self.image.width - size[0], self.image.height - size[1]
        if across < 2 or down < 2:
            return None
        for _ in range(30):
            x, y = int(rng.integers(1, across)), int(rng.integers(1, down))
            if not any(_overlap((x, y, x + size[0], y + size[1]), o.box) for o in self.objects):
                return x, y
        return None


def draw_scene(rng: np.random.Generator, *, recipe: SceneRecipe) -> Scene:
    """One random scene; the same generator state gives the same bytes."""
    kind = pick_weighted(rng, recipe.kinds)
    pixels, background = draw_background(rng, _size(rng, recipe), split=recipe.split)
    board = _Board(pixels)
    font = ""
    if kind in ("text", "mixed"):
        font = _add_text(rng, board, recipe, short=kind == "mixed")
    if kind in ("shapes", "mixed"):
        most = recipe.max_shapes if kind == "shapes" else 2
        _add_shapes(rng, board, int(rng.integers(1, most + 1)))
    if kind == "count":
        _add_counted(rng, board, recipe.max_count)
    image = augmented(rng, board.image) if chance(rng, recipe.augment) else board.image
    return Scene(
        image=image, objects=tuple(board.objects), kind=kind, font=font, background=background
    )


def _size(rng: np.random.Generator, recipe: SceneRecipe) -> Size:
    size = pick_weighted(rng, recipe.sizes)
    return size or (int(rng.integers(80, 231)), int(rng.integers(80, 231)))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _add_shapes(rng: np.random.Generator, board: _Board, number: int) -> None:
    """Add up to `number` shapes whose names all differ."""
    colours = _visible_colours(rng, board)
    for _ in range(number):
        shape, (name, colour) = pick(rng, SHAPES), pick(rng, colours)
        if all(item.name != f"{name} {shape}" for item in board.objects):
            _add_shape(rng, board, shape=shape, colour_name=name, colour=colour)


def _add_counted(rng: np.random.Generator, board: _Board, most: int) -> None:
    """Add 1 to `most` of one shape, in one colour or in many, and some other shapes."""
    colours = _visible_colours(rng, board)
    shape, other = shuffled(rng, SHAPES)[:2]
    one_colour = chance(rng, 0.5)
    chosen = pick(rng, colours)
    for _ in range(int(rng.integers(1, most + 1))):
        name, colour = chosen if one_colour else pick(rng, colours)
        _add_shape(rng, board, shape=shape, colour_name=name, colour=colour, largest=44.0)
    for _ in range(int(rng.integers(0, 4))):
        name, colour = pick(rng, colours)
        _add_shape(rng, board, shape=other, colour_name=name, colour=colour, largest=44.0)


def _visible_colours(rng: np.random.Generator, board: _Board) -> list[tuple[str, Colour]]:
    shades = [(name, jittered(rng, name)) for name in COLOURS]
    return [item for item in shades if contrast(item[1], board.behind) >= MIN_SHAPE_CONTRAST]


def _add_shape(
    rng: np.random.Generator,
    board: _Board,
    *,
    shape: str,
    colour_name: str,
    colour: Colour,
    largest: float = MAX_SHAPE,
) -> None:
    """Draw one shape where there is room; a full board stays as it is."""
    line_width = between(rng, 1.0, 2.5) if chance(rng, 0.25) else 0.0
    angle = between(rng, -1, 1) * MAX_ROTATION[shape] if chance(rng, 0.6) else 0.0
    side = min(board.image.size)
    size = between(rng, MIN_SHAPE, min(largest, 0.55 * side))
    for _ in range(3):
        body, line = shape_masks(shape, size=size, angle=angle, line_width=line_width)
        place = board.free_place(rng, body.size)
        if place:
            board.image.paste(colour, place, body)
            if line:
                board.image.paste(_line_colour(rng, colour), place, line)
            box = (*place, place[0] + body.width, place[1] + body.height)
            board.objects.append(
                SceneObject(
                    kind="shape",
                    name=f"{colour_name} {shape}",
                    box=box,
                    colour=colour_name,
                    shape=shape,
                    size=_size_word(max(body.size), 26, 42),
                )
            )
            return
        size = max(MIN_SHAPE, 0.75 * size)


def _line_colour(rng: np.random.Generator, colour: Colour) -> Colour:
    """A darker shade of the shape's colour, or a lighter one of a dark shape."""
    factor = between(rng, 0.35, 0.65)
    if max(colour) < 90:
        return tuple(round(value + (255 - value) * factor / 2) for value in colour)  # type: ignore[return-value]
    return tuple(round(value * factor) for value in colour)  # type: ignore[return-value]


def _size_word(length: float, small: float, big: float) -> str:
    return "small" if length < small else "big" if length > big else "medium"


def _add_text(rng: np.random.Generator, board: _Board, recipe: SceneRecipe, *, short: bool) -> str:
    """Draw one text and return the font's name."""
    font = pick(rng, pick(rng, _families(recipe.fonts)))
    text, cap_height = _fitting_text(rng, board.image.size, recipe, font=font, short=short)
    spacing = between(rng, 0.05, 0.3) * cap_height if chance(rng, 0.3) else 0.0
    angle = between(rng, -8, 8) if chance(rng, 0.3) else 0.0
    while True:
        lettering = letter(text, font=font, cap_height=cap_height, angle=angle, spacing=spacing)
        place = board.free_place(rng, lettering.mask.size)
        if place:
            break
        cap_height, spacing = 0.92 * cap_height, 0.5 * spacing
    name, colour = _text_colour(rng, board)
    board.image.paste(colour, place, lettering.mask)
    board.objects.append(_text_object(text, lettering, place, name))
    return font.stem if font else "built-in"


def _families(fonts: tuple[Path | None, ...]) -> tuple[tuple[Path | None, ...], ...]:
    files = [font for font in fonts if font is not None]
    built_in: tuple[tuple[Path | None, ...], ...] = ((None,),) if None in fonts else ()
    return built_in + by_family(files)


def _fitting_text(
    rng: np.random.Generator, size: Size, recipe: SceneRecipe, *, font: Path | None, short: bool
) -> tuple[str, float]:
    """A text and a capital height at which it fits; long texts are redrawn, at last cut."""
    room = (round(0.94 * size[0]), round((0.5 if short else 0.94) * size[1]))
    text = ""
    for _ in range(6):
        text = random_text(rng, pick_weighted(rng, recipe.text_styles), recipe.words)
        if short:
            text = text.split()[0][:4]
        if largest_cap_height(text, font, room) >= MIN_CAP_HEIGHT:
            break
    while len(text) > 1 and largest_cap_height(text, font, room) < MIN_CAP_HEIGHT:
        text = text[:-1].rstrip()
    most = min(largest_cap_height(text, font, room), 30.0 if short else MAX_CAP_HEIGHT)
    most = max(most, MIN_CAP_HEIGHT)
    return text, MIN_CAP_HEIGHT * math.exp(between(rng, 0, 1) * math.log(most / MIN_CAP_HEIGHT))


def _text_colour(rng: np.random.Generator, board: _Board) -> tuple[str, Colour]:
    """A colour that stands out, half of the time one with a name; black or white at last."""
    for _ in range(12):
        name = pick(rng, COLOURS) if chance(rng, 0.5) else ""
        free = from_hsv(between(rng, 0, 1), between(rng, 0, 1), between(rng, 0, 1))
        colour = jittered(rng, name) if name else free
        if lightness_contrast(colour, board.behind) >= MIN_TEXT_CONTRAST:
            return name, colour
    dark = float(board.behind[:, 0].mean()) > 50
    return ("black", (10, 10, 10)) if dark else ("white", (252, 252, 252))


def _text_object(
    text: str, lettering: Lettering, place: tuple[int, int], colour_name: str
) -> SceneObject:
    x, y = place
    chars = tuple(
        CharBox(
            char=item.char,
            box=(item.box[0] + x, item.box[1] + y, item.box[2] + x, item.box[3] + y),
        )
        for item in lettering.chars
    )
    width, height = lettering.mask.size
    return SceneObject(
        kind="text",
        name=text,
        box=(x, y, x + width, y + height),
        colour=colour_name,
        text=text,
        size=_size_word(height, 24, 44),
        chars=chars,
    )
