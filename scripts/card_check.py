"""One run on one card, at most 13 minutes, that shows the most about it.

    python scripts/card_check.py [--minutes 12.5] [--only STEP ...] [--out out/card]
    python scripts/card_check.py --device cpu --dry-run     # the same steps in toy sizes, anywhere

Prints one JSON line per figure, and per step one with `"ok"`, its seconds and what failed. Each
step is a process with a time limit of its own, forked before CUDA is used, so that one that fails,
hangs or breaks the card's context takes no other with it; `--out` keeps what they wrote. It ends
with 1 when a step failed or found no time, with 2 when there is no card. The steps stand in
scripts/card_steps.py.

    versions    PyTorch, CUDA, the card, and which attention kernels run
    gradients   grouped products of experts beside the plain ones, with experts that get no token
    tests       those marked `gpu`, the compiled ones too
    bounds      bandwidth and products, answers of the CPU, attention (bench/gpu.py, as below)
    tiny        Tiny in bfloat16: a step recorded and plain, decoding, 64 answers, a long prompt
    float8      the same in float8
    ragged      64 prompts of unequal length, one of 4k, in one engine of default size
    profile     the kernels of one step of a prompt and of one decoded token
    compiled    Tiny compiled, bfloat16
    small       Small in bfloat16
    int4        the embedded model in int4 on CPU and card, and four layers of Tiny
    training    steps of Tiny's exact shapes (bench/training.py)
    resume      a run that is killed or stopped goes on bit for bit (scripts/resume_check.py)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from card_steps import NO_CARD, STEPS, Record, Run


def attempt(name: str, run: Run, seconds: float) -> Iterator[Record]:
    """Run a step in a process of its own; its figures, then how it ended."""
    figures, log = run.out / f"{name}.jsonl", run.out / f"{name}.txt"
    start, child = time.monotonic(), os.fork()
    if not child:
        _work(name, run, figures, log)
    code = None
    while code is None and time.monotonic() < start + seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.02)
    if code is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for line in figures.read_text(encoding="utf-8").splitlines():
        yield {"step": name, **json.loads(line)}
    said = log.read_text(encoding="utf-8", errors="replace").split("\n")
    reason = None
    if code is None:
        reason = f"took longer than {seconds:.0f} s"
    elif code:
        reason = next((line for line in reversed(said) if line.strip()), f"ended with {code}")
    taken = round(time.monotonic() - start, 1)
    yield {"step": name, "ok": code == 0, "seconds": taken, "code": code, "error": reason}


def _work(name: str, run: Run, figures: Path, log: Path) -> None:
    """The child: figures and messages go to files, and nothing of the parent is run after it."""
    code = 1
    try:
        os.setsid()  # so that a step ends together with the processes that it started
        for path, descriptor in ((figures, 1), (log, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))
        for record in STEPS[name][0](run):
            print(json.dumps(record, default=str), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def check(run: Run, names: list[str], end: float) -> Iterator[Record]:
    """All steps until `end`, a time of `time.monotonic`."""
    for name in names:
        left = end - time.monotonic()
        if left < 5:
            yield {"step": name, "ok": False, "error": "no time left: raise --minutes"}
            continue
        yield from attempt(name, run, min(STEPS[name][1], left))


def main() -> int:
    """Print everything; 1 when a step failed, 2 without a card."""
    parser = argparse.ArgumentParser(description="What one run on one card can show.")
    parser.add_argument("--minutes", type=float, default=12.5)
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on any device")
    parser.add_argument("--out", type=Path, default=Path("out/card"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(device=torch.device(given.device), dry=given.dry_run, out=given.out)
    good, end = True, time.monotonic() + 60 * given.minutes
    for record in check(run, given.only, end):
        print(json.dumps(record), flush=True)
        if record["step"] == "versions" and record.get("code") == NO_CARD:
            print(f"card_check: {record['error']}; --device cpu --dry-run", file=sys.stderr)
            return NO_CARD
        good &= record.get("ok", True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
