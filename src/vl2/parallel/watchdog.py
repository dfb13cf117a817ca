"""Names the rank that stands still, and ends the job everywhere, so that it can be started again.

Each rank's thread tells the others every few seconds that it lives, and how far its trainer is. A
process that was stopped or lost is not heard of any more. One that hangs is heard of, and stands
still in front of what the others wait in.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from vl2.logs import get_logger
from vl2.parallel.mesh import Ranks, open_store

log = get_logger(__name__)

STUCK = 76
"""Exit code of ranks that ended because one of them stood still."""

SILENCE = 120.0
"""Seconds without a sign of life, at most, before a rank counts as lost."""

BEATS = 5
"""Signs of life in that time."""

PATIENT = ("saving",)
"""What may take as long as it takes, as long as the process lives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """What was last heard of a rank, and when (by this rank's clock)."""

    said: Mapping[str, Any]  # beat, step, doing, host, pid
    heard: float  # since when the beat is the same
    moved: float  # since when step and doing are


class Watchdog:
    """Watches the ranks of a run while it is entered."""

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        """Prepare.

        Args:
            ranks: of the run; one that is alone has nobody to wait for and is not watched.
            seconds: how long a rank may be silent or stand still.
        """
        self.ranks, self.seconds = ranks, seconds
        self.silence = min(seconds, SILENCE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Begin."""
        if not self.ranks.is_alone:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; the thread stops by itself."""
        self._over.set()

    def _watch(self) -> None:
        world, own = self.ranks.layout.world, self.ranks.rank
        signs: dict[int, Sign] = {}
        beat, store = 0, open_store("signs")
        while not self._over.wait(self.silence / BEATS):
            beat += 1
            pulse = self.ranks.pulse
            said = {"beat": beat, "step": pulse.step, "doing": pulse.doing}
            store.set(
                str(own), json.dumps({**said, "host": socket.gethostname(), "pid": os.getpid()})
            )
            for rank in range(world):
                text = store.get(str(rank)) if store.check([str(rank)]) else b"{}"
                signs[rank] = _heard(signs.get(rank), json.loads(text), time.monotonic())
            now = time.monotonic()
            if stuck := find_stuck(signs, self.seconds, now, silence=self.silence):
                self._end(stuck, signs)

    def _end(self, stuck: Mapping[int, str], signs: Mapping[int, Sign]) -> None:
        """Say who, show where this rank is, and leave; a lost process of this node is ended too."""
        for rank, why in stuck.items():
            log.error("rank %d %s; all ranks end (exit code %d)", rank, why, STUCK)
        if self.ranks.rank in stuck or len(stuck) == len(signs):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        for rank in stuck:
            said = signs[rank].said
            if rank != self.ranks.rank and said.get("host") == socket.gethostname():
                with suppress(ProcessLookupError):
                    os.kill(said["pid"], signal.SIGKILL)
        os._exit(STUCK)


def find_stuck(
    signs: Mapping[int, Sign], seconds: float, now: float, *, silence: float = SILENCE
) -> dict[int, str]:
    """The ranks that everybody waits for, and what is wrong with each.

    Silent ones first. Otherwise, if no rank has moved for so long, those that are the furthest
    behind; all of them, when they stand at the same place.
    """
    silent = {
        rank: f"has not been heard of for {now - sign.heard:.0f} s, last at {_place(sign)}"
        for rank, sign in signs.items()
        if now - sign.heard > silence
    }
    if silent:
        return silent
    if any(s.said.get("doing") in PATIENT or now - s.moved <= seconds for s in signs.values()):
        return {}
    steps = [sign.said.get("step", 0) for sign in signs.values()]
    behind = {rank: s for rank, s in signs.items() if s.said.get("step", 0) == min(steps)}
    before_data = {r: s for r, s in behind.items() if s.said.get("doing") == "waiting for data"}
    return {
        rank: f"stands still since {now - sign.moved:.0f} s at {_place(sign)}"
        for rank, sign in (before_data or behind).items()
    }


def _place(sign: Sign) -> str:
    return f"step {sign.said.get('step', 0)}, {sign.said.get('doing', 'starting')}"


def _heard(before: Sign | None, said: Mapping[str, Any], now: float) -> Sign:
    if before is None:
        return Sign(said=said, heard=now, moved=now)
    same_beat = said.get("beat") == before.said.get("beat")
    same_place = all(said.get(key) == before.said.get(key) for key in ("step", "doing"))
    return Sign(
        said=said,
        heard=before.heard if same_beat else now,
        moved=before.moved if same_place else now,
    )
