"""The ranks that keep a run's state together: one makes and commits folders, all write tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from vl2.checkpoint.errors import CheckpointError

T = TypeVar("T")


class PeerError(CheckpointError):
    """An error that the main rank raises as well, so that this rank need not report it."""


@runtime_checkable
class Peers(Protocol):
    """The ranks that share a store, through connections that nothing else uses."""

    @property
    def group(self) -> Any:
        """Process group of torch.distributed; None for one process alone."""
        ...

    @property
    def is_main(self) -> bool:
        """Whether this one makes and commits the folders."""
        ...

    def gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, in their order, the main one first."""
        ...


class Single:
    """One process alone."""

    group: Any = None
    is_main = True

    def gather_text(self, text: str) -> list[str]:
        """The text of the one process."""
        return [text]


def on_main(peers: Peers, work: Callable[[], T]) -> T | None:
    """Let the main rank do something that can fail; it fails on all ranks then.

    Returns:
        What `work` returned, on the main rank; None on the others.

    Raises:
        ValueError: what `work` raised, or an `OSError`, on the main rank.
        PeerError: the same on the others.
    """
    result, problem = None, None
    try:
        result = work() if peers.is_main else None
    except (ValueError, OSError) as error:
        problem = error
    meet(peers, problem)
    if problem is not None:
        raise problem
    return result


def meet(peers: Peers, problem: Exception | None = None) -> None:
    """Wait for all ranks.

    Raises:
        PeerError: on the others, when the main rank came with a problem.
    """
    text = "" if problem is None else str(problem) or type(problem).__name__
    text = peers.gather_text(text)[0]
    if text and not peers.is_main:
        raise PeerError(text)
