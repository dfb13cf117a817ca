"""Every kind of picture by its name, and rows of them: seeded, the same wherever they are drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vl2.data.make import (
    blocks,
    charts,
    diagrams,
    lines,
    notes,
    pages,
    papers,
    pdfs,
    plans,
    scenes,
    screens,
    shapes,
    signs,
    tables,
    things,
    words,
)
from vl2.data.make.sample import Made
from vl2.data.make.world import World

Maker = Callable[[np.random.Generator, World], Made]

KINDS: dict[str, Maker] = {
    "words": words.make,
    "lines": lines.make,
    "blocks": blocks.make,
    "pages": pages.make,
    "papers": papers.make,
    "pdfs": pdfs.make,
    "tables": tables.make,
    "charts": charts.make,
    "screens": screens.make,
    "shapes": shapes.make,
    "signs": signs.make,
    "diagrams": diagrams.make,
    "things": things.make,
    "plans": plans.make,
    "scenes": scenes.make,
    "notes": notes.make,
}


def make(kind: str, seed: int, row: int, world: World) -> Made:
    """Row `row` of a kind; it depends on nothing but its arguments.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind](np.random.default_rng((seed, row)), world)
