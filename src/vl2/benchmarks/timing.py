"""Times of things that take turns, so that a noisy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from vl2.failure import WorkError

Timer = Callable[[int], float]
"""Seconds of one measurement; hears the number of the round, 0 while warming up."""


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(timers: Mapping[str, Timer], rounds: int) -> dict[str, list[float]]:
    """Seconds of every timer, one of each per round, after a round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds + 1):
        for name, timer in timers.items():
            found = timer(turn)
            if turn:
                taken[name].append(found)
    return taken


def middle(taken: Sequence[float]) -> float:
    """The median of some times.

    Raises:
        WorkError: it is not positive: the difference of two runs that noise has swallowed.
    """
    found = statistics.median(taken)
    if found <= 0:
        raise WorkError(
            f"the machine is too busy: {len(taken)} rounds show no time for a token; "
            "raise --tokens or --rounds"
        )
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster the second is: the median over rounds that both took part in.

    Raises:
        ValueError: noise has swallowed the times of one, see `middle`.
    """
    for side in (slow, fast):
        middle(side)
    pairs = zip(slow, fast, strict=True)
    return round(statistics.median(a / b for a, b in pairs if b > 0), 3)
