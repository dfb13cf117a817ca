"""Per-patch targets for warming up a vision tower on synthetic scenes."""

import numpy as np

from vl2.data.synthetic.colours import COLOURS
from vl2.data.synthetic.fonts import LETTERS
from vl2.data.synthetic.scene import Scene
from vl2.data.synthetic.shapes import SHAPES
from vl2.geometry import PixelBox

FloatBox = tuple[float, float, float, float]


def dense_labels(scene: Scene, *, image_size: int, patch: int) -> dict[str, np.ndarray]:
    """What lies under the centre of each patch once the picture is padded to a square tile.

    The picture is fitted as `PIL.ImageOps.pad` fits it: aspect kept, centred.

    Args:
        scene: the scene, boxes in pixels of its own picture.
        image_size: side of the square tile in pixels.
        patch: side of a patch; the grid has g = image_size // patch patches a side.

    Returns:
        `shape_id`, `colour_id`, `char_id`: int64 [g, g], 0 for nothing, else 1 + the index in
        `SHAPES`, `COLOURS`, `LETTERS`; `box`: float32 [g, g, 4], the left, top, right and bottom
        edge of the object (shape or whole text) relative to the patch centre, in units of
        image_size, 0 for nothing.
    """
    grid = image_size // patch
    labels = {key: np.zeros((grid, grid), np.int64) for key in ("shape_id", "colour_id", "char_id")}
    boxes = np.zeros((grid, grid, 4), np.float32)
    centres = (np.arange(grid, dtype=np.float32) + np.float32(0.5)) * np.float32(patch)
    nearest = np.full((grid, grid), np.inf, np.float32)
    for item in scene.objects:
        box = fitted_box(item.box, scene.image.size, image_size)
        rows, columns = _covered(box, centres)
        if item.shape:
            labels["shape_id"][rows, columns] = 1 + SHAPES.index(item.shape)
        labels["colour_id"][rows, columns] = 1 + COLOURS.index(item.colour) if item.colour else 0
        edges = np.array(box, np.float32) / np.float32(image_size)
        here_x, here_y = centres[columns] / image_size, centres[rows] / image_size
        boxes[rows, columns, 0::2] = edges[0::2] - here_x[None, :, None]
        boxes[rows, columns, 1::2] = edges[1::2] - here_y[:, None, None]
        for char in item.chars:
            fitted = fitted_box(char.box, scene.image.size, image_size)
            _mark_char(labels["char_id"], nearest, centres, fitted, 1 + LETTERS.index(char.char))
    return {**labels, "box": boxes}


def fitted_box(box: PixelBox, size: tuple[int, int], image_size: int) -> FloatBox:
    """A box of a picture of `size` (width, height) on the padded square tile, in pixels."""
    width, height = size
    new_width, new_height = image_size, image_size
    if width > height:
        new_height = round(height / width * image_size)
    elif height > width:
        new_width = round(width / height * image_size)
    left, top = round((image_size - new_width) * 0.5), round((image_size - new_height) * 0.5)
    across, down = new_width / width, new_height / height
    x1, y1, x2, y2 = box
    return left + x1 * across, top + y1 * down, left + x2 * across, top + y2 * down


def _covered(box: FloatBox, centres: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the patches whose centres the box contains."""
    left, top, right, bottom = box
    first_row, last_row = np.searchsorted(centres, [top, bottom])
    first_column, last_column = np.searchsorted(centres, [left, right])
    return slice(int(first_row), int(last_row)), slice(int(first_column), int(last_column))


def _mark_char(
    char_ids: np.ndarray, nearest: np.ndarray, centres: np.ndarray, box: FloatBox, value: int
) -> None:
    """Give the character's patches its id, except where another character's centre is nearer."""
    rows, columns = _covered(box, centres)
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    distance = np.hypot(centres[columns][None] - middle_x, centres[rows][:, None] - middle_y)
    closer = distance < nearest[rows, columns]
    char_ids[rows, columns][closer] = value
    nearest[rows, columns][closer] = distance[closer]
