"""Names the rank that stands still, and ends the job everywhere, so that it can be started again.

Each rank tells the main one every few seconds that it lives, and how far its trainer is. A process
that was stopped or lost is not heard of any more. One that hangs is heard of, and stands still in
front of what the others wait in. The main rank judges; the others listen to it, and whether it
lives. Time in which this process itself was suspended, as a scheduler may do to the whole job, does
not count.
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
from vl2.parallel.mesh import Ranks
from vl2.parallel.rendezvous import open_store

log = get_logger(__name__)

STUCK = 76
"""Exit code of ranks that ended because one of them stood still."""

SILENCE = 120.0
"""Seconds without a sign of life, at most, before a rank counts as lost."""

BEATS = 5
"""Fewest signs of life in that time."""

INTERVAL = 3.0
"""Most seconds between two signs: the job ends within three of these after the limit."""

PATIENT = ("starting", "saving", "exporting")
"""Work that may take as long as it needs while the process lives."""

LEFT = "left"
"""Sign of a rank that is not watched any more."""

VERDICT = "verdict"
"""Name under which the main rank tells who is stuck."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """The last sign of a rank, and when it came (by this rank's clock)."""

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
        self.interval = min(self.silence / BEATS, INTERVAL)
        self._over, self._ending = threading.Event(), threading.Event()
        self._rounds = 0
        self._threads = [
            threading.Thread(target=work, name="watchdog", daemon=True)
            for work in (self._watch, self._watch_store)
        ]

    def __enter__(self) -> Watchdog:
        """Begin, with a first sign."""
        if not self.ranks.is_alone:
            self._store = open_store("signs")
            self._store.set(str(self.ranks.rank), json.dumps(self._sign()))
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, unless the verdict has come: it ends the process, whatever goes wrong beside it.

        A thread that is still within the store when Python ends would abort the process.
        """
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(None if self._ending.is_set() else self.interval)

    def _watch(self) -> None:
        try:
            self._listen()
        except RuntimeError as error:  # of the store
            self._lost(str(error).partition("\n")[0])

    def _listen(self) -> None:
        """Give signs, and read the signs of the ranks that this one watches."""
        ranks, store = self.ranks, self._store
        watched = range(ranks.layout.world) if ranks.is_main else [0]
        limit = self.seconds if ranks.is_main else float("inf")
        signs: dict[int, Sign] = {}
        now, before = 0.0, time.monotonic()
        while not self._over.wait(self.interval):
            self._rounds += 1
            store.set(str(ranks.rank), json.dumps(self._sign()))
            said = _read(store, [str(rank) for rank in watched])
            now += min(time.monotonic() - before, 2 * self.interval)
            before = time.monotonic()
            for rank, words in zip(watched, said, strict=True):
                signs[rank] = _heard(signs.get(rank), words, now)
            [verdict] = _read(store, [VERDICT])
            if stuck := find_stuck(signs, limit, now, silence=self.silence):
                verdict = _verdict(stuck, signs, now, self.silence)
                if ranks.is_main:
                    store.set(VERDICT, json.dumps(verdict))
                _say(stuck, signs)
            if verdict and not self._over.is_set():
                self._end(verdict)
        store.set(str(ranks.rank), json.dumps({**self._sign(), "doing": LEFT}))

    def _watch_store(self) -> None:
        """The store may be gone, or stopped: reading the signs does not return then."""
        rounds, waits = 0, 0
        while not self._over.wait(self.interval):
            waits = waits + 1 if self._rounds == rounds else 0
            rounds = self._rounds
            if waits * self.interval > self.silence:
                self._lost("no answer")

    def _sign(self) -> dict[str, Any]:
        pulse = self.ranks.pulse
        place = {"beat": self._rounds, "step": pulse.step, "doing": pulse.doing}
        return {**place, "host": socket.gethostname(), "pid": os.getpid()}

    def _lost(self, why: str) -> None:
        if not self._over.is_set() and not self._ending.is_set():
            text = "rank %d does not reach torchrun or rank 0 any more (%s) and ends (exit code %d)"
            log.error(text, self.ranks.rank, why, STUCK)
            os._exit(STUCK)

    def _end(self, verdict: Mapping[str, Any]) -> None:
        """Leave, a rank that hangs with a picture of where; lost ones of this node are ended."""
        self._ending.set()
        if str(self.ranks.rank) in verdict:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        if self.ranks.is_main:  # it may serve the store, from which the others hear of it
            time.sleep(1.5 * self.interval)
        for rank, found in verdict.items():
            own = rank == str(self.ranks.rank)
            if found["lost"] and not own and found["host"] == socket.gethostname():
                with suppress(ProcessLookupError):
                    os.kill(found["pid"], signal.SIGKILL)
        os._exit(STUCK)


def find_stuck(
    signs: Mapping[int, Sign], seconds: float, now: float, *, silence: float = SILENCE
) -> dict[int, str]:
    """The ranks that everybody waits for, and what is wrong with each.

    Silent ranks first. Otherwise, if no rank has moved for so long, the ranks that are the furthest
    behind; all, when they stand at the same place. Ranks that have left do not count.
    """
    signs = {rank: sign for rank, sign in signs.items() if sign.said.get("doing") != LEFT}
    silent = {
        rank: f"sent no sign of life for {now - sign.heard:.0f} s, last at {_place(sign)}"
        for rank, sign in signs.items()
        if now - sign.heard > silence
    }
    if silent:
        return silent
    moving = (_doing(s) in PATIENT or now - s.moved <= seconds for s in signs.values())
    if not signs or any(moving):
        return {}
    steps = [sign.said.get("step", 0) for sign in signs.values()]
    behind = {rank: s for rank, s in signs.items() if s.said.get("step", 0) == min(steps)}
    before_data = {r: s for r, s in behind.items() if _doing(s) == "waiting for data"}
    return {
        rank: f"has made no progress for {now - sign.moved:.0f} s at {_place(sign)}"
        for rank, sign in (before_data or behind).items()
    }


def _say(stuck: Mapping[int, str], signs: Mapping[int, Sign]) -> None:
    for rank, why in stuck.items():
        said = signs[rank].said
        who = f"rank {rank} (process {said.get('pid')} on {said.get('host')})"
        log.error("%s %s; all ranks end (exit code %d)", who, why, STUCK)


def _place(sign: Sign) -> str:
    return f"step {sign.said.get('step', 0)}, {_doing(sign)}"


def _doing(sign: Sign) -> str:
    return sign.said.get("doing", "starting")


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


def _verdict(
    stuck: Mapping[int, str], signs: Mapping[int, Sign], now: float, silence: float
) -> dict[str, Any]:
    """Host, process and loss of each stuck rank, for the other ranks."""
    return {
        str(rank): {
            "host": signs[rank].said.get("host"),
            "pid": signs[rank].said.get("pid"),
            "lost": now - signs[rank].heard > silence,
        }
        for rank in stuck
    }


def _read(store: Any, names: list[str]) -> list[dict[str, Any]]:
    """The values under each name, in one request if all exist; {} where none does."""
    if store.check(names):
        return [json.loads(text) for text in store.multi_get(names)]
    return [json.loads(store.get(name)) if store.check([name]) else {} for name in names]
