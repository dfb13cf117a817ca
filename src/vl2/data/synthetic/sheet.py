"""Scenes side by side with their boxes, for looking at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vl2.data.synthetic.scene import Scene

SCALE = 2
"""Enlargement of each picture on the sheet."""


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """The scenes in a grid, doubled, with green object boxes and magenta character boxes."""
    cell_width = max(scene.image.width for scene in scenes) * SCALE + 6
    cell_height = max(scene.image.height for scene in scenes) * SCALE + 18
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, scene in enumerate(scenes):
        x, y = index % columns * cell_width + 3, index // columns * cell_height + 15
        size = (scene.image.width * SCALE, scene.image.height * SCALE)
        sheet.paste(scene.image.resize(size, Image.Resampling.NEAREST), (x, y))
        names = ", ".join(item.name for item in scene.objects)
        draw.text((x, y - 13), f"{scene.background}: {names} {scene.font}"[:90], fill="black")
        for item in scene.objects:
            for char in item.chars:
                draw.rectangle(_outline(char.box, x, y), outline="magenta")
            draw.rectangle(_outline(item.box, x, y), outline="lime")
    return sheet


def _outline(box: tuple[int, int, int, int], x: int, y: int) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (edge * SCALE for edge in box)
    return x + x1 - 1, y + y1 - 1, x + x2, y + y2
