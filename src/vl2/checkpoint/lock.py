"""The lock of a file, which goes with the open file: flock, or on Windows a locked byte."""

from __future__ import annotations

from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

FAR = 2**30
"""The byte that Windows locks lies beyond the content, which stays readable for others."""


def take(stream: BinaryIO) -> bool:
    """Lock an open file for this process; False when another one has it.

    Raises:
        OSError: the file system cannot lock.
    """
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            assert msvcrt is not None, "a platform has one of them"
            stream.seek(FAR)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (BlockingIOError, PermissionError):
        return False
    return True
