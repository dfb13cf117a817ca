"""The error of this package, apart from torch: the step protocol works without it."""

from __future__ import annotations

from vl2.failure import WorkError


class CheckpointError(ValueError):
    """A checkpoint cannot be read as what it should hold."""


class SaveError(CheckpointError, WorkError):
    """A checkpoint cannot be written: the disk is full or refuses."""
