"""What runs in C: one table, which is asked at every call.

A row says what must hold beside the rules for all: the tensors are in memory, no compiler traces,
there is a library that is not left out, and no gradient is wanted (in training: one is). Where a
row does not hold, PyTorch computes. What a card can do is in ops/cards.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.ops.native import kernels

FEW_ROWS = 8
"""Rows up to which a CPU without AMX is faster here than in oneDNN, which packs weights anew."""
INT4_KERNEL_ROWS = 64
"""Activations up to which the int4 kernels are faster than dequantising the weights."""
INT4_TILE_ROWS = 10
"""Activations from which on int4 weights are unpacked faster for tiles than for each few rows."""
BFLOAT16 = (torch.bfloat16,)
PARTS: dict[str, Callable[[], bool]] = {
    "AMX": lambda: kernels.has_tiles(),
    "AVX-512": lambda: kernels.has_int4(),
    "experts in float32": lambda: kernels.has_experts(),
}
"""Parts of the library, and whether it has them on this processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """When C computes something.

    Attributes:
        dtypes: what the first input may be; None is anything, for all inputs.
        others: what the other inputs may be.
        alike: the input from which on all have one dtype.
        least: rows of the first input, at least.
        most: rows of the first input, at most.
        unless: the part of the library with which `most` does not count.
        widest: columns of the first input, at most.
        part: of the library, without which there is nothing.
        trains: a gradient is wanted; otherwise none is.
        inference: in inference mode only: training rounds otherwise, and adapters train on that.
    """

    dtypes: tuple[torch.dtype, ...] | None = kernels.DTYPES
    others: tuple[torch.dtype, ...] = kernels.DTYPES
    alike: int | None = None
    least: int = 0
    most: int | None = None
    unless: str | None = None
    widest: int | None = None
    part: str | None = None
    trains: bool = False
    inference: bool = False

    def words(self) -> str:
        """The row for a reader, and whether this processor has the part."""
        parts = {name for name, there in PARTS.items() if there()}
        if self.part is not None and self.part not in parts:
            return f"never here: there is no part for {self.part}"
        many = self.most is None or self.unless in parts
        rows = "any rows" if many else f"up to {self.most} rows"
        rows = f"from {self.least} rows on" if self.least else rows
        kinds = None if self.dtypes is None else " or ".join(str(d)[6:] for d in self.dtypes)
        mode = "training" if self.trains else "inference mode" if self.inference else "no gradient"
        return ", ".join(text for text in (rows, kinds, mode) if text)


TABLE = {
    "int8 linear": Row(dtypes=None, most=FEW_ROWS, unless="AMX", widest=kernels.MOST_WIDTH),
    "int4 linear": Row(dtypes=None, most=INT4_KERNEL_ROWS, part="AVX-512"),
    "int4 linear of many": Row(dtypes=BFLOAT16, least=INT4_TILE_ROWS, part="AMX", inference=True),
    "int4 experts": Row(dtypes=BFLOAT16, least=INT4_TILE_ROWS, part="AMX", inference=True),
    "int8 experts": Row(dtypes=None, least=FEW_ROWS + 1, part="AMX", inference=True),
    "stored linear": Row(most=FEW_ROWS),
    "linear on tiles": Row(dtypes=BFLOAT16, others=BFLOAT16, least=2, part="AMX", inference=True),
    "experts on tiles": Row(dtypes=BFLOAT16, others=BFLOAT16, least=2, part="AMX", inference=True),
    "stored experts": Row(others=(torch.bfloat16,), most=FEW_ROWS, inference=True),
    "float32 experts": Row(
        dtypes=(torch.float32,),
        alike=1,
        least=FEW_ROWS + 1,
        part="experts in float32",
        inference=True,
    ),
    "router": Row(most=FEW_ROWS),
    "sum of experts": Row(),
    "norm": Row(alike=0),
    "rotary positions": Row(),
    "heads' products": Row(alike=0, most=FEW_ROWS),
    "single attention": Row(),
    "SwiGLU": Row(dtypes=BFLOAT16, others=BFLOAT16, inference=True),
    "activations": Row(dtypes=(torch.bfloat16,), trains=True),
}
"""Rows by what is computed."""


def in_c(product: str, *inputs: Tensor, rows: int | None = None) -> bool:
    """Whether C computes what `TABLE` has under this name.

    Args:
        product: the name.
        inputs: what it is computed of; the activations come first.
        rows: how many there are, where it is not the length of the activations.
    """
    x = inputs[0]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    row = TABLE[product]
    if row.trains != (torch.is_grad_enabled() and any(y.requires_grad for y in inputs)):
        return False
    if row.inference and not torch.is_inference_mode_enabled():
        return False
    return (
        kernels.available()
        and (row.part is None or PARTS[row.part]())
        and (row.dtypes is None or _reads(row, row.dtypes, inputs))
        and ((row.most is None and not row.least) or _enough(row, x, rows))
    )


def _reads(row: Row, dtypes: tuple[torch.dtype, ...], inputs: tuple[Tensor, ...]) -> bool:
    """Whether C reads the dtypes of the inputs."""
    if inputs[0].dtype not in dtypes or any(y.dtype not in row.others for y in inputs[1:]):
        return False
    return row.alike is None or len({y.dtype for y in inputs[row.alike :]}) == 1


def _enough(row: Row, x: Tensor, rows: int | None) -> bool:
    """Whether there are neither too few nor too many rows, nor too many columns."""
    rows = x.shape[0] if rows is None else rows
    if rows < row.least or (row.widest is not None and x.shape[-1] > row.widest):
        return False
    return row.most is None or rows <= row.most or (row.unless is not None and PARTS[row.unless]())


def table() -> dict[str, str]:
    """What runs in C on this machine, and when."""
    if kernels.functions() is None:
        return dict.fromkeys(TABLE, "never here: " + kernels.describe())
    return {name: row.words() for name, row in TABLE.items()}
