"""Random strings to draw: codes, words and short lines, such that a reader can be sure of them."""

from pathlib import Path

import numpy as np

from vl2.data.synthetic.chance import chance, pick
from vl2.data.synthetic.fonts import CAPITALS_ONLY, look_alike

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
MIXED = "ABDEFGHJKLMNPQRTY23456789abdefghijkmnrtuy"
"""Letters whose case and name can be told from one glyph: no O and 0, I and l, C and c."""
CASELESS = "cosuvwxz"
"""Lower-case letters that look like small capitals; alone they do not show their case."""

TEXT_STYLES: tuple[str, ...] = ("code", "long code", "lower code", "mixed code", "word", "line")


def random_text(
    rng: np.random.Generator, style: str, *, words: tuple[str, ...], font: Path | None
) -> str:
    """A text to draw in `font`.

    Args:
        rng: source of all choices.
        style: "code" is 1-3 capitals and digits, "long code" 4-8; "lower code" is 2-6 lower-case
            letters; "mixed code" is 1-8 of all three; "word" is one of `words`, "line" two or
            three, in lower case, with a capital, or all in capitals.
        words: lower-case words to choose from.
        font: what cannot be told apart in it, like O and 0, is not asked for.
    """
    if style == "word":
        text = _cased(rng, pick(rng, words))
    elif style == "line":
        text = _cased(rng, " ".join(pick(rng, words) for _ in range(int(rng.integers(2, 4)))))
    elif style == "code":
        text = _canonical(_characters(rng, CAPITALS + DIGITS, 1, 3), font)
    elif style == "long code":
        text = _canonical(_characters(rng, CAPITALS + DIGITS, 4, 8), font)
    elif style == "lower code":
        text = _lower_code(rng)
    elif style == "mixed code":
        text = _characters(rng, MIXED, 1, 8)
    else:
        raise ValueError(f"unknown text style {style!r}; use one of {TEXT_STYLES}")
    return text.upper() if font is not None and font.stem in CAPITALS_ONLY else text


def _characters(rng: np.random.Generator, alphabet: str, low: int, high: int) -> str:
    length = int(rng.integers(low, high + 1))
    return "".join(alphabet[int(i)] for i in rng.integers(len(alphabet), size=length))


def _lower_code(rng: np.random.Generator) -> str:
    text = _characters(rng, LOWER, 2, 6)
    while all(char in CASELESS for char in text):
        text = _characters(rng, LOWER, 2, 6)
    return text


def _cased(rng: np.random.Generator, text: str) -> str:
    if chance(rng, 0.5):
        return text
    return text.capitalize() if chance(rng, 0.5) else text.upper()


def _canonical(text: str, font: Path | None) -> str:
    """The text with 0 for O and 1 for I where the font draws the two alike."""
    if look_alike(font, "O", "0"):
        text = text.replace("O", "0")
    return text.replace("I", "1") if look_alike(font, "I", "1") else text
