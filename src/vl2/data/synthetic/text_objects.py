"""Choose a text, its font, size, colour and place, and draw it on a board."""

import math
from pathlib import Path

import numpy as np

from vl2.data.synthetic.board import Board, size_word
from vl2.data.synthetic.chance import between, chance, pick, pick_weighted
from vl2.data.synthetic.colours import COLOURS, Colour, from_hsv, jittered, lightness_contrast
from vl2.data.synthetic.fonts import by_family
from vl2.data.synthetic.lettering import Lettering, largest_cap_height, letter
from vl2.data.synthetic.scene import CharBox, SceneObject, SceneRecipe, Size
from vl2.data.synthetic.strings import random_text

MAX_CAP_HEIGHT, MAX_SHORT_CAP_HEIGHT, MAX_SNIPPET_CAP_HEIGHT = 70.0, 30.0, 44.0
"""Height of a capital H in pixels; short texts share the picture with shapes."""
MIN_CONTRAST = 42.0
"""Difference in lightness L* between the letters and what is behind them."""
SHORT_LENGTH = 4


def add_text(rng: np.random.Generator, board: Board, recipe: SceneRecipe, *, short: bool) -> str:
    """Draw one text and return the font's name."""
    font = pick(rng, pick(rng, by_family(recipe.fonts)))
    text, cap_height = _fitting_text(rng, board.image.size, recipe, font=font, short=short)
    spacing = between(rng, 0.05, 0.3) * cap_height if chance(rng, 0.3) else 0.0
    angle = between(rng, -8.0, 8.0) if chance(rng, 0.3) else 0.0
    lettering = letter(text, font=font, cap_height=cap_height, angle=angle, spacing=spacing)
    place = board.free_place(rng, lettering.mask.size)
    while place is None:
        lettering = letter(text, font=font, cap_height=cap_height)
        place = board.free_place(rng, lettering.mask.size)
        cap_height *= 0.95
    name, colour = _text_colour(rng, board)
    board.image.paste(colour, place, lettering.mask)
    board.add(_text_object(text, lettering, place, name))
    return font.stem if font else "built-in"


def add_snippet(rng: np.random.Generator, board: Board, recipe: SceneRecipe) -> None:
    """Draw one or two characters of a text where there is room; a full board stays as it is."""
    font = pick(rng, pick(rng, by_family(recipe.fonts)))
    style = pick_weighted(rng, recipe.text_styles)
    text = random_text(rng, style, words=recipe.words, font=font)[: int(rng.integers(1, 3))]
    cap_height = between(rng, recipe.min_cap_height, MAX_SNIPPET_CAP_HEIGHT)
    lettering = letter(text.strip(), font=font, cap_height=cap_height)
    place = board.free_place(rng, lettering.mask.size)
    if place is None:
        return
    name, colour = _text_colour(rng, board)
    board.image.paste(colour, place, lettering.mask)
    board.add(_text_object(text.strip(), lettering, place, name))


def _fitting_text(
    rng: np.random.Generator, size: Size, recipe: SceneRecipe, *, font: Path | None, short: bool
) -> tuple[str, float]:
    """A text and a capital height at which it fits; long texts are redrawn, at last cut."""
    least = recipe.min_cap_height
    room = (round(0.94 * size[0]), round((0.5 if short else 0.94) * size[1]))
    text = ""
    for _ in range(6):
        style = pick_weighted(rng, recipe.text_styles)
        text = random_text(rng, style, words=recipe.words, font=font)
        text = text.split()[0][:SHORT_LENGTH] if short else text
        if largest_cap_height(text, font, room) >= least:
            break
    while len(text) > 1 and largest_cap_height(text, font, room) < least:
        text = text[:-1].rstrip()
    most = MAX_SHORT_CAP_HEIGHT if short else MAX_CAP_HEIGHT
    most = max(min(largest_cap_height(text, font, room), most), least)
    growth = between(rng, 0.0, 1.0) * math.log(most / least)
    return text, least * math.exp(growth)


def _text_colour(rng: np.random.Generator, board: Board) -> tuple[str, Colour]:
    """A colour that stands out, half of the time one with a name; black or white at last."""
    for _ in range(12):
        name = pick(rng, COLOURS) if chance(rng, 0.5) else ""
        hue, saturation, value = (between(rng, 0.0, 1.0) for _ in range(3))
        colour = jittered(rng, name) if name else from_hsv(hue, saturation, value)
        if lightness_contrast(colour, board.behind) >= MIN_CONTRAST:
            return name, colour
    light_behind = float(board.behind[:, 0].mean()) > 50
    return ("black", (10, 10, 10)) if light_behind else ("white", (252, 252, 252))


def _text_object(
    text: str, lettering: Lettering, place: tuple[int, int], colour_name: str
) -> SceneObject:
    x, y = place
    width, height = lettering.mask.size
    chars = []
    for item in lettering.chars:
        x1, y1, x2, y2 = item.box
        chars.append(CharBox(char=item.char, box=(x1 + x, y1 + y, x2 + x, y2 + y)))
    return SceneObject(
        kind="text",
        name=text,
        box=(x, y, x + width, y + height),
        colour=colour_name,
        text=text,
        size=size_word(height, small=24, big=44),
        chars=tuple(chars),
    )
