"""Light damage that keeps a picture legible: blur, noise, JPEG, brightness."""

import io

import numpy as np
from PIL import Image, ImageFilter

from vl2.data.synthetic.chance import between


def augmented(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The picture after one or two of the four kinds of damage."""
    first, second = rng.permutation(4)[:2]
    image = _DAMAGES[int(first)](rng, image)
    return _DAMAGES[int(second)](rng, image) if rng.random() < 0.3 else image


def _blurred(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(between(rng, 0.3, 0.8)))


def _noisy(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    sigma = np.float32(between(rng, 2.0, 9.0))
    pixels += sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _compressed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(55, 95)))
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def _dimmed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    gain = between(rng, 0.88, 1.1)
    return image.point([min(255, round(value * gain)) for value in range(256)] * 3)


_DAMAGES = (_blurred, _noisy, _compressed, _dimmed)
