"""Damage as cameras and scanners do it, for robust training: the picture keeps its size.

The embedded model's synthetic pictures have their own, lighter kinds: they are as large as one
tile, while a photograph is scaled down before the model sees it, and what is to be seen after that
has to grow with its size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

VIEW = 1024
"""Side in pixels at which a picture is about looked at; lengths count from there."""

_JPEG_MAX_SIDE = 65_500


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """The share of the pictures that is damaged, drawn from a seed."""

    share: float  # 0 to 1
    seed: tuple[int, ...]  # for instance (seed of the run, source, row)

    def of(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures of one record, some of them damaged."""
        rng = np.random.default_rng(self.seed)
        return [damaged(rng, image) if rng.random() < self.share else image for image in images]


def damaged(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """An RGB picture after one of five kinds of damage, in three of ten cases after a second."""
    first, second = rng.permutation(len(_KINDS))[:2]
    image = _KINDS[int(first)](rng, image)
    return _KINDS[int(second)](rng, image) if rng.random() < 0.3 else image


def _unit(image: Image.Image) -> float:
    """Pixels of the picture for one of the view."""
    return max(1.0, max(image.size) / VIEW)


def _blurred(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3) * _unit(image)))


def _compressed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    quality = int(rng.integers(30, 90))
    if max(image.size) > _JPEG_MAX_SIDE:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as decoded:
        return decoded.convert("RGB")


def _noisy(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    sigma = np.float32(rng.uniform(3.0, 12.0) * _unit(image))
    pixels += sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _darkened(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    gain = rng.uniform(0.3, 0.85)
    return image.point([round(value * gain) for value in range(256)] * 3)


def _coarse(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    factor = rng.uniform(0.45, 0.9) / _unit(image)
    wide, high = (max(1, round(side * factor)) for side in image.size)
    small = image.resize((wide, high), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


_KINDS = (_blurred, _compressed, _noisy, _darkened, _coarse)
