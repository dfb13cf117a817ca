"""The ranks that keep a run's state together: one makes and commits folders, all write tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from vl2.checkpoint.errors import CheckpointError

T = TypeVar("T")


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
        """The texts of all, in the order of the ranks, the main one first."""
        ...


class Single:
    """One process alone."""

    group: Any = None
    is_main = True

    def gather_text(self, text: str) -> list[str]:
        """Its own."""
        return [text]


def on_main(peers: Peers, work: Callable[[], T]) -> T | None:
    """Let the main rank do something that can fail; it fails on all ranks then.

    Returns:
        What `work` returned, on the main rank; None on the others.

    Raises:
        ValueError: on the main rank what `work` raised, on the others a `CheckpointError`.
    """
    result, problem = None, None
    try:
        result = work() if peers.is_main else None
    except ValueError as error:
        problem = error
    text = peers.gather_text(str(problem) if problem else "")[0]
    if problem is not None:
        raise problem
    if text:
        raise CheckpointError(text)
    return result


def meet(peers: Peers, problem: str) -> None:
    """Wait for all ranks.

    Raises:
        CheckpointError: on the others, when the main rank came with a problem.
    """
    text = peers.gather_text(problem)[0]
    if text and not peers.is_main:
        raise CheckpointError(text)
