"""What this machine can do at best: reading memory, and products of one large matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.benchmarks.timing import Timer, seconds
from vl2.ops.backend import in_c
from vl2.ops.native import kernels

aten = torch.ops.aten

READ_BYTES = 2**29
"""What the streaming read and the products of one row go through; larger than most caches."""
QUICK_READ_BYTES = 2**27
WIDTH = 4096
"""Row length of the large int8 matrix."""
ROWS, INNER, OUTER = 1458, 1152, 4304
"""Two tiles of SigLIP-SO400M through the first layer of a block's MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """One bound: `amount` bytes or operations in the time of a call."""

    unit: str  # gb_per_s or gflops
    amount: float
    timer: Timer

    def speed(self, taken: float) -> float:
        """Billions of bytes or operations per second."""
        return self.amount / taken / 1e9


def machine_ceilings(*, quick: bool = False) -> dict[str, Ceiling]:
    """Every bound by its name.

        stream       sum of float32 numbers
        int8_row     `torch._int_mm` of one row with one large matrix: the int8 roofline
        fp32_gemm    a product of the vision tower
        int8_gemm    the same through `torch._int_mm`
        native_row   as int8_row, through our own C; None where that is not compiled
        native_gemm  as int8_gemm, likewise, with AMX only

    Args:
        quick: smaller matrices, which a large cache may hold.
    """
    size = QUICK_READ_BYTES if quick else READ_BYTES
    numbers, matrix = torch.ones(size // 4), _random_int8(size // WIDTH, WIDTH)
    left, right = torch.randn(ROWS, INNER), torch.randn(OUTER, INNER)
    row, rows, weights = (
        _random_int8(1, WIDTH),
        _random_int8(ROWS, INNER),
        _random_int8(OUTER, INNER),
    )
    operations = 2.0 * ROWS * INNER * OUTER
    found = {
        "stream": _ceiling("gb_per_s", size, numbers.sum),
        "int8_row": _ceiling("gb_per_s", size, lambda: aten._int_mm(row, matrix.t())),
        "fp32_gemm": _ceiling("gflops", operations, lambda: left @ right.t()),
        "int8_gemm": _ceiling("gflops", operations, lambda: aten._int_mm(rows, weights.t())),
    }
    if in_c("int8 linear", row):
        found["native_row"] = _ceiling("gb_per_s", size, lambda: _native(row, matrix))
    if kernels.has_tiles():
        found["native_gemm"] = _ceiling("gflops", operations, lambda: _native(rows, weights))
    return found


def fastest_int8_gemm() -> str:
    """Name of the bound of int8 products of many rows."""
    return "native_gemm" if kernels.has_tiles() else "int8_gemm"


def _ceiling(unit: str, amount: float, run: Callable[[], object]) -> Ceiling:
    return Ceiling(unit=unit, amount=amount, timer=lambda turn: seconds(run))


def _random_int8(rows: int, width: int) -> Tensor:
    return torch.randint(-127, 127, (rows, width), dtype=torch.int8)


def _native(rows: Tensor, weights: Tensor) -> Tensor:
    return kernels.int8_linear(rows.float(), [(weights, torch.ones(len(weights)))])
