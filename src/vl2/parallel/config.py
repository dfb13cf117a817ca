"""How many ranks share what: the layout of a training run over its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

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
        """Ranks that take samples of their own; those of one pipeline share theirs."""
        return self.replicate * self.shard * self.expert


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """The layout; the defaults shard everything over all ranks (FSDP2)."""

    replicate: int = 1  # copies of the sharded model
    shard: int = -1  # ranks that each hold a part of every parameter; -1: those that are left
    expert: int = 1  # ranks that share the routed experts of a layer
    pipeline: int = 1  # ranks that each run some of the blocks and layers
    schedule: Schedule = "1f1b"  # of the pipeline
    watchdog: float = 1800.0  # seconds that a rank may stand still before the job ends

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("replicate", "expert", "pipeline"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}: expected 1 or more")
        if self.shard < 1 and self.shard != -1:
            raise ValueError(f"parallel.shard is {self.shard}: expected 1 or more, or -1")
        if not self.watchdog > 0:
            raise ValueError(f"parallel.watchdog is {self.watchdog}: expected seconds above 0")

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
