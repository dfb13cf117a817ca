"""How the ranks of a job find each other, also when torchrun has started them again."""

from __future__ import annotations

import functools
import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

START = timedelta(minutes=30)
"""How long the ranks of all nodes may take to start."""


def launched_world() -> int:
    """Ranks that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_store(name: str) -> dist.Store:  # pyright: ignore[reportPrivateImportUsage]
    """A connection of its own to what the ranks of this start of the job tell each other."""
    start, _ = _this_start()
    return dist.PrefixStore(f"vl2/{start}/{name}", _connect())  # pyright: ignore[reportPrivateImportUsage]


def _connect() -> dist.TCPStore:  # pyright: ignore[reportPrivateImportUsage]
    is_server = os.environ["RANK"] == "0" and not _has_agent()
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        launched_world(),
        is_master=is_server,
        timeout=START,
        multi_tenant=True,
    )


@functools.cache
def _this_start() -> tuple[str, dist.Store]:  # pyright: ignore[reportPrivateImportUsage]
    """A name of this start of the job that all of its ranks have, and no other start.

    With it comes a connection that is never closed: the server, if it is rank 0's, lives with it.

    torchrun keeps its store when it starts the ranks again, with what processes have told that are
    gone, and its nodes count their starts each for itself. So every rank asks under a name of its
    own, and rank 0 answers until it knows that all have heard it.

    Raises:
        ConnectionError: a rank has not come.
    """
    store, rank, own = _connect(), int(os.environ["RANK"]), uuid.uuid4().hex
    others = range(1, launched_world())
    end = time.monotonic() + START.total_seconds()
    asked = dict.fromkeys(others, "")
    if rank:
        store.set(f"vl2/ask/{rank}", own)
    while time.monotonic() < end:
        if rank:
            asker, _, start = _read(store, f"vl2/answer/{rank}").partition("/")
            if asker == own:
                store.add(f"vl2/{start}/heard", 1)
                return start, store
        elif store.add(f"vl2/{own}/heard", 0) == len(others):
            return own, store
        for other in () if rank else others:
            if (asker := _read(store, f"vl2/ask/{other}")) != asked[other]:
                asked[other] = asker
                store.set(f"vl2/answer/{other}", f"{asker}/{own}")
        time.sleep(0.02)
    missing = [str(other) for other in others if not asked[other]]
    raise ConnectionError(f"rank {rank} timed out waiting for rank {', '.join(missing) or 0}")


def _read(store: dist.Store, key: str) -> str:  # pyright: ignore[reportPrivateImportUsage]
    return store.get(key).decode() if store.check([key]) else ""


def _has_agent() -> bool:
    """Whether torchrun's own process serves the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
