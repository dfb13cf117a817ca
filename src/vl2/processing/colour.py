"""Pixel values of any PIL mode as 8-bit RGB: deep grey, transparency, orientation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from vl2.processing.image_error import ImageError

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
_ORIENTATION = 0x0112
_XMP = re.compile(rb"\btiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


def orientation(image: Image.Image) -> int:
    """Orientation by EXIF, else by XMP, 1 to 8; 1 (upright) where it is missing or damaged.

    Of a TIFF that says it in a tag it is 1: PIL turns such a picture by itself.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _ORIENTATION in image.tag_v2:
        return 1
    try:
        exif = image.getexif()
    except Exception:  # damaged EXIF is no reason to refuse the picture
        return 1
    value = exif.get(_ORIENTATION)
    if value is None:  # PIL looks into XMP, too, but misses values in single quotes
        value = _xmp_orientation(image.info)
    return value if value in _TURNS else 1


def told_orientation(image: Image.Image) -> int:
    """Orientation of a picture that is not decoded, as far as its header tells; decodes nothing."""
    if image.format != "PNG":
        return orientation(image)
    header = Image.Image()  # PNG's own getexif would decode the picture to look after it
    header.info = image.info
    return orientation(header)


def _xmp_orientation(info: Mapping[Any, Any]) -> int:
    for key in ("XML:com.adobe.xmp", "xmp"):
        text = info.get(key, b"")
        data = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
        if found := _XMP.search(data):
            return int(found[1])
    return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def transparent_key(image: Image.Image) -> int | tuple[int, ...] | None:
    """The colour of a PNG that stands for transparency, in the values that decoding gives.

    Of a picture that is not decoded yet. PIL keeps the number in the file's own depth, but brings
    grey of 2 and 4 bits, and colours of 16, to 8.
    """
    key = image.info.get("transparency")
    rawmode = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if isinstance(key, int) and rawmode in ("L;2", "L;4"):
        return key * (85 if rawmode == "L;2" else 17)
    if isinstance(key, tuple) and rawmode == "RGB;16B":
        return tuple(value >> 8 for value in key)
    return None


def to_rgb(
    image: Image.Image, alpha: Alpha, key: int | tuple[int, ...] | None = None
) -> Image.Image:
    """A new picture of mode RGB, with no information attached.

    Args:
        image: any mode that PIL can convert. CMYK follows PIL: JPEG is read with Adobe's inverted
            polarity, TIFF as it is.
        alpha: "white" lays transparency on white; "drop" shows the colours that hide behind it.
        key: what `transparent_key` said before the picture was decoded.

    Raises:
        ImageError: values that are not finite.
        ValueError: a mode that PIL cannot convert.
    """
    if key is not None:
        image = image.copy()
        image.info["transparency"] = key
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
    values = np.asarray(image)
    grey = Image.fromarray(eight_bits(values.astype(np.uint16) if sixteen else values))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype("u1"))))


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers of any kind and shape as 8-bit brightness.

    Bytes stay and truth is white. Of 16 bits 65535 is white. Of wider integers 255 or 65535 is
    white, of floats 1 or 255, whichever is the first that no value exceeds. Where none fits, or a
    value is negative, values are stretched from the least to the greatest.

    Raises:
        ImageError: ("not_finite") NaN or infinity.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    floats = values.dtype.kind == "f"
    usual = (
        (65535.0,) if values.dtype == np.uint16 else (1.0, 255.0) if floats else (255.0, 65535.0)
    )
    if floats and not np.isfinite(values).all():
        raise ImageError("not_finite")
    low, high = float(values.min()), float(values.max())
    fitting = [white for white in usual if low >= 0 and high <= white]
    black, white = (0.0, fitting[0]) if fitting else (low, high if high > low else np.inf)
    exact = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    if np.isinf(white - black) and high > low:  # the range of floats overflows, its half does not
        exact, black, white = exact / 2, black / 2, white / 2
    return np.rint((exact - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)
