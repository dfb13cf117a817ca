"""The ranks of a run, the mesh that they form, and the few sums that the trainer needs over them.

One process per rank, started by torchrun; without it there is one rank and no process group.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vl2.failure import WorkError
from vl2.parallel.config import Layout, ParallelConfig
from vl2.parallel.rendezvous import launched_world, open_store

T = TypeVar("T")

ONE = Layout(1, 1, 1, 1)
PATIENCE = timedelta(days=1)
"""How long ranks wait for each other: one may index data for hours. See `watchdog` for the rest."""
PIPES = ("pipeline", "data")
_JOINED = itertools.count()  # a process may join anew, where the names of before are taken


class SharedError(ValueError):
    """An error that all ranks raise alike, so that one rank reports it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meshes:
    """The mesh of the ranks, cut in three ways; `pipeline` is outermost in all of them."""

    experts: DeviceMesh  # (pipeline, replicate, shard, expert): routed experts
    dense: DeviceMesh  # (pipeline, replicate, shard): everything else; shard is shard x expert
    data: DeviceMesh  # (pipeline, data): ranks with samples of their own


@dataclass(kw_only=True, slots=True)
class Pulse:
    """How far this rank's trainer is, for the watchdog."""

    step: int = 0
    doing: str = "starting"

    def at(self, step: int, doing: str) -> None:
        """Note what the trainer is doing."""
        self.step, self.doing = step, doing


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among the processes of the run. Without meshes it is alone."""

    layout: Layout = ONE
    rank: int = 0
    meshes: Meshes | None = None
    group: dist.ProcessGroup | None = None  # all ranks, over the network and not the cards
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.meshes is None

    @property
    def data_rank(self) -> int:
        """Number among the ranks that take samples of their own."""
        return self.rank % self.layout.data

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks that take samples of their own; the ranks of a pipeline count once."""
        if self.meshes is None:
            return values
        values = values.clone()
        dist.all_reduce(values, group=self.meshes.data["data"].get_group())
        return values

    def most(self, value: Tensor) -> Tensor:
        """Largest over all ranks."""
        if self.group is None:
            return value
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return value

    def gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, in their order: what one process has to tell the others."""
        if self.group is None:
            return [text]
        own = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        used = torch.tensor([len(text.encode())])
        lengths = [torch.empty_like(used) for _ in range(self.layout.world)]
        dist.all_gather(lengths, used, group=self.group)
        room = max(1, *(int(length) for length in lengths))
        texts = [torch.empty(room, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(texts, F.pad(own, (0, room - len(own))), group=self.group)
        pairs = zip(texts, lengths, strict=True)
        return [bytes(t[: int(length)].tolist()).decode() for t, length in pairs]

    def gather_data(self, text: str) -> list[str]:
        """The texts of the ranks that take samples of their own, one for each, about their data."""
        doing, self.pulse.doing = self.pulse.doing, "waiting for other ranks"
        texts = self.gather_text(text)
        self.pulse.doing = doing
        return texts[: self.layout.data]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.group is not None:
            dist.barrier(self.group)

    def together(self, work: Callable[[], T]) -> T:
        """Do the same on every rank; what is wrong on one is wrong on all.

        Raises:
            SharedError: `work` raised a `ValueError` on some rank; the first one's message.
            WorkError: it raised that.
        """
        result, problem = None, ""
        try:
            result = work()
        except (ValueError, WorkError) as error:
            if self.group is None:
                raise
            problem = ("work:" if isinstance(error, WorkError) else "use:") + str(error)
        for rank, found in enumerate(self.gather_text(problem)):
            if found:
                kind, _, text = found.partition(":")
                error = SharedError if kind == "use" else WorkError
                raise error(text if rank == 0 else f"rank {rank}: {text}")
        return cast("T", result)

    def main_first(self, work: Callable[[], T]) -> T:
        """Do the same on every rank, but on the main one before the others: it fills caches.

        Raises:
            SharedError: see `together`.
        """
        done = self.together(lambda: [work()] if self.is_main else [])
        return self.together(lambda: done[0] if done else work())

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do the same on every rank, but on one of a node at a time: it takes much memory.

        Raises:
            SharedError: see `together`.
        """
        own = int(os.environ.get("LOCAL_RANK", "0"))
        turns = int(self.most(torch.tensor(own))) + 1
        done: list[T] = []
        for turn in range(turns):
            done += self.together(lambda now=turn: [work()] if now == own else [])
        return done[0]

    def require_same(self, what: str, text: str) -> None:
        """Make sure that every rank was started alike.

        Raises:
            SharedError: `text` differs between ranks.
        """
        texts = self.gather_text(text)
        others = [str(rank) for rank, other in enumerate(texts) if other != texts[0]]
        if others:
            raise SharedError(
                f"rank {', '.join(others)} was started with another {what} than rank 0: "
                "give every node the same command and the same release"
            )

    def apart(self) -> Ranks:
        """These ranks with connections of their own, for a second thread."""
        return self if self.is_alone else replace(self, group=_network())


ALONE = Ranks()


def join(config: ParallelConfig, device: str, started: str = "") -> Ranks:
    """Join the ranks that torchrun started, and build their mesh.

    The axes, outermost first, are `pipeline`, `replicate`, `shard` and `expert`: what speaks most
    stays within a node.

    Args:
        config: the layout.
        device: "cuda" gives each process of a node its own card; others share the CPU.
        started: release and configuration, which must be the same on all ranks.

    Raises:
        SharedError: they are not, or the layout does not divide the ranks.
        ValueError: this node has fewer cards than processes.
    """
    world = launched_world()
    if world == 1:
        return Ranks(layout=config.layout(world))
    kind = torch.device(device).type
    if kind == "cuda":
        _take_card()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=open_store(f"groups/{next(_JOINED)}"),
            rank=int(os.environ["RANK"]),
            world_size=world,
            timeout=PATIENCE,
        )
    ranks = Ranks(layout=Layout(1, 1, world, 1), rank=dist.get_rank(), group=_network())
    ranks.require_same("release or configuration", started)
    layout = ranks.together(lambda: config.layout(world))
    return replace(ranks, layout=layout, meshes=_meshes(layout, kind))


def _meshes(layout: Layout, kind: str) -> Meshes:
    outer, inner = (layout.pipeline, layout.replicate), layout.shard * layout.expert
    return Meshes(
        experts=init_device_mesh(kind, tuple(layout), mesh_dim_names=Layout._fields),
        dense=init_device_mesh(kind, (*outer, inner), mesh_dim_names=Layout._fields[:3]),
        data=init_device_mesh(kind, (layout.pipeline, layout.data), mesh_dim_names=PIPES),
    )


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error means that another rank has gone, in words of gloo, NCCL or the store."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _network() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    return group


def _take_card() -> None:
    local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= cards:
        raise ValueError(
            f"process {local} of this node has no card: it has {cards}; "
            "start as many processes per node as it has cards"
        )
    torch.cuda.set_device(local)
