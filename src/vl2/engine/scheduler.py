"""What the next step works on: continuous batching with chunked prefill (vLLM's rules, our names).

Answers that run come first, one token each (and drafts); what is left of the token budget goes to
prompts, of which a long one runs in chunks. When blocks run out the youngest gives up its own and
waits to be computed again; its tokens are the same then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from vl2.engine.block_manager import BlockManager
from vl2.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduled:
    """The next `tokens` tokens of a sequence, drafts included."""

    sequence: Sequence
    tokens: int

    @property
    def complete(self) -> bool:
        """Whether the sequence's next token is known afterwards."""
        return self.tokens >= self.sequence.pending

    @property
    def rows(self) -> int:
        """Rows of logits that it has when it is complete: one for each draft, and one more."""
        return 1 + len(self.sequence.drafts)


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """Two queues and the blocks; `preempted` counts how often a sequence gave up its blocks."""

    blocks: BlockManager
    max_num_seqs: int
    max_num_batched_tokens: int
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    preempted: int = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence, its full blocks named."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step's work; empty only if nothing is queued."""
        plan: dict[Sequence, int] = {}
        budget = self.max_num_batched_tokens
        for sequence in sorted(self.running, key=lambda s: s.pending > 1):
            if sequence not in self.running:  # gave up its blocks a moment ago
                continue
            tokens = min(sequence.pending + len(sequence.drafts), budget - sum(plan.values()))
            del sequence.drafts[max(0, tokens - sequence.pending) :]
            if tokens > 0 and self._grow(sequence, tokens, plan):
                plan[sequence] = tokens
        self._admit(plan)
        return [Scheduled(sequence=s, tokens=tokens) for s, tokens in plan.items()]

    def advance(self, sequence: Sequence, tokens: int) -> None:
        """Count tokens as computed and let others find the blocks that they fill."""
        sequence.computed += tokens
        sequence.name_blocks(self.blocks.block_size)
        full = min(sequence.computed // self.blocks.block_size, len(sequence.names))
        for place in range(sequence.published, full):
            self.blocks.publish(sequence.blocks[place], sequence.names[place])
        sequence.published = max(sequence.published, full)

    def remove(self, sequence: Sequence, *, wrong: bool = False) -> None:
        """Take a sequence out and free its blocks; `wrong` rows are found by nobody."""
        if wrong:
            self.blocks.forget(sequence.blocks[sequence.cached_tokens // self.blocks.block_size :])
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.features = {}
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _grow(self, sequence: Sequence, tokens: int, plan: dict[Sequence, int]) -> bool:
        """Own the blocks of the next tokens, at the expense of the youngest if need be."""
        while True:
            wanted = self.blocks.blocks_for(sequence.computed + tokens) - len(sequence.blocks)
            taken = self.blocks.grow(sequence.blocks, max(0, wanted))
            if taken is not None:
                sequence.blocks += taken
                return True
            youngest = self.running[-1]
            self._preempt(youngest)
            plan.pop(youngest, None)
            if youngest is sequence:
                return False

    def _preempt(self, sequence: Sequence) -> None:
        self.preempted += 1
        self.running.remove(sequence)
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.drafts = []
        sequence.computed = sequence.published = 0
        self.waiting.appendleft(sequence)

    def _admit(self, plan: dict[Sequence, int]) -> None:
        """Start waiting sequences, in order; one whose beginning is just computed waits for it."""
        computing = {
            name
            for sequence in self.running
            if sequence.pending > 1 and self.blocks.sharing
            for name in sequence.names[sequence.published :]
        }
        for sequence in list(self.waiting):
            budget = self.max_num_batched_tokens - sum(plan.values())
            if len(self.running) >= self.max_num_seqs or budget < 1:
                return
            size = self.blocks.block_size
            reusable = sequence.names[: (sequence.length - 1) // size]
            shared = self.blocks.find(reusable)
            if len(shared) < len(reusable) and reusable[len(shared)] in computing:
                continue
            tokens = min(sequence.length - len(shared) * size, budget)
            self.blocks.share(shared)
            wanted = self.blocks.blocks_for(len(shared) * size + tokens) - len(shared)
            taken = self.blocks.grow(shared, wanted)
            if taken is None:
                self.blocks.release(shared)
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.blocks = shared + taken
            sequence.computed = sequence.cached_tokens = len(shared) * size
            sequence.published = len(shared)
            plan[sequence] = tokens
            computing.update(reusable[len(shared) :] if self.blocks.sharing else ())
