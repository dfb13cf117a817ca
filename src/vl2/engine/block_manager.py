"""Who owns which block of the paged cache, and which blocks can be shared.

A block is named by what stands in it: the hash of the tokens and pictures up to its end. A full
block whose rows are computed is published under that name; another sequence that begins the same
way takes it instead of computing it again. Blocks that nobody owns keep their name until the room
is needed, the longest unused ones going first.

A sequence that lies in one run of blocks is read without a copy. So a sequence grows into the block
behind its last one, and a new sequence starts in the middle of the largest free run, which leaves
its neighbour room to grow. Names: vLLM's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from vl2.engine.free_runs import FreeRuns

Name = bytes
"""SHA-256 of everything up to the end of a block."""

FORGOTTEN = 8
"""Shared blocks that are forgotten at most for each block that is wanted in one run with others."""


class BlockManager:
    """Counts owners of blocks and finds places for new ones."""

    def __init__(self, num_blocks: int, block_size: int, *, sharing: bool = True) -> None:
        self.num_blocks, self.block_size, self.sharing = num_blocks, block_size, sharing
        self._owners = [0] * num_blocks
        self._names: list[Name | None] = [None] * num_blocks
        self._published: dict[Name, int] = {}
        self._unowned: OrderedDict[int, None] = OrderedDict()  # published, oldest first
        self._clean = FreeRuns(num_blocks)

    @property
    def free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._clean) + len(self._unowned)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def find(self, names: Iterable[Name]) -> list[int]:
        """The published blocks of the longest known beginning; nobody's yet, see `share`."""
        found = []
        for name in names:
            block = self._published.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more owner of published blocks."""
        for block in blocks:
            self._owners[block] += 1
            self._unowned.pop(block, None)

    def grow(self, owned: Sequence[int], count: int) -> list[int] | None:
        """Own `count` more blocks to stand behind `owned`, or None if there are too few."""
        if count > self.free:
            return None
        taken: list[int] = []
        forgettable = FORGOTTEN * count
        last = owned[-1] if owned else None
        while len(taken) < count:
            run, skip = -1 if last is None else last + 1, 0
            if run in self._unowned:
                self.forget([run])
            if not self._clean.size_at(run):
                forgettable -= self._make_room(count - len(taken), forgettable)
                run, skip = self._start(count - len(taken))
            taken += self._clean.take(run, skip, count - len(taken))
            last = taken[-1]
        for block in taken:
            self._owners[block] = 1
        return taken

    def publish(self, block: int, name: Name) -> None:
        """Let others find a full, computed block; the first one of a name stays."""
        if self.sharing and self._names[block] is None and name not in self._published:
            self._names[block] = name
            self._published[name] = block

    def forget(self, blocks: Iterable[int]) -> None:
        """Withdraw blocks that turned out wrong; who owns them keeps them."""
        for block in blocks:
            name = self._names[block]
            if name is None:
                continue
            del self._published[name]
            self._names[block] = None
            if block in self._unowned:
                del self._unowned[block]
                self._clean.add(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give up ownership; the end of a text is forgotten before its beginning."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if self._names[block] is None:
                self._clean.add(block)
            else:
                self._unowned[block] = None

    def _make_room(self, count: int, most: int) -> int:
        """Forget old shared blocks until so many clean ones are one run; how many are forgotten.

        At most `most` are, then scattered clean blocks must do.
        """
        forgotten = 0
        while self._unowned and self._clean.longest()[1] < count:
            if forgotten >= most and len(self._clean):
                break
            at_once = max(1, min(len(self._unowned) // 2, most - forgotten))
            oldest = list(islice(self._unowned, at_once))
            self.forget(oldest)
            forgotten += len(oldest)
        return forgotten

    def _start(self, count: int) -> tuple[int, int]:
        """The run where so many blocks start, and how many of its blocks stay free before them."""
        first, size = self._clean.longest()
        if first == 0:  # no neighbour before it
            return first, 0
        return first, min(size // 2, max(0, size - count))


def block_name(before: Name, token_ids: Iterable[int], pictures: Iterable[bytes]) -> Name:
    """Name of a block from that of the block before it, its tokens and the pictures in it."""
    digest = hashlib.sha256(before)
    digest.update(",".join(map(str, token_ids)).encode())
    for picture in pictures:
        digest.update(b"|" + picture)
    return digest.digest()


def slot_runs(blocks: Sequence[int], block_size: int, tokens: int) -> tuple[tuple[int, int], ...]:
    """[first, end) slots of the first `tokens` tokens of a sequence in these blocks."""
    runs: list[tuple[int, int]] = []
    for place in range(-(-tokens // block_size)):
        first = blocks[place] * block_size
        end = first + min(block_size, tokens - place * block_size)
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return tuple(runs)
