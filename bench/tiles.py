"""How evenly vision work is spread over ranks, before and after balancing, on paper.

    python bench/tiles.py [--ranks 8] [--batch-size 64] [--micro-batch 1] [--text-share 0.4]

A skewed mixture from counts alone. Samples of one picture each have 2 to 10 tiles (1 to 9 of the
mosaic and the global view), few of them more often than many; the rest of the tokens are text.
Tokens of a picture are those of the released layout; sequences have 4,096.

Prints one JSON line with packing and one without, each with the same figures before and after:

    max_over_mean       tiles of the rank with the most, in each micro batch, over those of a mean
                        rank: how many times longer than with equal shares vision takes
    mean_of_steps       mean over steps of each one's own ratio: a step with few tiles, which costs
                        nothing, counts as much as one with many
    ranks_apart         tiles between the ranks with the most and the fewest in a step: mean, most
    packing_efficiency  tokens over the room of the sequences
    tiles_of_sequence   mean, standard deviation, most
    step_variance       share of the variance of the sequences' tiles that is between steps
    next_step           correlation of the tiles of a step and of the next one
    plan_ms             time to plan a step
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vl2.data.balance_tiles import Hands, TileLoad, deal_evenly, deal_in_turn, load_of
from vl2.data.config import DataConfig
from vl2.data.mixture import RowOrder
from vl2.data.plan import Planner, SequencePlan
from vl2.geometry import TileGrid, image_tokens, tokens_per_side

LENGTH = 4096
ROWS = 4000  # of each source
MOST_LOCAL_TILES = 9

Counts = list[np.ndarray]
Step = Sequence[SequencePlan]


def mixture(seed: int = 0) -> tuple[Counts, Counts]:
    """Tokens and tiles of the rows of two sources: pictures and text."""
    rng = np.random.default_rng(seed)
    sides = range(1, MOST_LOCAL_TILES + 1)
    grids = [TileGrid(wide=w, high=h) for w in sides for h in sides if w * h <= MOST_LOCAL_TILES]
    alike = [sum(other.tiles == grid.tiles for other in grids) for grid in grids]
    odds = np.array([1 / g.local_tiles / n for g, n in zip(grids, alike, strict=True)])
    drawn = rng.choice(len(grids), ROWS, p=odds / odds.sum())
    side = tokens_per_side(384, 14, 2)
    pictures = np.array([image_tokens(side, grids[i]) for i in drawn])
    said = _lengths(rng, median=100, spread=0.8, most=LENGTH - int(pictures.max()))
    text = _lengths(rng, median=500, spread=1.0, most=LENGTH)
    tiles = [np.array([grids[i].tiles for i in drawn]), np.zeros(ROWS)]
    return [(pictures + said).astype(np.int32), text], [each.astype(np.int32) for each in tiles]


def _lengths(rng: np.random.Generator, *, median: float, spread: float, most: int) -> np.ndarray:
    drawn = rng.lognormal(np.log(median), spread, ROWS).astype(np.int32) + 8
    return np.minimum(drawn, most)


def planner(config: DataConfig, text_share: float) -> Planner:
    """Of the mixture."""
    counts, tiles = mixture()
    weights = [1 - text_share, text_share]
    names = ["pictures", "text"]
    order = RowOrder(counts, weights, names=names, longest=LENGTH, seed=config.seed)
    return Planner(order, counts, tiles, config)


def compare(
    *,
    packing: bool,
    ranks: int = 8,
    batch_size: int = 64,
    micro_batch: int = 1,
    text_share: float = 0.4,
    steps: int = 200,
) -> dict[str, dict[str, Any]]:
    """Figures without and with balancing."""
    config = {"batch_size": batch_size, "micro_batch": micro_batch, "packing": packing}
    found = {}
    for name, balance in (("before", False), ("after", True)):
        given = DataConfig(sequence_length=LENGTH, balance_tiles=balance, **config)
        started = time.perf_counter()
        planned = list(itertools.islice(planner(given, text_share), steps))
        taken = time.perf_counter() - started
        dealt = [_deal(step, given, ranks) for step in planned]
        figures = _rank_figures(planned, dealt) | _order_figures(planned)
        found[name] = figures | {"plan_ms": round(1000 * taken / steps, 2)}
    return found


def _deal(step: Step, config: DataConfig, ranks: int) -> Hands:
    """As `micro_plans` does."""
    tiles = [sequence.tiles for sequence in step]
    if config.balance_tiles:
        return deal_evenly(tiles, ranks, config.micro_batch)
    return deal_in_turn(len(tiles), ranks, config.micro_batch)


def _rank_figures(steps: Sequence[Step], dealt: Sequence[Hands]) -> dict[str, Any]:
    loads: list[TileLoad] = []
    apart = []
    for step, hands in zip(steps, dealt, strict=True):
        tiles = [sequence.tiles for sequence in step]
        loads.append(load_of(hands, tiles))
        held = [sum(tiles[i] for m in hands for i in m[rank]) for rank in range(len(hands[0]))]
        apart.append(max(held) - min(held))
    whole = sum(load.most for load in loads) / sum(load.mean for load in loads)
    return {
        "max_over_mean": round(whole, 3),
        "mean_of_steps": round(float(np.mean([load.imbalance for load in loads])), 3),
        "ranks_apart": [round(float(np.mean(apart)), 2), max(apart)],
    }


def _order_figures(steps: Sequence[Step]) -> dict[str, Any]:
    tokens = [sequence.length for step in steps for sequence in step]
    tiles = np.array([[sequence.tiles for sequence in step] for step in steps])
    sums = tiles.sum(axis=1)
    spread = [float(tiles.mean()), float(tiles.std()), float(tiles.max())]
    return {
        "packing_efficiency": round(float(np.mean(tokens)) / LENGTH, 4),
        "tiles_of_sequence": [round(value, 1) for value in spread],
        "step_variance": round(float(tiles.mean(axis=1).var() / tiles.var()), 3),
        "next_step": round(float(np.corrcoef(sums[:-1], sums[1:])[0, 1]), 2),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--text-share", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=200)
    given = vars(parser.parse_args())
    for packing in (True, False):
        found = compare(packing=packing, **given)
        line = {"bench": "tiles", "packing": packing, **given, **found}
        print(json.dumps({**line, "machine": platform.machine()}), flush=True)


if __name__ == "__main__":
    main()
