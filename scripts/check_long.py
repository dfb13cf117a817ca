"""The checks that take too long for every change: full counts, kills, soaks and latencies.

    python scripts/check_long.py [--list] [--only NAME]... [--all]

`CHECKS` is the list. Each check runs alone and adds one line to
`bench/results/DATE-check-long.jsonl`: machine, commit, command, seconds, whether it passed, the
JSON lines that it printed, and a hash of its command and of the files that it covers. A check that
passed with the same hash is not run again, so a second call after Ctrl-C goes on where the first
one ended; `--all` runs it anyway. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from vl2.benchmarks.machine import describe_machine

ROOT = Path(__file__).parents[1]
RESULTS = Path("bench/results")
LIMIT = 3 * 3600.0
"""Seconds after which a check has failed."""

GRACE = 20.0
"""Seconds that an interrupted check has to remove its temporary files."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One long check: what this Python runs, and the files whose change asks for it again."""

    name: str
    command: str
    covers: tuple[str, ...]
    """Patterns of files and folders, from the root of the project."""


MODEL = (
    "constraints.txt",
    "src/vl2/*.py",
    "src/vl2/ops",
    "src/vl2/model",
    "src/vl2/processing",
    "src/vl2/checkpoint",
)
ANSWERS = (*MODEL, "src/vl2/engine", "src/vl2/assets")
SERVER = (*ANSWERS, "src/vl2/serve")
TRAINING = (*MODEL, "src/vl2/data", "src/vl2/parallel", "src/vl2/train", "src/vl2/recipes")

CHECKS = (
    Check(
        name="counts",
        command="-m pytest -q -m 'hypothesis or full' --hypothesis-profile long --timeout 3600 "
        "--ignore-glob 'tests/e2e/test_serve*'",
        covers=("constraints.txt", "pyproject.toml", "src", "tests"),
    ),
    Check(
        name="server",
        command="-m pytest -q -m full -k test_serve --hypothesis-profile long --timeout 7200 "
        "tests/e2e",
        covers=(
            *SERVER,
            "pyproject.toml",
            "tests/conftest.py",
            "tests/e2e/serving.py",
            "tests/e2e/test_serve*.py",
            "tests/unit/picture_files.py",
        ),
    ),
    Check(
        name="server-cost",
        command="bench/serve.py",
        covers=(*SERVER, "bench/serve.py"),
    ),
    Check(
        name="server-soak",
        command="bench/serve.py --soak 10",
        covers=(*SERVER, "bench/serve.py"),
    ),
    Check(
        name="server-shapes",
        command="bench/serve.py --shapes 2000",
        covers=(*SERVER, "bench/serve.py"),
    ),
    Check(
        name="parity",
        command="bench/parity.py",
        covers=(
            *ANSWERS,
            *("src/vl2/benchmarks", "tests/golden", "tests/parity", "tests/conftest.py"),
            "bench/parity.py",
        ),
    ),
    Check(
        name="resume",
        command="scripts/resume_check.py --stops all",
        covers=(*TRAINING, "scripts/resume_check.py"),
    ),
    Check(
        name="elastic",
        command="scripts/elastic_check.py --steps 40",
        covers=(*TRAINING, "scripts/elastic_check.py"),
    ),
    Check(
        name="kills",
        command="scripts/kill_check.py --kills 2000",
        covers=(
            "constraints.txt",
            "src/vl2/checkpoint",
            "src/vl2/failure.py",
            "src/vl2/logs.py",
            "scripts/kill_check.py",
        ),
    ),
    Check(
        name="async-save",
        command="bench/async_save.py",
        covers=(*TRAINING, "src/vl2/benchmarks", "bench/async_save.py"),
    ),
    Check(
        name="load",
        command="bench/load.py --requests 200 --rounds 30",
        covers=(*ANSWERS, "src/vl2/benchmarks", "src/vl2/data", "bench/load.py"),
    ),
    Check(
        name="answers",
        command="bench/nano.py --pictures 400",
        covers=(*TRAINING, *ANSWERS, "src/vl2/benchmarks", "bench/nano.py"),
    ),
    Check(
        name="latency",
        command="-m vl2 bench summary --model tiny --json --rounds 5 --tokens 16",
        covers=(*ANSWERS, "src/vl2/benchmarks", "src/vl2/cli/bench.py"),
    ),
    Check(
        name="tiles",
        command="bench/tiles.py",
        covers=("constraints.txt", "src/vl2/*.py", "src/vl2/data", "bench/tiles.py"),
    ),
)


def covered_files(check: Check, root: Path) -> list[Path]:
    """The files that a check covers, sorted; caches of Python are none.

    Raises:
        ValueError: nothing has the name that a pattern gives.
    """
    files: set[Path] = set()
    for pattern in check.covers:
        found = list(root.glob(pattern))
        if not found:
            raise ValueError(f"check {check.name} covers {pattern!r}, which does not exist")
        for path in found:
            files |= set(path.rglob("*")) if path.is_dir() else {path}
    return sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts)


def hash_of(check: Check, root: Path) -> str:
    """SHA-256 of the command and of the names and contents of the covered files."""
    digest = hashlib.sha256(check.command.encode())
    for file in covered_files(check, root):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"\n{file.relative_to(root).as_posix()} {content}".encode())
    return digest.hexdigest()


def records(root: Path) -> Iterator[Record]:
    """Everything that was recorded, the oldest first."""
    for file in sorted((root / RESULTS).glob("*-check-long.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def passed_before(check: Check, root: Path) -> Record | None:
    """The newest record of a pass with the files as they are."""
    now = hash_of(check, root)
    same = [r for r in records(root) if (r["name"], r["hash"]) == (check.name, now) and r["passed"]]
    return same[-1] if same else None


def run(command: Sequence[str], root: Path) -> tuple[int, list[Record]]:
    """Run a command of this Python; returns its exit code and the JSON objects that it printed.

    Everything else that it prints goes to stderr. Its processes end with this function.
    """
    figures = []
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        limit = threading.Timer(LIMIT, stop_group, (process.pid, signal.SIGKILL))
        limit.start()
        try:
            for line in process.stdout or ():
                try:
                    figures.append(dict(json.loads(line)))
                except (TypeError, ValueError):
                    sys.stderr.write(line)
            return process.wait(), figures
        except BaseException:
            stop_group(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
        finally:
            limit.cancel()
            stop_group(process.pid, signal.SIGKILL)


def stop_group(leader: int, how: signal.Signals) -> None:
    """Signal a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(leader, how)


def git(root: Path, *words: str) -> str | None:
    """What git answers; None outside of a repository."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def perform(check: Check, root: Path) -> Record:
    """Run one check and record it."""
    before, start = hash_of(check, root), time.perf_counter()
    code, figures = run(shlex.split(check.command), root)
    seconds = round(time.perf_counter() - start, 3)
    changed = hash_of(check, root) != before
    if changed:
        sys.stderr.write(f"{check.name}: files that it covers changed while it ran\n")
    record = {
        "name": check.name,
        "passed": code == 0 and not changed,
        "exit_code": code,
        "seconds": seconds,
        "date": date.today().isoformat(),
        "command": f"python {check.command}",
        "commit": git(root, "rev-parse", "--short", "HEAD"),
        "clean": git(root, "status", "--porcelain", "--", ".", f":!{RESULTS}") == "",
        "machine": {"python": platform.python_version(), **describe_machine()},
        "hash": before,
        "figures": figures,
    }
    file = root / RESULTS / f"{record['date']}-check-long.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    return record


def show(checks: Sequence[Check], root: Path) -> None:
    """Print name, state, command and number of covered files of each check."""
    for check in checks:
        known = passed_before(check, root)
        state = f"passed {known['date']}, {known['seconds']:.0f} s" if known else "to run"
        print(f"{check.name:<16}{state:<28}python {check.command}")
        print(f"{'':<16}covers {len(covered_files(check, root))} files")


def run_all(checks: Sequence[Check], root: Path, *, anyway: bool) -> int:
    """Run what has not passed with these files; 1 if one failed."""
    failed = []
    for number, check in enumerate(checks, start=1):
        place, known = f"[{number}/{len(checks)}] {check.name}", passed_before(check, root)
        if known and not anyway:
            print(f"{place}: passed with these files on {known['date']}", flush=True)
            continue
        print(f"{place}: python {check.command}", flush=True)
        record = perform(check, root)
        word = "passed" if record["passed"] else f"FAILED with exit code {record['exit_code']}"
        print(f"{place}: {word} after {record['seconds']:.0f} s", flush=True)
        failed += [] if record["passed"] else [check.name]
    print(f"{len(checks) - len(failed)} of {len(checks)} long checks hold for these files")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def main(
    words: Sequence[str] | None = None, checks: Sequence[Check] = CHECKS, root: Path = ROOT
) -> int:
    """Run or list the checks."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = [check.name for check in checks]
    parser.add_argument("--only", action="append", choices=names, help="repeatable")
    parser.add_argument("--list", action="store_true", help="show the checks and run none")
    parser.add_argument("--all", action="store_true", help="also what passed with these files")
    given = parser.parse_args(words)
    chosen = [check for check in checks if not given.only or check.name in given.only]
    if given.list:
        show(chosen, root)
        return 0
    try:
        return run_all(chosen, root, anyway=given.all)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume with the check that was running")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
