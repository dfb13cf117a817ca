"""A picture as tiles: the global view first, then the local tiles row by row.

Source: DeepSeek-VL2 paper section 2 and the released processor (`ImageOps.pad`, bicubic). Without
torch, so that a process can cut pictures for another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vl2 import geometry
from vl2.geometry import Resolution
from vl2.processing.adaptive import choose_by_content
from vl2.processing.image_gate import Admitted, ImageError
from vl2.processing.layout import TileLayout

Tiling = Literal["released", "content"]


def choose_canvas(
    image: Image.Image, layout: TileLayout, tiling: Tiling = "released"
) -> Resolution:
    """Canvas of the local view: the released rule, or the cheaper one that keeps the detail."""
    if tiling == "content":
        return choose_by_content(image, layout)
    return geometry.select_resolution(image.size, layout.candidates)


def cut_views(image: Image.Image, canvas: Resolution, layout: TileLayout) -> list[Image.Image]:
    """The global view, then the tiles of the canvas, row by row.

    Raises:
        ImageError: ("too_thin") nothing of the picture would be left in any view.
    """
    _check_thickness(image.size, (layout.one_tile, canvas))
    whole = ImageOps.pad(image, layout.one_tile, color=layout.fill)
    local = ImageOps.pad(image, canvas, color=layout.fill)
    size = layout.image_size
    corners = [(x, y) for y in range(0, canvas[1], size) for x in range(0, canvas[0], size)]
    return [whole, *(local.crop((x, y, x + size, y + size)) for x, y in corners)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """One picture as the model sees it; the processor takes it in place of a picture."""

    tiles: UInt8[ndarray, "tiles size size 3"]  # RGB, the global view first
    canvas: Resolution
    sent: Resolution  # (width, height) of the picture, to which boxes refer
    notes: tuple[str, ...] = ()


def views_of(
    picture: Admitted, layout: TileLayout, tiling: Tiling = "released", *, whole: bool = False
) -> Views:
    """Cut an admitted picture; `whole` leaves it in one tile beside the global view.

    Raises:
        ImageError: ("too_thin") nothing of the picture would be left in any view.
    """
    image = picture.image
    canvas = layout.one_tile if whole else choose_canvas(image, layout, tiling)
    return Views(
        tiles=np.stack([np.asarray(view) for view in cut_views(image, canvas, layout)]),
        canvas=canvas,
        sent=picture.sent,
        notes=picture.notes,
    )


def draw_layout(
    image: Image.Image, layout: TileLayout, tiling: Tiling = "released", *, max_side: int = 1200
) -> Image.Image:
    """A drawing of the global view and of the canvas with its tile edges, with the token count.

    Args:
        image: RGB, any size.
        layout: the processor's.
        tiling: which rule chooses the canvas.
        max_side: the canvas is drawn at most this wide and high.

    Raises:
        ImageError: ("too_thin") nothing of the picture would be left in any view.
    """
    canvas = choose_canvas(image, layout, tiling)
    views = cut_views(image, canvas, layout)
    grid = layout.grid(canvas)
    tile = max(8, min(max(layout.image_size, 256), max_side // max(grid.wide, grid.high)))
    gap, line = max(3, tile // 64), max(16, min(28, tile // 12))
    font = ImageFont.load_default(line * 0.8)
    captions = _captions(image.size, canvas, layout, tiling)
    wide = tile * (grid.wide + 1) + gap * (grid.wide - 1) + line
    wide = max(wide, *(int(font.getlength(text)) for text in captions))
    high = tile * grid.high + gap * (grid.high - 1)
    sheet = Image.new("RGB", (wide + 2 * line, high + 4 * line), "white")
    pen = ImageDraw.Draw(sheet)
    for row, text in enumerate(captions):
        pen.text((line, line * (0.4 + 1.2 * row)), text, "black", font)
    local = [(x, y) for y in range(grid.high) for x in range(grid.wide)]
    spots = [(2 * line + tile + (tile + gap) * x, 3 * line + (tile + gap) * y) for x, y in local]
    for number, (view, (x, y)) in enumerate(zip(views, [(line, 3 * line), *spots], strict=True)):
        sheet.paste(view.resize((tile, tile)), (x, y))
        pen.rectangle((x - 1, y - 1, x + tile, y + tile), outline="red" if number else "blue")
    return sheet


def _captions(
    size: Resolution, canvas: Resolution, layout: TileLayout, tiling: Tiling
) -> tuple[str, str]:
    grid = layout.grid(canvas)
    tiles = f"{grid.wide} x {grid.high} tiles" if grid.local_tiles > 1 else "1 tile"
    return (
        f"{tiling}: {layout.tokens(canvas)} tokens, global view and {tiles}",
        f"{size[0]} x {size[1]} on {canvas[0]} x {canvas[1]} pixels",
    )


def _check_thickness(size: Resolution, canvases: Sequence[Resolution]) -> None:
    """`ImageOps.contain` rounds a side to zero for extreme shapes, which leaves an empty view."""
    for wide, high in canvases:
        flat = size[0] / size[1] > wide / high
        side = size[1] / size[0] * wide if flat else size[0] / size[1] * high
        if round(side) >= 1:
            return
    raise ImageError("too_thin")
