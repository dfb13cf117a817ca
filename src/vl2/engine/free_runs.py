"""Free blocks as runs of neighbours; the longest is found without looking at the others."""

from __future__ import annotations

import heapq
from itertools import groupby


class FreeRuns:
    """Numbers below `count`, all free at first; every call costs as much as it moves.

    A run is kept under its first number and under the number after its last one, so that a block
    that comes back finds its neighbours. The heap holds what each run has ever been; what is no
    longer so is dropped when it comes up.
    """

    def __init__(self, count: int) -> None:
        self._sizes: dict[int, int] = {}
        self._firsts: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (-size, first): the lowest of equals comes first
        self._count = 0
        self.add(0, count)

    def __len__(self) -> int:
        """Free numbers."""
        return self._count

    def size_at(self, first: int) -> int:
        """Numbers of the run that begins here, or 0."""
        return self._sizes.get(first, 0)

    def longest(self) -> tuple[int, int]:
        """(first, size) of the longest run, the lowest of equals; (0, 0) if nothing is free."""
        while self._heap:
            size, first = self._heap[0]
            if self._sizes.get(first) == -size:
                return first, -size
            heapq.heappop(self._heap)
        return 0, 0

    def add(self, first: int, count: int = 1) -> None:
        """Numbers that were taken are free again, and one run with their neighbours."""
        self._count += count
        end = first + count
        if (before := self._firsts.pop(first, None)) is not None:
            del self._sizes[before]
            first = before
        if after := self._sizes.pop(end, 0):
            del self._firsts[end + after]
            end += after
        self._keep(first, end)

    def take(self, run: int, skip: int, count: int) -> range:
        """The numbers of the run that begins at `run`: at most `count` after the first `skip`."""
        end = run + self._sizes.pop(run)
        del self._firsts[end]
        taken = range(run + skip, min(run + skip + count, end))
        self._count -= len(taken)
        self._keep(run, taken.start)
        self._keep(taken.stop, end)
        return taken

    def _keep(self, first: int, end: int) -> None:
        if first == end:
            return
        self._sizes[first], self._firsts[end] = end - first, first
        heapq.heappush(self._heap, (first - end, first))
        if len(self._heap) > 2 * len(self._sizes) + 64:  # more than half is out of date
            self._heap = [(-size, first) for first, size in self._sizes.items()]
            heapq.heapify(self._heap)


class FreeRunsRef:
    """The plain twin of `FreeRuns`: a set, sorted whenever the longest run is wanted."""

    def __init__(self, count: int) -> None:
        self._free = set(range(count))

    def __len__(self) -> int:
        """Free numbers."""
        return len(self._free)

    def size_at(self, first: int) -> int:
        """Numbers of the run that begins here, or 0."""
        end = first
        while end in self._free:
            end += 1
        return 0 if first - 1 in self._free else end - first

    def longest(self) -> tuple[int, int]:
        """(first, size) of the longest run, the lowest of equals; (0, 0) if nothing is free."""
        counted = enumerate(sorted(self._free))
        runs = [
            [number for _, number in run]
            for _, run in groupby(counted, key=lambda pair: pair[1] - pair[0])
        ]
        return max(((run[0], len(run)) for run in runs), key=lambda run: run[1], default=(0, 0))

    def add(self, first: int, count: int = 1) -> None:
        """Numbers that were taken are free again."""
        self._free.update(range(first, first + count))

    def take(self, run: int, skip: int, count: int) -> range:
        """At most `count` numbers of the run that begins at `run`, after the first `skip`."""
        first = run + skip
        taken = range(first, min(first + count, run + self.size_at(run)))
        self._free.difference_update(taken)
        return taken
