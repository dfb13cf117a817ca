"""Named colours, their jitter, and how different two colours look."""

import colorsys
from collections.abc import Sequence

import numpy as np

from vl2.data.synthetic.chance import between

Colour = tuple[int, int, int]

COLOUR_RANGES: dict[str, tuple[float, float, float, float, float, float]] = {
    # hue in degrees from..to, saturation from..to, value from..to
    "red": (-5, 5, 0.80, 1.0, 0.72, 0.92),
    "orange": (25, 33, 0.88, 1.0, 0.94, 1.0),
    "yellow": (51, 57, 0.75, 1.0, 0.92, 1.0),
    "green": (108, 145, 0.65, 1.0, 0.45, 0.75),
    "blue": (208, 223, 0.75, 1.0, 0.62, 0.95),
    "purple": (277, 290, 0.65, 0.9, 0.45, 0.72),
    "pink": (326, 344, 0.32, 0.50, 0.96, 1.0),
    "brown": (21, 30, 0.65, 0.85, 0.32, 0.46),
    "black": (0, 360, 0.0, 0.2, 0.0, 0.10),
    "white": (0, 360, 0.0, 0.02, 0.97, 1.0),
    "grey": (0, 360, 0.0, 0.04, 0.45, 0.60),
}
COLOURS: tuple[str, ...] = tuple(COLOUR_RANGES)

_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
) / np.array([[0.9505], [1.0], [1.089]], np.float32)
_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], np.float32)


def jittered(rng: np.random.Generator, name: str) -> Colour:
    """A shade of the named colour that nobody would call by another name here."""
    hue_low, hue_high, sat_low, sat_high, val_low, val_high = COLOUR_RANGES[name]
    hue = between(rng, hue_low, hue_high) / 360 % 1.0
    return from_hsv(hue, between(rng, sat_low, sat_high), between(rng, val_low, val_high))


def from_hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB 0..255 of a colour given in HSV, each 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB values 0..255, last axis 3."""
    linear = (np.asarray(rgb, np.float32) / 255) ** 2.2
    xyz = linear @ _TO_XYZ.T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return root @ _TO_LAB.T - np.array([16, 0, 0], np.float32)


def sampled_lab(pixels: np.ndarray, step: int = 8) -> np.ndarray:
    """L*a*b* of every `step`-th pixel of an [H, W, 3] picture, as [n, 3]."""
    return lab(pixels[step // 2 :: step, step // 2 :: step].reshape(-1, 3))


def contrasts(colours: Sequence[Colour], samples: np.ndarray) -> list[float]:
    """Difference (CIE76) of each colour to the closest tenth of the L*a*b* samples [n, 3]."""
    distances = np.sqrt(((lab(np.array(colours))[:, None] - samples) ** 2).sum(-1))
    tenth = len(samples) // 10
    return np.partition(distances, tenth, axis=1)[:, tenth].tolist()


def lightness_contrast(colour: Colour, samples: np.ndarray) -> float:
    """Difference in L* (0..100) of a colour to the closest tenth of the samples [n, 3]."""
    distances = np.abs(samples[:, 0] - lab(np.array(colour))[0])
    tenth = len(samples) // 10
    return float(np.partition(distances, tenth)[tenth])
