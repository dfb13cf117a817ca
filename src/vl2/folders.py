"""Where vl2 keeps files between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$VL2_CACHE/name`, or `~/.cache/vl2/name`; it need not exist.

    Raises:
        RuntimeError: VL2_CACHE is not set and the user has no home.
    """
    return Path(os.environ.get("VL2_CACHE") or Path.home() / ".cache" / "vl2") / name
