"""Compile the C files of this folder for this machine, once, and load them.

As `torch.compile` does, but without C++ and in a second or two. The library is kept in
`$VL2_CACHE/native` (default `~/.cache/vl2/native`) under the hash of everything that it depends on.
`VL2_NATIVE=0` leaves it out.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from vl2.folders import cache_folder
from vl2.logs import get_logger

log = get_logger(__name__)

SOURCES = (
    *("int8.c", "int4.c", "bfloat16.c", "wide.c", "small.c", "attention.c", "experts.c"),
    "training.c",
)
HEADERS = ("floats.h", "products.h", "tiles.h")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-O3",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",  # with it, whether a * b + c is rounded once would depend on the loop
    "-fno-math-errno",
    "-fno-trapping-math",
)
TIMEOUT_SECONDS = 120


class NotBuiltError(Exception):
    """Why there is no library."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with a line in the log, where it cannot be had."""
    try:
        return load(machine_flags())
    except NotBuiltError as error:
        log.info("no CPU kernels in C, PyTorch computes instead: %s", error)
        return None


def load(flags: tuple[str, ...]) -> ctypes.CDLL:
    """Build with these flags for the processor, unless that was done before, and load.

    Raises:
        NotBuiltError: it is not wanted, or there is no compiler, or it fails.
    """
    if os.environ.get("VL2_NATIVE") == "0":
        raise NotBuiltError("VL2_NATIVE is 0")
    if sys.platform != "linux":
        raise NotBuiltError(f"they are built on Linux only, and this is {sys.platform}")
    compiler = find_compiler()
    path = _folder() / f"{_key(compiler, flags)}.so"
    if not path.exists():
        _compile(compiler, flags, path)
    if path.stat().st_uid not in _trusted():
        raise NotBuiltError(f"{path} belongs to another user: set VL2_CACHE to a folder of yours")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuiltError(f"{path} cannot be loaded ({error}): remove it") from error


def _folder() -> Path:
    """Where libraries are kept."""
    try:
        return cache_folder("native")
    except RuntimeError as error:
        raise NotBuiltError(f"{error} Set VL2_CACHE to a folder of yours") from error


def _trusted() -> set[int]:
    """Whose libraries are loaded: those of this user and of root."""
    return {os.getuid(), 0}


def find_compiler() -> str:
    """Path of $CC, or of the first C compiler that is installed.

    Raises:
        NotBuiltError: there is none.
    """
    chosen = os.environ.get("CC")
    for name in (chosen,) if chosen else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NotBuiltError(f"{chosen or 'a C compiler'} is not installed (gcc or clang would do)")


def machine_flags() -> tuple[str, ...]:
    """Flags that let the compiler use every instruction of this processor."""
    if platform.machine() == "x86_64":
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of sources, compiler, flags and processor: homes are shared between machines."""
    version = _run([compiler, "--version"]).stdout
    parts = [compiler, version, *FLAGS, *flags, _processor(), *(map(_source, SOURCES + HEADERS))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _processor() -> str:
    """The instructions of the first core, or at least its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kept = (line for line in lines if line.startswith(("flags", "Features", "model name")))
    return "\n".join([platform.machine(), *dict.fromkeys(kept)])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the compiler; what it returns is the caller's matter."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except OSError as error:
        raise NotBuiltError(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NotBuiltError(f"{command[0]} took longer than {TIMEOUT_SECONDS} s") from error


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Write the library at once, so that two processes may do so at the same time."""
    sources = [str(Path(__file__).with_name(name)) for name in SOURCES]
    start = time.perf_counter()
    log.warning(
        "compiling faster CPU kernels for this machine: once, up to 90 s (VL2_NATIVE=0 leaves "
        "them out, and PyTorch does the same more slowly)"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, *flags, *sources, "-o", str(made)]
            done = _run(command)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["nothing"]
                raise NotBuiltError(f"{compiler} fails and says: {said[0]}")
            made.replace(path)
    except OSError as error:
        raise NotBuiltError(f"{path.parent} cannot be written: {error.strerror}") from error
    log.info("compiled the C functions in %.1f s", time.perf_counter() - start)
