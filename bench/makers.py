"""Rows that each kind of made picture is drawn at, in one process.

    python bench/makers.py                      # every kind, 40 rows of each split
    python bench/makers.py charts notes --rows 200

Prints a line of JSON for each kind and split. Seconds are the processor's, so other work on the
machine counts little; what is drawn once and kept, such as glyphs, is left out by a first row.
"""

from __future__ import annotations

import argparse
import json
import time

from vl2.data.make.fonts import SPLITS
from vl2.data.make.kinds import KINDS, make
from vl2.data.make.world import World, world


def rows_per_second(kind: str, material: World, rows: int) -> float:
    """Rows of a kind for each second of the processor."""
    make(kind, 0, 0, material)
    start = time.process_time()
    for row in range(1, rows + 1):
        make(kind, 0, row, material)
    return rows / (time.process_time() - start)


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help="default: all")
    parser.add_argument("--rows", type=int, default=40)
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"kind is {unknown[0]!r}: expected one of {', '.join(KINDS)}")
    for kind in options.kinds:
        for split in SPLITS:
            speed = rows_per_second(kind, world(split), options.rows)
            line = {"kind": kind, "split": split, "rows_per_second": round(speed, 1)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
