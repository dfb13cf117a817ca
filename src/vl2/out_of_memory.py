"""Memory that ran out, told apart from other failures by what PyTorch and others say of it."""

from __future__ import annotations

import re

_SAID = re.compile(
    "not enough memory|out of memory|allocate memory|bad.alloc|alloc_failed|MemoryError|"
    "start new thread|map segment|size calculation overflowed|create a primitive",
    re.IGNORECASE,
)
"""Words of PyTorch, its backends, oneDNN, Python and the loader of libraries; most come in a plain
RuntimeError."""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or what became of it in a completion, says that memory ran out."""
    return isinstance(error, MemoryError) or _SAID.search(str(error)) is not None
