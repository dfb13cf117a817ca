"""How many ranks share what: the layout of a training run over its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from vl2.ranges import Range, check_ranges

Schedule = Literal["1f1b", "gpipe"]


class Layout(NamedTuple):
    """Ranks along each axis of the mesh, outermost first; their product is the world."""

    pipeline: int
    replicate: int
    shard: int
    expert: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pipeline * self.data

    @property
    def data(self) -> int:
        """Ranks that take samples of their own; the ranks of one pipeline share them."""
        return self.replicate * self.shard * self.expert


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """The layout; the defaults shard everything over all ranks (FSDP2)."""

    replicate: Annotated[int, Range(least=1)] = 1  # copies of the sharded model
    # ranks that each hold a part of every parameter; -1: all that are left
    shard: Annotated[int, Range(least=1, also=(-1,))] = -1
    expert: Annotated[int, Range(least=1)] = 1  # ranks that share the routed experts of a layer
    pipeline: Annotated[int, Range(least=1)] = (
        1  # ranks that each run some of the blocks and layers
    )
    schedule: Schedule = "1f1b"  # of the pipeline
    # seconds that a rank may stand still before the job ends
    watchdog: Annotated[float, Range(above=0)] = 1800.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)

    def layout(self, world: int) -> Layout:
        """The layout of `world` ranks.

        Raises:
            ValueError: the axes do not multiply to the number of ranks.
        """
        rest = self.replicate * self.expert * self.pipeline
        shard = world // rest if self.shard == -1 else self.shard
        found = Layout(self.pipeline, self.replicate, shard, self.expert)
        if found.world != world:
            asked = f"replicate {self.replicate} x expert {self.expert} x pipeline {self.pipeline}"
            asked += "" if self.shard == -1 else f" x shard {self.shard}"
            raise ValueError(
                f"{world} ranks do not divide into parallel.{asked}: start a multiple of "
                f"{rest * max(self.shard, 1)} ranks, or change the layout"
            )
        return found
