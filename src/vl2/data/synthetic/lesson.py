"""Labelled pictures of something that no other synthetic picture shows: a crescent moon.

They stand in for a user's own pictures wherever a model is taught a new object.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vl2.geometry import PixelBox

SIDE = 112
OBJECT = "moon"


def draw_lesson(folder: Path, pictures: int, seed: int) -> Path:
    """Draw pictures into `folder` and label them; returns the file with the labels.

    Each shows a moon beside a square or a disc. The file is a list of
    {"image": name, "objects": [{"label": "moon", "box": [x1, y1, x2, y2]}]}, boxes in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(pictures):
        picture, box = draw_moon(rng)
        picture.save(folder / f"{number:03d}.png")
        objects = [{"label": OBJECT, "box": list(box)}]
        rows.append({"image": f"{number:03d}.png", "objects": objects})
    labels = folder / "labels.json"
    labels.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return labels


def draw_moon(rng: np.random.Generator) -> tuple[Image.Image, PixelBox]:
    """A picture with a moon in one quarter and a square or a disc in another; the moon's box."""
    ground = tuple(int(v) for v in rng.integers(205, 256, 3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    half = SIDE // 2
    quarters = rng.permutation([(0, 0), (half, 0), (0, half), (half, half)])
    size = int(rng.integers(32, 46))
    (x, y), (u, v) = ((q + rng.integers(2, half - size, 2)).tolist() for q in quarters[:2])
    other = (pen.rectangle, pen.ellipse)[int(rng.integers(2))]
    other((u, v, u + size, v + size), fill=("blue", "green", "red")[int(rng.integers(3))])
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((0, 0, size - 1, size - 1), fill=255)
    shadow = (round(0.35 * size), -round(0.1 * size), round(1.45 * size), round(1.1 * size))
    ImageDraw.Draw(mask).ellipse(shadow, fill=0)
    picture.paste((235, 160, 20), (x, y), mask)
    left, top, right, bottom = mask.getbbox() or (0, 0, size, size)
    return picture, (x + left, y + top, x + right, y + bottom)
