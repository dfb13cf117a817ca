"""The range of a number, written beside the field that holds it, and the check of all of them.

    rate: Annotated[float, Range(above=0, most=1)] = 2e-5

`check_ranges` goes over every such field of a dataclass. Nothing that is not finite is in a range.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_origin, get_type_hints

LARGEST = 2**31 - 1
"""No setting counts further; what is larger is a slip of the hand, and other code may overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `least`, or above `above`, up to `most`, or below `below`."""

    least: float | None = None
    above: float | None = None
    most: float = LARGEST
    below: float = math.inf
    also: tuple[float, ...] = ()  # single numbers that have a meaning of their own

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        if value in self.also:
            return True
        if isinstance(value, float) and not math.isfinite(value):
            return False
        low = (self.least is None or value >= self.least) and (
            self.above is None or value > self.above
        )
        return low and value <= self.most and value < self.below

    def __str__(self) -> str:
        """The range in words."""
        low = f"{self.least} or more" if self.above is None else f"a number above {self.above}"
        high = f", up to {self.most}" if self.below == math.inf else f", below {self.below}"
        also = "".join(f", or {value}" for value in self.also)
        return f"{low}{high}{also}"


def plain_number(value: object, *, whole: bool) -> int | float | None:
    """The same number as Python's own, where it may be NumPy's; None if it is no number.

    Truth is no number, and neither is an array or tensor, not even of one element.

    Args:
        value: anything.
        whole: whether only whole numbers will do, of a kind that has no others.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return operator.index(value)
    return float(value) if isinstance(value, Real) and not whole else None


def check_ranges(config: Any) -> None:
    """Check every number of a dataclass against its range; of a tuple, each item.

    Numbers of NumPy become Python's own.

    Raises:
        ValueError: the field, its value and the range.
    """
    for name, (bounds, kind) in _numbers_of(type(config)).items():
        value = getattr(config, name)
        options = get_args(kind)
        if value is None and type(None) in options:
            continue
        several = get_origin(kind) is tuple
        given = value if several else (value,)
        items = given if isinstance(given, list | tuple) else (None,)
        found = tuple(plain_number(v, whole=float not in (kind, *options)) for v in items)
        if not all(v is not None and bounds.holds(v) for v in found):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name} is {' '.join(f'{shown!r:.80}'.split())}: expected {bounds}")
        object.__setattr__(config, name, found if several else found[0])


def ranges_of(kind: type) -> dict[str, Range]:
    """The ranges of a dataclass's numbers by the field's name."""
    return {name: bounds for name, (bounds, _) in _numbers_of(kind).items()}


@cache
def _numbers_of(kind: type) -> dict[str, tuple[Range, Any]]:
    """Range and type of a dataclass's numbers by the field's name."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: (bounds, get_args(hint)[0])
        for name, hint in hints.items()
        for bounds in getattr(hint, "__metadata__", ())
        if isinstance(bounds, Range)
    }
