"""The protocol of steps: order of operations, what counts, what survives a kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vl2.checkpoint.commit import (
    committed,
    discard_after,
    keep_last,
    lock_root,
    newest_state,
    newest_valid,
    write_step,
)
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.manifest import MANIFEST, MARKER, step_number, verify

ROOT = Path(__file__).parents[2]


def fill(folder: Path) -> None:
    """Two files that tell which step they belong to, one of them in a folder."""
    (folder / "a.bin").write_bytes(folder.name.encode() * 50)
    (folder / "part").mkdir()
    (folder / "part" / "b.bin").write_bytes(folder.name.encode())


def steps(root: Path) -> list[int]:
    return [step_number(folder) for folder in committed(root)]


def write(root: Path, *numbers: int) -> None:
    for number in numbers:
        write_step(root, number, fill)


def damage(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"?")


def test_import_needs_no_torch():
    code = "import sys, vl2.checkpoint.commit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_step_is_its_files_the_manifest_and_the_marker(tmp_path: Path):
    folder = write_step(tmp_path / "new" / "root", 20, fill)
    assert folder.name == "step-00000020"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {"a.bin", "part/b.bin", "manifest.json", "COMMITTED"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"].keys() == {"a.bin", "part/b.bin"}
    verify(folder)
    assert newest_valid(folder.parent) == folder


def test_no_step_is_none(tmp_path: Path):
    assert newest_valid(tmp_path) is None
    assert newest_valid(tmp_path / "missing") is None


def test_everything_is_flushed_before_the_name_and_the_name_before_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def on_fsync(descriptor: int) -> None:
        events.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def on_rename(source: Path, target: Path) -> None:
        events.append(f"rename {Path(source).name} {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "rename", on_rename)
    write_step(tmp_path, 3, fill)
    named = events.index("rename step-00000003.tmp step-00000003")
    assert {"flush a.bin", "flush b.bin", "flush part", "flush manifest.json"} <= {*events[:named]}
    assert events[named - 1] == "flush step-00000003.tmp"
    assert events[named + 1 :] == [
        f"flush {tmp_path.name}",
        "flush COMMITTED.tmp",
        "rename COMMITTED.tmp COMMITTED",
        "flush step-00000003",
    ]


@pytest.mark.parametrize("call", range(1, 10))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_failing_disk_leaves_the_older_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int
):
    write(tmp_path, 1)
    calls, fsync = 0, os.fsync

    def fail(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        if call == 9:
            write(tmp_path, 2)
            assert calls == 8  # the range above covers every flush
            return
        with pytest.raises(CheckpointError, match=f"step 2 in {tmp_path}: {os.strerror(code)}"):
            write(tmp_path, 2)
    # The last flush comes after the marker: the step may be reported as failed and still be whole.
    assert {p.name for p in tmp_path.iterdir()} - {"step-00000002"} == {"step-00000001"}
    if call < 8:
        assert steps(tmp_path) == [1]
        write(tmp_path, 2)
    verify(tmp_path / "step-00000001")
    verify(tmp_path / "step-00000002")


def test_a_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    write(tmp_path, 1)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: Read-only file system"):
        write(tmp_path, 2)
    with pytest.raises(CheckpointError, match="cannot lock"):
        lock_root(tmp_path / "new")
    assert newest_valid(tmp_path) == tmp_path / "step-00000001"


def test_a_failing_writer_leaves_nothing(tmp_path: Path):
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("no")

    write(tmp_path, 1)
    with pytest.raises(RuntimeError, match="no"):
        write_step(tmp_path, 2, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_leftovers_are_swept_and_foreign_folders_stay(tmp_path: Path):
    write(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "COMMITTED").unlink()
    fill_in = tmp_path / "step-00000003.tmp"
    fill_in.mkdir()
    fill(fill_in)
    foreign = tmp_path / "step-00000009"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    write(tmp_path, 4)
    names = {"step-00000001", "step-00000004", "step-00000009"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert (foreign / "mine.txt").read_text() == "mine"
    assert newest_valid(tmp_path) == tmp_path / "step-00000004"


def rename_to(folder: Path, name: str) -> Path:
    return folder.rename(folder.with_name(name))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "short": (lambda f: (f / "a.bin").write_bytes(b"?"), r"a\.bin has 1 bytes, .* says 850"),
    "content": (lambda f: (f / "a.bin").write_bytes(b"?" * 850), r"a\.bin has another sha256"),
    "missing": (lambda f: (f / "part" / "b.bin").unlink(), r"part/b\.bin is missing"),
    "more": (lambda f: (f / "more").touch(), r"more is not in manifest\.json"),
    "link": (lambda f: (f / "link").symlink_to(f / "a.bin"), "link is not a regular file"),
    "marker": (lambda f: (f / "COMMITTED").unlink(), "COMMITTED is missing"),
    "manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
    "end of marker": (
        lambda f: (f / "COMMITTED").write_bytes((f / "COMMITTED").read_bytes()[:-1]),
        r"manifest\.json is not the one that COMMITTED names",
    ),
    "another step": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.with_name("step-00000001"), f)),
        r"manifest\.json belongs to step 1, not 2",
    ),
    "folder": (
        lambda f: ((f / "a.bin").unlink(), (f / "a.bin").mkdir()),
        r"a\.bin is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_older_step_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
):
    write(tmp_path, 1, 2)
    action, message = DAMAGES[name]
    action(tmp_path / "step-00000002")
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path / "step-00000002")
    assert newest_valid(tmp_path) == tmp_path / "step-00000001"
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith(f"skipped step 2: {tmp_path / 'step-00000002'}")


def test_a_forged_manifest_is_refused(tmp_path: Path):
    import hashlib

    folder = write_step(tmp_path, 1, fill)
    for text in (b"[]", b'{"step": 1, "files": {"a.bin": 1}}', b"\xff", b'{"step": 1}'):
        (folder / "manifest.json").write_bytes(text)
        (folder / "COMMITTED").write_text(hashlib.sha256(text).hexdigest() + "\n")
        with pytest.raises(CheckpointError, match="is not the manifest of a step"):
            verify(folder)


def test_keep_last(tmp_path: Path):
    write(tmp_path, 1, 2, 3, 4)
    keep_last(tmp_path, 9)
    assert steps(tmp_path) == [1, 2, 3, 4]
    keep_last(tmp_path, 2)
    assert steps(tmp_path) == [3, 4]
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="keep is 0"):
        keep_last(tmp_path, 0)


def test_keep_last_keeps_the_newest_valid(tmp_path: Path):
    write(tmp_path, 1, 2, 3, 4)
    damage(tmp_path / "step-00000003")
    damage(tmp_path / "step-00000004")
    keep_last(tmp_path, 1)
    assert steps(tmp_path) == [2, 4]


def test_a_removal_takes_the_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(CheckpointError, match="cannot remove old steps"):
            keep_last(tmp_path, 1)
    assert steps(tmp_path) == [2]
    write(tmp_path, 3)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000002", "step-00000003"}


def test_a_whole_later_step_is_not_overtaken_in_silence(tmp_path: Path):
    write(tmp_path, 1, 4)
    for number in (2, 4):
        with pytest.raises(CheckpointError, match="step-00000004 is there and whole"):
            write(tmp_path, number)
    assert steps(tmp_path) == [1, 4]
    discard_after(tmp_path, 1)
    write(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    with pytest.raises(ValueError, match="step is -1"):
        write(tmp_path, -1)


def test_a_damaged_later_step_is_set_aside(tmp_path: Path):
    write(tmp_path, 1, 4)
    damage(tmp_path / "step-00000004")
    write(tmp_path, 2)
    assert newest_valid(tmp_path) == tmp_path / "step-00000002"
    assert (tmp_path / "step-00000004.damaged" / "a.bin").read_bytes() == b"?"
    write(tmp_path, 4)
    assert steps(tmp_path) == [1, 2, 4]


NO_STEPS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("mine"),
    "dead link": lambda path: path.symlink_to("gone"),
    "link to a file": lambda path: path.symlink_to("step-00000001/a.bin"),
    "link to a folder": lambda path: path.symlink_to("step-00000001/part"),
    "folder": lambda path: (path.mkdir(), (path / "mine.txt").write_text("mine")),
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_what_is_no_step_but_has_the_name_of_one_is_set_aside(tmp_path: Path, name: str):
    write(tmp_path, 1)
    for _ in range(2):  # the second time there is something aside already
        for written in ("step-00000004", "step-00000005.tmp"):
            NO_STEPS[name](tmp_path / written)
        assert newest_state(tmp_path) == tmp_path / "step-00000001"
        write(tmp_path, 4)
        assert newest_valid(tmp_path) == tmp_path / "step-00000004"
        kept = {"step-00000001", "step-00000004", "step-00000004.damaged"}
        assert {p.name for p in tmp_path.iterdir()} == kept
        assert (tmp_path / "step-00000001" / "a.bin").is_file()
        discard_after(tmp_path, 1)


def test_one_writer_at_a_time(tmp_path: Path):
    lock = lock_root(tmp_path)
    with pytest.raises(
        ValueError, match=rf"in use by another training run \(process {os.getpid()}"
    ):
        lock_root(tmp_path)
    lock.close()
    lock_root(tmp_path).close()


def test_the_lock_ends_with_its_process(tmp_path: Path):
    code = (
        "import os, sys, time; from pathlib import Path; import vl2.checkpoint.commit as c\n"
        "lock = c.lock_root(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n    time.sleep(60)\n"  # a data worker that outlives the trainer
        "else:\n    time.sleep(0.2)\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"locked\n"
            with pytest.raises(ValueError, match=f"process {trainer.pid}"):
                lock_root(tmp_path)
            trainer.kill()
            trainer.wait()
            lock_root(tmp_path).close()
        finally:
            os.killpg(trainer.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_and_damages_are_survived():  # and 2,000 kills by make check-long
    script = ROOT / "scripts" / "kill_check.py"
    command = [sys.executable, str(script), "--kills", "40"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["kills"], counts["valid"]) == (40, 40)
    assert counts["aborts"] == counts["recovered"] >= 50
    assert counts["corruptions"] == counts["refused"] >= 250


def test_a_run_without_a_whole_step_begins_only_where_none_was_kept(tmp_path: Path):
    assert newest_state(tmp_path) is None
    write(tmp_path, 1)
    (tmp_path / "step-00000001" / MARKER).unlink()  # as an interrupted first save leaves it
    assert newest_state(tmp_path) is None
    write(tmp_path, 2)
    assert newest_state(tmp_path) == tmp_path / "step-00000002"


@pytest.mark.parametrize("how", ["bytes", "marker", "manifest", "both", "files", "file", "link"])
def test_a_run_whose_steps_are_all_damaged_does_not_begin_again(how: str, tmp_path: Path):
    write(tmp_path, 1, 2)
    for number in (1, 2):
        folder = tmp_path / f"step-{number:08}"
        if how == "bytes":
            damage(folder)
        if how == "files":
            (folder / "a.bin").unlink()
        if how in ("marker", "both"):
            (folder / MARKER).unlink()
        if how in ("manifest", "both"):
            (folder / MANIFEST).unlink()
        if how in ("file", "link"):
            shutil.rmtree(folder)
        if how == "file":
            folder.write_bytes(b"a copy that went wrong")
        if how == "link":
            folder.symlink_to("a disk that is not there")
    before = sorted(tmp_path.rglob("*"))
    match = (
        r"every saved state in .* is damaged \(steps 1, 2; .*step-00000002.*start again at step 0"
    )
    with pytest.raises(CheckpointError, match=match):
        newest_state(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
