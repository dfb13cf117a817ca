"""Random strings to draw: codes, words and short lines."""

from collections.abc import Callable

import numpy as np

from vl2.data.synthetic.chance import chance, pick

Style = Callable[[np.random.Generator, tuple[str, ...]], str]
"""(rng, words) -> text."""

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
MIXED = "ABDEFGHJKLMNPQRTY23456789abdefghijkmnqrtuy"
"""Letters whose case and name can be told from one glyph: no O and 0, I and l, c and C."""


def _characters(rng: np.random.Generator, alphabet: str, low: int, high: int) -> str:
    length = int(rng.integers(low, high + 1))
    return "".join(alphabet[int(i)] for i in rng.integers(len(alphabet), size=length))


def _word(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    word, case = pick(rng, words), rng.random()
    if case < 0.5:
        return word
    return word.capitalize() if case < 0.75 else word.upper()


def _line(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    text = " ".join(pick(rng, words) for _ in range(int(rng.integers(2, 4))))
    if chance(rng, 0.4):
        return text
    return text.capitalize() if chance(rng, 0.7) else text.upper()


TEXT_STYLES: dict[str, Style] = {
    "code": lambda rng, words: _characters(rng, CAPITALS + DIGITS, 1, 3),
    "long code": lambda rng, words: _characters(rng, CAPITALS + DIGITS, 4, 8),
    "lower code": lambda rng, words: _characters(rng, LOWER, 2, 6),
    "mixed code": lambda rng, words: _characters(rng, MIXED, 1, 8),
    "word": _word,
    "line": _line,
}


def random_text(rng: np.random.Generator, style: str, words: tuple[str, ...]) -> str:
    """A text of the style, one of `TEXT_STYLES`."""
    if style not in TEXT_STYLES:
        raise ValueError(f"unknown text style {style!r}; use one of {sorted(TEXT_STYLES)}")
    return TEXT_STYLES[style](rng, words)
