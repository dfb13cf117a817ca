"""Names in sentences: articles, plurals, lists with numbers; names of colours and of places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vl2.data.make.sheet import Colour
from vl2.geometry import PixelBox

COLOURS: dict[str, tuple[Colour, Colour]] = {
    "red": ((200, 0, 0), (240, 45, 45)),
    "orange": ((240, 120, 0), (255, 160, 30)),
    "yellow": ((240, 215, 0), (255, 245, 70)),
    "green": ((0, 120, 0), (60, 190, 80)),
    "blue": ((0, 40, 170), (50, 120, 245)),
    "purple": ((110, 20, 140), (160, 60, 200)),
    "pink": ((250, 130, 170), (255, 180, 210)),
    "brown": ((95, 50, 15), (130, 75, 35)),
    "black": ((0, 0, 0), (25, 25, 25)),
    "white": ((248, 248, 248), (255, 255, 255)),
    "grey": ((115, 115, 115), (150, 150, 150)),
}
"""From one colour to another, channel by channel, all called by one name."""
PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

_VOWEL = re.compile("(?!uni(?![nm])|util|use|eu)[aeiou]|hourglass", re.IGNORECASE)
"""How names begin that have the article "an"."""


def place_name(box: PixelBox, size: tuple[int, int]) -> str | None:
    """Where in a 3 x 3 grid the middle lies; None near one of its lines."""
    at = []
    for k in (0, 1):
        share = (box[k] + box[k + 2]) / 2 / size[k]
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < 0.04:
            return None
        at.append(int(share * 3))
    return PLACES[min(at[1], 2)][min(at[0], 2)]


def plural(name: str) -> str:
    """More than one of a name, by the rule."""
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if re.search("[^aeiou]y$", name) else f"{name}s"


def one(name: str) -> str:
    """A name with its article."""
    return f"{'an' if _VOWEL.match(name) else 'a'} {name}"


def listed(names: Sequence[str]) -> str:
    """Names with their numbers: "a red circle and two blue stars"."""
    return joined(
        [
            one(name) if count == 1 else f"{NUMBERS[min(count, 8)]} {plural(name)}"
            for name, count in Counter(names).items()
        ]
    )


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence with commas and an "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalised(text: str) -> str:
    """A text that begins with a capital."""
    return f"{text[0].upper()}{text[1:]}"


def shade(rng: np.random.Generator, name: str) -> Colour:
    """A colour that is called by this name."""
    low, high = COLOURS[name]
    mix = rng.random()
    red, green, blue = (round(a + (b - a) * mix) for a, b in zip(low, high, strict=True))
    return red, green, blue
