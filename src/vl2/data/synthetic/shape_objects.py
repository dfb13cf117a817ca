"""Choose shapes, colours and places, and draw them on a board."""

import numpy as np

from vl2.data.synthetic.board import Board, size_word
from vl2.data.synthetic.chance import between, chance, pick, shuffled
from vl2.data.synthetic.colours import COLOURS, Colour, contrasts, jittered
from vl2.data.synthetic.scene import SceneObject
from vl2.data.synthetic.shapes import MAX_ROTATION, SHAPES, shape_masks

MAX_SIDE, MAX_COUNTED_SIDE = 60.0, 40.0
"""Pixels; counted shapes are smaller so that several fit."""
MIN_CONTRAST = 38.0
"""CIE76 difference between a shape and what is behind it."""
MAX_DISTRACTORS = 3
REPEATS = {"white": 2, "grey": 4}
"""How often a colour counts that few backgrounds let stand out."""

NamedColour = tuple[str, Colour]


def add_shapes(rng: np.random.Generator, board: Board, number: int, *, smallest: float) -> None:
    """Add up to `number` shapes whose names all differ."""
    colours = visible_colours(rng, board)
    for _ in range(number):
        shape, colour = pick(rng, SHAPES), pick(rng, colours)
        if all(item.name != f"{colour[0]} {shape}" for item in board.objects):
            add_shape(rng, board, shape=shape, colour=colour, sides=(smallest, MAX_SIDE))


def add_counted(rng: np.random.Generator, board: Board, most: int, *, smallest: float) -> None:
    """Add 1 to `most` of one shape, in one colour or in many, then some of another shape."""
    colours = visible_colours(rng, board)
    shape, other = shuffled(rng, SHAPES)[:2]
    sides = (smallest, MAX_COUNTED_SIDE)
    palette = [pick(rng, colours)] if chance(rng, 0.5) else colours
    for _ in range(int(rng.integers(1, most + 1))):
        add_shape(rng, board, shape=shape, colour=pick(rng, palette), sides=sides)
    for _ in range(int(rng.integers(0, MAX_DISTRACTORS + 1))):
        add_shape(rng, board, shape=other, colour=pick(rng, colours), sides=sides)


def visible_colours(rng: np.random.Generator, board: Board) -> list[NamedColour]:
    """One shade of every named colour that stands out; those that rarely do count more often."""
    shades = [(name, jittered(rng, name)) for name in COLOURS]
    values = contrasts([colour for _, colour in shades], board.behind)
    pairs = zip(shades, values, strict=True)
    visible = [shade for shade, value in pairs if value >= MIN_CONTRAST]
    return [shade for shade in visible for _ in range(REPEATS.get(shade[0], 1))]


def add_shape(
    rng: np.random.Generator,
    board: Board,
    *,
    shape: str,
    colour: NamedColour,
    sides: tuple[float, float],
) -> None:
    """Draw one shape where there is room; a full board stays as it is."""
    name, fill = colour
    line_width = between(rng, 1.0, 2.5) if chance(rng, 0.25) else 0.0
    angle = between(rng, -1.0, 1.0) * MAX_ROTATION[shape] if chance(rng, 0.6) else 0.0
    smallest, largest = sides
    size = between(rng, smallest, min(largest, 0.55 * min(board.image.size)))
    for _ in range(4):
        body, line = shape_masks(shape, size=size, angle=angle, line_width=line_width)
        place = board.free_place(rng, body.size)
        if place:
            board.image.paste(fill, place, body)
            if line:
                board.image.paste(_line_colour(rng, fill), place, line)
            board.add(_shape_object(shape, name, place, body.size))
            return
        size = max(smallest, 0.7 * size)


def _shape_object(
    shape: str, colour_name: str, place: tuple[int, int], size: tuple[int, int]
) -> SceneObject:
    x, y = place
    width, height = size
    return SceneObject(
        kind="shape",
        name=f"{colour_name} {shape}",
        box=(x, y, x + width, y + height),
        colour=colour_name,
        shape=shape,
        size=size_word(max(size), small=26, big=42),
    )


def _line_colour(rng: np.random.Generator, fill: Colour) -> Colour:
    """A darker shade of the shape's colour, or a lighter one of a dark shape."""
    factor = between(rng, 0.35, 0.65)
    towards = 255 * factor / 2 if max(fill) < 90 else 0.0
    keep = 1 - factor / 2 if max(fill) < 90 else factor
    red, green, blue = (round(keep * value + towards) for value in fill)
    return red, green, blue
