"""Amounts of memory as people write them: "24GiB", "5GB", and back."""

from __future__ import annotations

import re

_UNITS = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def parse_bytes(text: str) -> int:
    """Bytes of a text such as "24GiB" (2**30 each), "5GB" (10**9 each) or "512 MiB".

    Raises:
        ValueError: no positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    amount = int(float(match[1]) * unit) if match and unit else 0
    if amount < 1:
        raise ValueError(
            f"size is {text!r}: expected a number and a unit, for instance 24GiB or 5GB"
        )
    return amount


def format_bytes(count: int) -> str:
    """`count` in the largest binary unit of which it has at least one: "15.1 GiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
