"""What admitting a sequence costs in the paged cache, by the number of blocks that there are.

    python bench/blocks.py [--blocks 1000 --blocks 11000 --blocks 110000] [--admissions 400]

Sequences of 5 to 120 blocks come, are shared, grow beside each other and go. Prints one JSON line
per size and way: `before` sorts all free blocks at every admission (`FreeRunsRef`), `after` keeps
their runs (`FreeRuns`). Times are of the processor, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time

from vl2.engine import block_manager
from vl2.engine.free_runs import FreeRuns, FreeRunsRef

WAYS = {"before": FreeRunsRef, "after": FreeRuns}
AT_ONCE = 64
"""Sequences that hold blocks at the same time, at most."""


def admission_seconds(blocks: int, admissions: int) -> list[float]:
    """Seconds of each admission of a seeded traffic."""
    rng, owned, taken = random.Random(0), [], []
    manager = block_manager.BlockManager(blocks, 16)
    for number in range(admissions):
        count = rng.randint(5, 120)
        while len(owned) >= AT_ONCE or manager.free < count:
            manager.release(owned.pop(rng.randrange(len(owned))))
        start = time.thread_time()
        mine = manager.grow([], count)
        taken.append(time.thread_time() - start)
        assert mine is not None
        for place, block in enumerate(mine[:-1]):
            manager.publish(block, b"%d.%d" % (number, place))
        owned.append(mine)
        for other in rng.sample(owned, min(8, len(owned))):
            other += manager.grow(other, 1) or []
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time admissions to the paged cache.")
    parser.add_argument("--blocks", type=int, action="append", default=None)
    parser.add_argument("--admissions", type=int, default=400)
    options = parser.parse_args()
    for blocks in options.blocks or (1_000, 11_000, 110_000):
        for way, runs in WAYS.items():
            block_manager.FreeRuns = runs  # pyright: ignore[reportAttributeAccessIssue]
            taken = admission_seconds(blocks, options.admissions)
            row = {
                "bench": "admission",
                "blocks": blocks,
                "way": way,
                "mean_us": round(1e6 * statistics.mean(taken), 1),
                "worst_us": round(1e6 * max(taken), 1),
                "admissions": options.admissions,
                "cpu": platform.machine(),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
