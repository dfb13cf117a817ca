"""The command on several ranks, with all the processes that come of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.distributed.launch import ROOT, free_port, rank_envs, server

MARK = "VL2_TEST_JOB"  # in the environment of every process of a job


class Job:
    """`vl2 WORDS` on n ranks: forked, as `run_ranks` does it, or started by torchrun.

    Use it as a context manager: behind it nothing that came of the job is left.

    Args:
        n: number of ranks.
        words: of the command.
        log: gets what all of them write.
        nodes: that torchrun is started on; here they share a machine. 0 forks the ranks.
        restarts: that torchrun may try.
        first: of the top level of a test module, called with the words on each forked rank; returns
            the words that this rank takes.
    """

    def __init__(
        self,
        n: int,
        words: Sequence[str],
        log: Path,
        *,
        nodes: int = 0,
        restarts: int = 0,
        first: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        self.log, self.mark = log, uuid.uuid4().hex
        self.agents: list[subprocess.Popen[bytes]] = []
        self.started: list[int] = []
        log.touch()
        if not nodes:
            envs = [env | {MARK: self.mark} for env in rank_envs(n)]
            before = "" if first is None else f"{first.__module__}:{first.__qualname__}"
            words = ["vl2", before, *words]
            self.started = [server().start(words, env, log) for env in envs]
            return
        command = [sys.executable, "-X", "faulthandler", "-m", "torch.distributed.run"]
        command += [f"--nnodes={nodes}", f"--nproc-per-node={n // nodes}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
        command += [f"--max-restarts={restarts}", "-m", "vl2.cli", *words]
        env = os.environ | {"OMP_NUM_THREADS": "1", MARK: self.mark}
        with log.open("ab") as out:
            self.agents = [
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
                for _ in range(nodes)
            ]

    def wait(self, timeout: float = 60.0) -> list[int]:
        """Exit codes by rank, or of torchrun on each node."""
        self.until(lambda: not self.runs, timeout, "ended")
        codes = [server().codes[pid] for pid in self.started]
        return codes or [agent.returncode for agent in self.agents]

    @property
    def runs(self) -> bool:
        """Whether it has not ended by itself."""
        agents = [agent for agent in self.agents if agent.poll() is None]
        return bool(agents or (self.started and server().running(self.started)))

    def until(self, done: Callable[[], bool], timeout: float = 60.0, what: str = "there") -> None:
        """Wait for something that the job does.

        Raises:
            AssertionError: it did not within the time, or has ended before; has its output.
        """
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end or not (self.runs or done()):
                for pid in self.ranks().values():
                    os.kill(pid, signal.SIGABRT)  # faulthandler writes where it stands
                time.sleep(1.0)
                raise AssertionError(f"not {what} within {timeout:g} s:\n{self.output[-12000:]}")
            time.sleep(0.02)

    def ranks(self) -> dict[int, int]:
        """The process of each rank that lives, by its number."""
        if not self.agents:
            running = server().running(self.started)
            return {rank: pid for rank, pid in enumerate(self.started) if pid in running}
        found = {pid: env for pid, env in self._processes() if "RANK" in env}
        return {int(e["RANK"]): pid for pid, e in found.items() if _stat(pid)[1] not in found}

    def left(self, within: float = 5.0) -> list[str]:
        """Command lines of what came of the job and still lives after some seconds at most."""
        end = time.monotonic() + within
        while (found := [_words(pid) for pid, _ in self._processes()]) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    @property
    def output(self) -> str:
        """What all of them wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines in which the command says what is wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        while self.runs or self.left(within=0):
            for pid, _ in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _processes(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Everything of the job that lives, with its environment.

        A forked rank shows the one of the process that it was forked from, but leads a session.
        """
        for folder in Path("/proc").iterdir():
            pid = int(folder.name) if folder.name.isdigit() else 0
            with suppress(OSError):
                state, _, session = _stat(pid) if pid else ("Z", 0, 0)
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(word.split("=", 1) for word in words if "=" in word)
                if state != "Z" and (env.get(MARK) == self.mark or session in self.started):
                    yield pid, env


def _stat(pid: int) -> tuple[str, int, int]:
    """State, parent and session of a process; nothing of one that has gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[1]), int(fields[3])
    return "Z", 0, 0


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
