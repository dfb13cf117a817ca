"""Draws from a numpy generator that are cheaper than `Generator.choice`, and phrasings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def pick_weighted(rng: np.random.Generator, options: Mapping[T, float]) -> T:
    """One of the keys, likely as its value says; the values need not sum to one."""
    point = float(rng.random()) * sum(options.values())
    names = list(options)
    for option in names:
        point -= options[option]
        if point < 0:
            return option
    return names[-1]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return float(rng.random()) < probability


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A float drawn evenly from [low, high)."""
    return low + (high - low) * float(rng.random())


def log_between(rng: np.random.Generator, low: float, high: float) -> float:
    """A float from [low, high), small ones as likely as large ones by ratio."""
    return float(low * (high / low) ** float(rng.random()))


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return int(rng.integers(low, high + 1))


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """The items in random order."""
    return [items[int(i)] for i in rng.permutation(len(items))]


def some(rng: np.random.Generator, items: Sequence[T], most: int) -> list[T]:
    """At most `most` different items in random order."""
    return shuffled(rng, items)[:most]


def phrase(rng: np.random.Generator, form: str, /, **names: str) -> str:
    """A form with one alternative of each `[a|b|]` and `{name}` filled in.

    Alternatives may be nested. Names are filled in last, so that brackets in them are kept.
    """
    while found := _CHOICE.search(form):
        form = form[: found.start()] + pick(rng, found[1].split("|")) + form[found.end() :]
    form = re.sub(" +(?=[ .?])", "", form).strip()
    text = form.format(**names).replace("??", "?") if names else form
    return text[:1].upper() + text[1:] if chance(rng, 0.85) else text
