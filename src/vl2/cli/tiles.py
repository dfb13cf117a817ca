"""`vl2 tiles`: how pictures are cut, and how many tokens that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2.cli import options
from vl2.cli.pictures import (
    check_picture_target,
    open_picture,
    policy_of,
    save_png,
    side_by_side,
    stacked,
)
from vl2.cli.terminal import note, show

if TYPE_CHECKING:
    from PIL import Image

    from vl2.processing.processor import Processor

RULES = ("released", "content")


def tiles(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    model: options.Model = "nano",
    as_json: options.Json = False,
    save: options.Save = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Show how a model cuts pictures: by the released rule and by their content.

    Every picture is taken as if it were asked about alone; with more than two in one conversation
    the released rule cuts none of them. --save draws both layouts side by side.
    """
    from vl2.model_folder import resolve
    from vl2.processing.processor import Processor

    check_picture_target(save)
    pictures = [open_picture(path, policy_of(max_pixels)) for path in images]
    processor = Processor.from_pretrained(resolve(model, weights=False))
    rows = [_row(*pair, processor) for pair in zip(images, pictures, strict=True)]
    drawn = [_drawn(*pair, processor) for pair in zip(images, pictures, strict=True) if save]
    if not processor.config.max_tiled_images:
        note(f"{model} never cuts pictures (max_tiled_images is 0): every picture is one tile")
    show(json.dumps(rows, ensure_ascii=False) + "\n" if as_json else "".join(map(_line, rows)))
    if save:
        save_png(stacked([side_by_side(pair) for pair in drawn]), save)


def _row(path: Path, picture: Image.Image, processor: Processor) -> dict[str, Any]:
    """Grid and tokens of one picture under both rules."""
    from vl2.processing.tiling import choose_canvas

    layout = processor.layout
    row: dict[str, Any] = {"picture": str(path), "width": picture.width, "height": picture.height}
    for rule in RULES:
        canvas = choose_canvas(picture, layout, rule)
        grid = layout.grid(canvas)
        row[rule] = {"wide": grid.wide, "high": grid.high, "tokens": layout.tokens(canvas)}
    return row


def _drawn(path: Path, picture: Image.Image, processor: Processor) -> list[Image.Image]:
    """Both layouts.

    Raises:
        ValueError: the picture cannot be fitted into the model's view, with its name.
    """
    try:
        return [processor.draw_layout(picture, rule) for rule in RULES]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _line(row: dict[str, Any]) -> str:
    cuts = "; ".join(
        "{} {wide} x {high} tiles, {tokens} tokens".format(rule, **row[rule]) for rule in RULES
    )
    return f"{row['picture']} ({row['width']} x {row['height']} pixels): {cuts}\n"
