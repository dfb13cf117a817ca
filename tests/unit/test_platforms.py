"""Training where parts of POSIX are absent, as on Windows: imitated in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BARE = """
    import multiprocessing, os, signal, sys, types
    import torch, torch.utils.data  # their own ways of forking are not the question

    for name in ("fcntl", "pwd", "grp", "termios", "resource"):
        sys.modules[name] = None
    for name in ("SIGUSR1", "SIGUSR2", "SIGCHLD", "pthread_sigmask"):
        vars(signal).pop(name)
    vars(os).pop("register_at_fork")
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    held = set()

    def locking(descriptor, mode, length):
        file = os.fstat(descriptor).st_ino
        if file in held:
            raise PermissionError(13, "Permission denied")
        held.add(file)

    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
"""


def run_bare(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code where what Windows lacks is absent."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BARE) + textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_has_one_writer_there_too(tmp_path: Path):
    code = """
        from pathlib import Path
        from vl2.checkpoint.commit import lock_root, newest_valid, write_step
        root = Path("run")
        lock = lock_root(root)
        try:
            lock_root(root)
        except ValueError as error:
            print(error)
        write_step(root, 3, lambda folder: (folder / "a").write_bytes(b"x") and None)
        print(newest_valid(root).name, (root / ".lock").read_text() == str(os.getpid()))
    """
    done = run_bare(code, tmp_path)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "in use by another training run (process " in first
    assert last == "step-00000003 True"


@pytest.mark.slow
def test_a_run_trains_and_goes_on_there(tmp_path: Path):
    code = """
        from vl2.cli import main
        few = ["data.sources.0.rows=8", "data.batch_size=2", "data.micro_batch=1"]
        words = ["train", "debug_align", "steps=1", *few]
        print(main(words))
        held.clear()  # the file is closed, and its lock gone with it
        print(main(["train", "debug_align", "steps=2", *few]))
    """
    done = run_bare(code, tmp_path)
    assert done.stdout.splitlines()[1::2] == ["0", "0"], done.stderr
    assert "resuming after step 1 of 2" in " ".join(done.stderr.split())
