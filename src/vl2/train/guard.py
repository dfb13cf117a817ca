"""When a step is thrown away: a loss or gradient that is not finite, or far above what was usual.

The window holds clean steps only, so one bad value cannot make every later comparison fail. What
follows from bad steps in a row (go back, give up) is counted here and carried out by the trainer.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from vl2.train.config import LEAST_WINDOW, GuardConfig

LEAST_RATIO = 3.0
"""A spike is at least this many times the mean: a smooth run's tiny deviation is no measure."""
LEAST_LOSS = 2.0
"""No smaller loss is a spike: to a well-fitted model a sample that it has yet to learn looks like
one. At 2 the right token still has one chance in seven."""
LEAST_NORM = 10.0
"""No smaller gradient norm is a spike; the norm is clipped to 1 as a rule."""
SHORT_RUN = 3
"""Steps up to which a run may try more batches than it has steps."""


class StepGuard:
    """Judges each step before the optimiser moves, and counts the bad ones."""

    def __init__(self, config: GuardConfig, steps: int) -> None:
        """Start without a verdict.

        Args:
            config: when a step is bad, and how many in a row are too many.
            steps: of the run. No streak may be longer, or its last step would be tried for ever.
        """
        self.config = config
        self.most_in_a_row = min(config.skips_in_a_row, max(steps, SHORT_RUN))
        self.window: deque[tuple[float, float]] = deque(maxlen=config.window)
        self.in_a_row = 0
        self.rollbacks = 0
        self.skipped = 0

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """Why the step must not be taken, or None; remembers the verdict."""
        reason = self._reason(loss, gradient_norm)
        if reason is None:
            self.window.append((loss, gradient_norm))
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            self.skipped += 1
        return reason

    @property
    def must_roll_back(self) -> bool:
        """Whether so many steps in a row were bad that the state itself is suspect."""
        return self.in_a_row >= self.most_in_a_row

    def rolled_back(self) -> bool:
        """Count a rollback; False when the run must end instead."""
        self.in_a_row = 0
        self.window.clear()
        self.rollbacks += 1
        return self.rollbacks <= self.config.rollbacks

    def state(self) -> dict[str, Any]:
        """JSON form for a checkpoint."""
        return {
            "window": [list(pair) for pair in self.window],
            "in_a_row": self.in_a_row,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.window = deque(
            ((loss, norm) for loss, norm in state["window"]), maxlen=self.config.window
        )
        self.in_a_row, self.rollbacks = state["in_a_row"], state["rollbacks"]
        self.skipped = state["skipped"]

    def _reason(self, loss: float, gradient_norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not self.config.spike or len(self.window) < LEAST_WINDOW:
            return None
        # The norm is clipped anyway; only an explosion counts.
        judged = (("loss", loss, 1, LEAST_LOSS), ("gradient norm", gradient_norm, 10, LEAST_NORM))
        for index, (name, value, factor, least) in enumerate(judged):
            usual = [pair[index] for pair in self.window]
            mean = fmean(usual)
            limit = max(mean + self.config.spike * pstdev(usual), LEAST_RATIO * mean) * factor
            limit = max(limit, least)
            if value > limit:
                return f"{name} {value:.4g} is above {limit:.4g}, usual is {mean:.4g}"
        return None
