"""Picture files of a command line: opened with their names in errors, drawn side by side, saved."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vl2.folders import names_something

if TYPE_CHECKING:
    from vl2.processing.image_gate import ImagePolicy

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PICTURE_NAME = re.compile(rf"\S+({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)
"""A word of this form is meant as a picture, whether there is such a file or not."""
GAP = 8


def policy_of(max_pixels: int | None) -> ImagePolicy:
    """How pictures of the command line are admitted.

    Raises:
        ValueError: `max_pixels` is below 1.
    """
    from vl2.processing.image_gate import MESSAGES

    if max_pixels is None:
        return MESSAGES
    if max_pixels < 1:
        raise ValueError(f"--max-pixels is {max_pixels}: expected at least 1")
    return replace(MESSAGES, max_pixels=max_pixels)


def open_picture(path: Path, policy: ImagePolicy | None = None) -> Image.Image:
    """The picture of a file through the image gate; what a user should know goes to stderr.

    Raises:
        ValueError: the file is missing, a folder or no whole picture, with its name.
    """
    from vl2.processing.image_gate import MESSAGES, ImageError, admit

    if not names_something(path):
        raise ValueError(f"{path}: no such file: give the path of a picture")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder: give a picture, or add --each to vl2 ask")
    try:
        admitted = admit(path, policy or MESSAGES)
    except ImageError as error:
        told = str(error).replace("raise max_pixels", "raise --max-pixels")
        raise ValueError(f"{path}: {told}") from None
    for note in admitted.notes:
        print(f"{path}: {note}", file=sys.stderr)
    return admitted.image


def check_picture_target(path: Path | None, option: str = "--save") -> None:
    """Refuse a place where no PNG can be written before any work is done for it.

    Raises:
        ValueError: the name does not end in .png, or its folder does not exist.
    """
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise ValueError(f"{option} {path}: only PNG is written: give a name that ends in .png")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: no folder {path.parent}: make it first")
    if path.is_dir():
        raise ValueError(f"{option} {path}: this is a folder: give a file name")


def save_png(image: Image.Image, path: Path) -> None:
    """Write the drawing and say so on stderr."""
    image.save(path, format="PNG")
    print(f"wrote {path}", file=sys.stderr)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row on white, tops aligned."""
    wide = sum(image.width for image in images) + GAP * (len(images) - 1)
    sheet = Image.new("RGB", (wide, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    return sheet


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white, left sides aligned."""
    high = sum(image.height for image in images) + GAP * (len(images) - 1)
    sheet = Image.new("RGB", (max(image.width for image in images), high), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + GAP
    return sheet
