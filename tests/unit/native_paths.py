"""The ways in which products run: C for this machine, for any, for aarch64; PyTorch; floats."""

from __future__ import annotations

import ctypes
import functools

import pytest
from tests.unit.emulated import Library

from vl2.ops import int4, int8, weight
from vl2.ops.native import build, kernels

AARCH64 = [pytest.param(name, marks=pytest.mark.aarch64) for name in ("armv8-a", "armv8.6-a")]
"""Processors under qemu-user: any, and one with products of bytes and bfloat16."""


def use_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one test run through "native", "portable" (without this processor's own instructions),
    one of `AARCH64`, "kernel" (PyTorch's integer kernels) or "plain" (floats, for machines without
    these)."""
    if name == "native":
        if kernels.functions() is None:
            pytest.skip("there is no C compiler")
        return
    library = portable_library() if name == "portable" else None
    library = Library(name, monkeypatch) if name.startswith("armv8") else library
    monkeypatch.setattr(kernels, "library", lambda: library)
    for remembered in ("functions", "has_tiles", "has_int4", "has_experts"):
        anew = functools.cache(getattr(kernels, remembered).__wrapped__)
        monkeypatch.setattr(kernels, remembered, anew)
    if name == "plain":
        monkeypatch.setattr(int8, "has_int_matmul", lambda device: False)
        monkeypatch.setattr(int4, "has_int4_kernel", lambda device: False)
        for module in (int4, int8, weight):
            monkeypatch.setattr(module, "DEQUANTIZE_NUMBERS", 5000)  # several parts per matrix


@functools.cache
def portable_library() -> ctypes.CDLL:
    """The C files for any processor of this architecture."""
    try:
        return build.load(())
    except build.NotBuiltError as error:
        pytest.skip(str(error))
