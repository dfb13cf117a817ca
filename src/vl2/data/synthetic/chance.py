"""Draws from a numpy generator that are cheaper than `Generator.choice`."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

Weighted = tuple[tuple[T, float | int], ...]
"""Choices with their weights; the weights need not sum to one."""


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def pick_weighted(rng: np.random.Generator, options: Weighted[T]) -> T:
    """One of `options`, likely as its weight says."""
    point = float(rng.random()) * sum(weight for _, weight in options)
    for option, weight in options:
        point -= weight
        if point < 0:
            return option
    return options[-1][0]


def chance(rng: np.random.Generator, probability: float | int) -> bool:
    """True with the given probability."""
    return float(rng.random()) < probability


def between(rng: np.random.Generator, low: float | int, high: float | int) -> float:
    """A float drawn evenly from [low, high)."""
    return low + (high - low) * float(rng.random())


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """The items in random order."""
    return [items[int(i)] for i in rng.permutation(len(items))]
