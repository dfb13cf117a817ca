"""The picture in the making: its pixels, the taken places and the objects drawn so far."""

import numpy as np
from PIL import Image

from vl2.data.synthetic.colours import sampled_lab
from vl2.data.synthetic.scene import SceneObject, Size
from vl2.geometry import PixelBox

GAP = 3
"""Pixels left free between two objects."""
ATTEMPTS = 40


class Board:
    """A background on which objects are placed one after another."""

    def __init__(self, pixels: np.ndarray) -> None:
        """Start from background pixels, uint8 [H, W, 3]."""
        self.image = Image.fromarray(pixels, "RGB")
        self.behind = sampled_lab(pixels)
        self.objects: list[SceneObject] = []

    def free_place(self, rng: np.random.Generator, size: Size) -> tuple[int, int] | None:
        """A random top left corner where a box of `size` touches nothing, or None."""
        across, down = self.image.width - size[0], self.image.height - size[1]
        if across < 2 or down < 2:
            return None
        taken = [item.box for item in self.objects]
        for _ in range(ATTEMPTS):
            x, y = int(rng.integers(1, across)), int(rng.integers(1, down))
            if not any(_near((x, y, x + size[0], y + size[1]), box) for box in taken):
                return x, y
        return None

    def add(self, item: SceneObject) -> None:
        """Note an object that was drawn."""
        self.objects.append(item)


def _near(a: PixelBox, b: PixelBox) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def size_word(length: int, *, small: int, big: int) -> str:
    """One of "small", "medium" and "big" for a length in pixels."""
    return "small" if length < small else "big" if length > big else "medium"
