"""The range of a number, written beside the field that holds it, and the check of all of them.

    rate: Annotated[float, Range(above=0, most=1)] = 2e-5

`check_ranges` goes over every such field of a dataclass. Nothing that is not finite is in a range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

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


def check_ranges(config: Any) -> None:
    """Check every number of a dataclass against its range; of a tuple, each item.

    Raises:
        ValueError: the field, its value and the range.
    """
    for name, bounds in ranges_of(type(config)).items():
        value = getattr(config, name)
        items = value if isinstance(value, tuple) else (value,)
        if not all(item is None or bounds.holds(item) for item in items):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name} is {shown}: expected {bounds}")


@cache
def ranges_of(kind: type) -> dict[str, Range]:
    """The ranges of a dataclass's numbers by the field's name."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: bounds
        for name, hint in hints.items()
        for bounds in getattr(hint, "__metadata__", ())
        if isinstance(bounds, Range)
    }
