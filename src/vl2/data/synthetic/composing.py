"""Draw one scene: a size, a background, then the objects that its kind asks for."""

import numpy as np

from vl2.data.synthetic.augment import augmented
from vl2.data.synthetic.backgrounds import draw_background
from vl2.data.synthetic.board import Board
from vl2.data.synthetic.chance import chance, pick_weighted
from vl2.data.synthetic.scene import SCENE_KINDS, Scene, SceneRecipe, Size
from vl2.data.synthetic.shape_objects import add_counted, add_shapes
from vl2.data.synthetic.text_objects import add_snippet, add_text

MIN_SIDE, MAX_SIDE = 80, 230
"""Pixels, of pictures whose size is free."""
MAX_SHAPES_BESIDE_TEXT = 2
CROWD = 12
"""Objects that a crowd tries to place."""


def draw_scene(rng: np.random.Generator, *, recipe: SceneRecipe) -> Scene:
    """One random scene; the same generator state gives the same bytes.

    Raises:
        ValueError: the recipe names an unknown kind of scene, style of text or split.
    """
    kind = pick_weighted(rng, recipe.kinds)
    pixels, background = draw_background(rng, _size(rng, recipe), split=recipe.split)
    board = Board(pixels)
    font, smallest = "", recipe.min_shape
    if kind == "text":
        font = add_text(rng, board, recipe, short=False)
    elif kind == "shapes":
        number = int(rng.integers(recipe.min_shapes, recipe.max_shapes + 1))
        add_shapes(rng, board, number, smallest=smallest)
    elif kind == "count":
        add_counted(rng, board, recipe.max_count, smallest=smallest)
    elif kind == "mixed":
        font = add_text(rng, board, recipe, short=True)
        add_shapes(rng, board, int(rng.integers(1, MAX_SHAPES_BESIDE_TEXT + 1)), smallest=smallest)
    elif kind == "crowd":
        add_crowd(rng, board, recipe)
    else:
        raise ValueError(f"unknown scene kind {kind!r}; use one of {SCENE_KINDS}")
    image = augmented(rng, board.image) if chance(rng, recipe.augment) else board.image
    return Scene(
        image=image, objects=tuple(board.objects), kind=kind, font=font, background=background
    )


def add_crowd(rng: np.random.Generator, board: Board, recipe: SceneRecipe) -> None:
    """Fill the board with characters and shapes: many labels for one picture."""
    for _ in range(CROWD):
        if chance(rng, 0.65):
            add_snippet(rng, board, recipe)
        else:
            add_shapes(rng, board, 1, smallest=recipe.min_shape)


def _size(rng: np.random.Generator, recipe: SceneRecipe) -> Size:
    size = pick_weighted(rng, recipe.sizes)
    if size is not None:
        return size
    return int(rng.integers(MIN_SIDE, MAX_SIDE + 1)), int(rng.integers(MIN_SIDE, MAX_SIDE + 1))
