"""Procedural backgrounds: a pattern in 0..1 that mixes two muted, similar colours."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from vl2.data.synthetic.chance import between, chance, pick
from vl2.data.synthetic.colours import from_hsv

Pattern = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""(rng, x [1, W], y [H, 1]) -> [H, W] float32 in 0..1; x and y are in pixels."""


def _solid(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.zeros((y.shape[0], x.shape[1]), np.float32)


def _along(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = between(rng, 0.0, 2.0 * np.pi)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / max(float(high - low), 1e-6)


def _linear(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _unit(_along(rng, x, y))


def _radial(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centre_x, centre_y = between(rng, 0.0, x.shape[1]), between(rng, 0.0, y.shape[0])
    return _unit(np.sqrt((x - np.float32(centre_x)) ** 2 + (y - np.float32(centre_y)) ** 2))


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = np.float32(between(rng, 5.0, 28.0))
    return ((_along(rng, x, y) / period) % 1 < np.float32(between(rng, 0.2, 0.8))).astype(
        np.float32
    )


def _waves(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = np.float32(between(rng, 8.0, 40.0) / (2 * np.pi))
    return np.float32(0.5) + np.float32(0.5) * np.sin(_along(rng, x, y) / period)


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = between(rng, 5.0, 24.0)
    return ((x // period + y // period) % 2).astype(np.float32)


def _noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return rng.random((y.shape[0], x.shape[1]), dtype=np.float32)


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = between(rng, 6.0, 16.0)
    radius = between(rng, 0.12, 0.3)
    distance = ((x / period) % 1 - 0.5) ** 2 + ((y / period) % 1 - 0.5) ** 2
    return (distance < radius**2).astype(np.float32)


def _grid(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = int(rng.integers(6, 20))
    offset = int(rng.integers(period))
    return (((x + offset) % period < 1) | ((y + offset) % period < 1)).astype(np.float32)


def _rules(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lines = (y + int(rng.integers(20))) % int(rng.integers(8, 20)) < 1
    return np.broadcast_to(lines, (y.shape[0], x.shape[1])).astype(np.float32)


def _blobs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = np.zeros((y.shape[0], x.shape[1]), np.float32)
    for _ in range(int(rng.integers(3, 8))):
        spread = np.float32(2 * between(rng, 8.0, 30.0) ** 2)
        across = np.exp(-((x - np.float32(between(rng, 0.0, x.shape[1]))) ** 2) / spread)
        total += across * np.exp(-((y - np.float32(between(rng, 0.0, y.shape[0]))) ** 2) / spread)
    return _unit(total)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    coarse = rng.random((cells, cells), dtype=np.float32)
    height, width = shape
    resized = Image.fromarray(coarse, "F").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shape = (y.shape[0], x.shape[1])
    octaves = [_smooth_noise(rng, shape, cells) / cells for cells in (3, 6, 12, 24)]
    return _unit(np.asarray(np.sum(octaves, axis=0, dtype=np.float32)))


def _paper(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shape = (y.shape[0], x.shape[1])
    grain = rng.random(shape, dtype=np.float32)
    fibres = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, 2, 1)) / 4
    return _unit(fibres + np.float32(0.5) * _smooth_noise(rng, shape, 4))


def _weave(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = int(rng.integers(3, 7))
    return (((x // period) % 2) * ((y % period) / period) + (y // period) % 2 * 0.5).astype(
        np.float32
    ) / np.float32(1.5)


TRAIN_BACKGROUNDS: dict[str, Pattern] = {
    "solid": _solid,
    "linear gradient": _linear,
    "radial gradient": _radial,
    "stripes": _stripes,
    "waves": _waves,
    "checks": _checks,
    "noise": _noise,
    "dots": _dots,
    "grid": _grid,
    "rules": _rules,
    "blobs": _blobs,
}
HELDOUT_BACKGROUNDS: dict[str, Pattern] = {"clouds": _clouds, "paper": _paper, "weave": _weave}

BACKGROUNDS = {"train": TRAIN_BACKGROUNDS, "heldout": HELDOUT_BACKGROUNDS}


def draw_background(
    rng: np.random.Generator, size: tuple[int, int], *, split: str
) -> tuple[np.ndarray, str]:
    """A [H, W, 3] uint8 background of `size` (width, height) and its family's name.

    Args:
        rng: source of all choices.
        size: width and height in pixels.
        split: "train" or "heldout"; the two share no family.
    """
    if split not in BACKGROUNDS:
        raise ValueError(f"unknown split {split!r}; use one of {sorted(BACKGROUNDS)}")
    families = BACKGROUNDS[split]
    name = pick(rng, tuple(families))
    x = np.arange(size[0], dtype=np.float32)[None]
    y = np.arange(size[1], dtype=np.float32)[:, None]
    mix = families[name](rng, x, y)
    first, second = _colour_pair(rng)
    steps = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    shades = np.rint(first + (second - first) * steps).astype(np.uint8)
    return shades[(mix * np.float32(255)).astype(np.uint8)], name


def _colour_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two muted colours that differ little, mostly light, sometimes dark or in between."""
    hue, saturation = between(rng, 0.0, 1.0), between(rng, 0.0, 0.28)
    value = between(rng, 0.82, 1.0) if chance(rng, 0.7) else between(rng, 0.08, 0.82)
    shift = between(rng, 0.05, 0.16)
    other = value - shift if value > 0.3 else value + shift
    return (
        np.array(from_hsv(hue, saturation, value), np.float32),
        np.array(from_hsv((hue + between(rng, -0.08, 0.08)) % 1.0, saturation, other), np.float32),
    )
