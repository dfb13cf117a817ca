"""Between our own processes: JSON frames, and pixels in shared memory passed as descriptors.

A frame is one `send_bytes` of a `multiprocessing` connection, which pickles nothing there. Shared
memory has no name: the kernel frees it when the last process that holds it ends, however it ends.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

LARGEST = 2**26
"""Bytes of a frame; what is larger is a mistake of ours."""

Message = dict[str, Any]


class Link:
    """One end of a socket pair. Threads may send together; one of them receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._frames = Connection(os.dup(end.fileno()))
        self._sending = threading.Lock()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send an object, and descriptors that the caller keeps.

        Raises:
            OSError: the other end has gone.
        """
        data = json.dumps({**message, "descriptors": len(descriptors)}).encode()
        with self._sending:
            self._frames.send_bytes(data)
            if descriptors:
                socket.send_fds(self._socket, [b"\0"], list(descriptors))

    def receive(self, timeout: float | None = None) -> tuple[Message, list[int]]:
        """The next object and its descriptors, which are the caller's now.

        Raises:
            EOFError: the other end has gone.
            TimeoutError: nothing came within so many seconds.
        """
        try:
            if timeout is not None and not self._frames.poll(timeout):
                raise TimeoutError
            message = json.loads(self._frames.recv_bytes(LARGEST))
            count = message.pop("descriptors")
            if not count:
                return message, []
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1, count)
        except ConnectionError:
            raise EOFError from None
        if not data:
            raise EOFError
        return message, descriptors

    def close(self) -> None:
        """Close this end."""
        self._frames.close()
        self._socket.close()


def start_process(
    module: str, environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> tuple[subprocess.Popen, Link]:
    """Run one of our modules; its first argument is the number of the other end of a new link."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return process, Link(ours)


def inherited_link(number: str) -> Link:
    """The end that `start_process` gave to this process, which ends with the other one."""
    end = socket.socket(fileno=int(number))
    watch = threading.Thread(target=_end_with, args=(end.fileno(),), name="vl2-watch", daemon=True)
    watch.start()
    return Link(end)


def _end_with(descriptor: int) -> None:
    """End this process when the other end is closed, whatever it is doing."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hanging up is always told
    poll.poll()
    os._exit(0)


def to_memory(data: bytes | memoryview) -> int:
    """A descriptor of shared memory that holds the data."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("vl2", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], done)
    return descriptor


def from_memory(descriptor: int, shape: Sequence[int], offset: int = 0) -> np.ndarray:
    """Bytes of shared memory as a uint8 array of its own; the descriptor stays open.

    Raises:
        EOFError: there are fewer bytes.
    """
    array = np.empty(tuple(shape), dtype=np.uint8)
    view, done = array.data.cast("B"), 0
    while done < len(view):
        read = os.preadv(descriptor, [view[done:]], offset + done)
        if not read:
            raise EOFError
        done += read
    return array
