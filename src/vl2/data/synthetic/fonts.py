"""Fonts in use: split by family, loaded once per size, and what a reader can tell apart in them."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HELDOUT_SHARE = 0.15
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"
CAPITALS_ONLY = ("AllerDisplay", "Amatic-Bold", "AmaticSC-Regular", "BEBAS___")
"""Fonts that draw lower-case letters as capitals."""
REGULAR_WEIGHT = 400
PROBE_SIZE = 200
"""Font size in pixels at which a font is measured once for all sizes."""
MIN_SPACE = 0.28
"""Width of a space in font sizes; narrow fonts have spaces that nobody would notice."""
TWIN_OVERLAP = 0.8
"""Two glyphs that overlap at least this much (ink in common over ink in either) look the same."""

Font = ImageFont.FreeTypeFont


def font_split(paths: Iterable[Path], split: str) -> list[Path]:
    """The fonts of one split, "train" or "heldout"; a family is never in both.

    The choice depends on the family's name alone, so that adding fonts moves none.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}; use 'train' or 'heldout'")
    return [path for path in paths if _is_heldout(family(path)) == (split == "heldout")]


def family(path: Path) -> str:
    """The family of a font file: its name's first word, so that close relatives stay together."""
    match = re.match(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^_\W]+", path.stem)
    return (match.group() if match else path.stem).lower()


@lru_cache(maxsize=64)
def by_family(fonts: tuple[Path | None, ...]) -> tuple[tuple[Path | None, ...], ...]:
    """The fonts grouped by family, in a fixed order; None, the built-in font, is one of its own."""
    groups: dict[str, list[Path | None]] = {}
    for path in sorted((font for font in fonts if font), key=lambda path: path.name):
        groups.setdefault(family(path), []).append(path)
    if None in fonts:
        groups[""] = [None]
    return tuple(tuple(group) for group in groups.values())


@lru_cache(maxsize=4096)
def load_font(path: Path | None, size: int) -> Font:
    """The font file at `size` pixels per em, or Pillow's built-in font when `path` is None.

    Variable fonts are set to regular weight; some of them start at their thinnest.
    """
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow has no FreeType; install Pillow from a PyPI wheel")
        return font
    font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    if "wght" in path.stem:
        weights = [
            float(REGULAR_WEIGHT if axis.get("name") == b"Weight" else axis["default"] or 0)
            for axis in font.get_variation_axes()
        ]
        font.set_variation_by_axes(weights)
    return font


@lru_cache(maxsize=4096)
def capital_height(path: Path | None) -> float:
    """Height of a capital H as a fraction of the font size."""
    _, top, _, bottom = load_font(path, PROBE_SIZE).getbbox("H")
    return (bottom - top) / PROBE_SIZE


@lru_cache(maxsize=4096)
def line_height(path: Path | None) -> float:
    """Height from the highest letter to the lowest tail as a fraction of the font size."""
    _, top, _, bottom = load_font(path, PROBE_SIZE).getbbox(LETTERS)
    return (bottom - top) / PROBE_SIZE


@lru_cache(maxsize=2**17)
def advance(path: Path | None, char: str, following: str) -> float:
    """From the start of `char` to that of `following` (may be empty), in font sizes."""
    font = load_font(path, PROBE_SIZE)
    length = (font.getlength(char + following) - font.getlength(following)) / PROBE_SIZE
    return max(length, MIN_SPACE) if char == " " else length


@lru_cache(maxsize=4096)
def look_alike(path: Path | None, first: str, second: str) -> bool:
    """Whether two characters are drawn so alike that nobody can tell them apart."""
    boxes = [_ink(load_font(path, 64), char) for char in (first, second)]
    height = max(box.shape[0] for box in boxes)
    width = max(box.shape[1] for box in boxes)
    one, two = (_centred(box, height, width) for box in boxes)
    return bool((one & two).sum() >= TWIN_OVERLAP * (one | two).sum())


def _is_heldout(family_name: str) -> bool:
    digest = hashlib.sha256(f"vl2 fonts 8 {family_name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_SHARE


def _ink(font: Font, char: str) -> np.ndarray:
    layer = Image.new("L", (128, 128))
    ImageDraw.Draw(layer).text((32, 32), char, fill=255, font=font)
    pixels = np.asarray(layer) > 127
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centred(ink: np.ndarray, height: int, width: int) -> np.ndarray:
    down, across = height - ink.shape[0], width - ink.shape[1]
    return np.pad(ink, ((down // 2, down - down // 2), (across // 2, across - across // 2)))
