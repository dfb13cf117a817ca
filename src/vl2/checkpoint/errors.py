"""The error of this package, apart from torch: the step protocol works without it."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be read as what it should hold, or cannot be written."""
