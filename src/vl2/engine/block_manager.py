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
from itertools import groupby

Name = bytes
"""SHA-256 of everything up to the end of a block."""


class BlockManager:
    """Counts owners of blocks and finds places for new ones."""

    def __init__(self, num_blocks: int, block_size: int, *, sharing: bool = True) -> None:
        self.num_blocks, self.block_size, self.sharing = num_blocks, block_size, sharing
        self._owners = [0] * num_blocks
        self._names: list[Name | None] = [None] * num_blocks
        self._published: dict[Name, int] = {}
        self._unowned: OrderedDict[int, None] = OrderedDict()  # published, oldest first
        self._clean = set(range(num_blocks))

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
        last = owned[-1] if owned else None
        while len(taken) < count:
            following = None if last is None else last + 1
            last = following if following is not None and self._is_free(following) else None
            if last is None:
                last = self._start(count - len(taken))
            self._take(last)
            taken.append(last)
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

    def _is_free(self, block: int) -> bool:
        return block in self._clean or block in self._unowned

    def _take(self, block: int) -> None:
        if block in self._unowned:
            self.forget([block])
        self._clean.remove(block)
        self._owners[block] = 1

    def _start(self, count: int) -> int:
        """Where the next run starts; old shared blocks make room when no clean run suffices."""
        runs = _runs(self._clean)
        while self._unowned and max((size for _, size in runs), default=0) < count:
            oldest = list(self._unowned)[: max(1, len(self._unowned) // 2)]
            self.forget(oldest)
            runs = _runs(self._clean)
        first, size = max(runs, key=lambda run: run[1])
        if first == 0:  # no neighbour before it
            return first
        return first + min(size // 2, max(0, size - count))


def _runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """(first, size) of the runs of consecutive numbers, in ascending order."""
    counted = enumerate(sorted(blocks))
    members = [
        [block for _, block in run]
        for _, run in groupby(counted, key=lambda pair: pair[1] - pair[0])
    ]
    return [(run[0], len(run)) for run in members]


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
