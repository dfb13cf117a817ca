"""The error of work that was asked for rightly and failed; wrong use is a `ValueError`."""

from __future__ import annotations


class WorkError(Exception):
    """Work failed on the way: numbers that are not finite, a process that died, a full disk.

    The command line ends with code 1 then, and with 2 for a `ValueError`. An error that is both,
    because callers know it as a `ValueError`, counts as this.
    """
