"""Pixel values of any PIL mode as 8-bit RGB: deep grey, transparency, orientation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Alpha = Literal["white", "drop"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it; 5 to 8 swap width and height."""


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where it is missing or damaged."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF is no reason to refuse the picture
        return 1
    return value if value in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    """A new picture of mode RGB, with no information attached.

    Args:
        image: any mode that PIL can convert. CMYK follows PIL: JPEG is read with Adobe's inverted
            polarity, TIFF as it is.
        alpha: "white" lays transparency on white; "drop" shows the colours that hide behind it.

    Raises:
        ValueError: values that are not finite, or a mode that PIL cannot convert.
    """
    image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        if alpha == "white":
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    rgb.info = {}  # an orientation left here would turn the picture a second time
    return rgb


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits per value as 8 bits; PIL's own conversion saturates them."""
    sixteen = image.mode.startswith("I;16")
    if not sixteen and image.mode not in ("I", "F"):
        return image
    values = np.asarray(image).astype(np.float32 if sixteen else np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite numbers")
    black, white = _black_and_white(image.mode, float(values.min()), float(values.max()))
    values = (values - black) * (255 / (white - black))
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _black_and_white(mode: str, low: float, high: float) -> tuple[float, float]:
    """Which values mean black and white.

    16 bits: 0 and 65535, a scale of 1/257. Integers of 32 bits: 255 or 65535 is white if all
    values fit below. Floats: 0 and 1 if they fit. Anything else is stretched from its least to its
    greatest value.
    """
    usual = {"I": (255.0, 65535.0), "F": (1.0,)}.get(mode, (65535.0,))
    fitting = [white for white in usual if low >= 0 and high <= white]
    if fitting:
        return 0.0, fitting[0]
    return low, high if high > low else low + 1
