"""The library on tensors: whether it is there, and its large products.

When it runs is in ops/backend.py; the twins in PyTorch are in ops/int8.py, int4.py and moe.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from vl2.ops.groups import Groups
from vl2.ops.native.build import NotBuiltError, library, load, machine_flags

ACTIVATIONS = ("none", "swiglu")
"""What happens to numbers before they are rounded, in the order of the C file."""
MOST_WIDTH = 2**16
"""Longest row of an int8 product whose sums fit 32 bits: 255 * 127 times so many."""
DTYPES = (torch.float32, torch.bfloat16)
"""What is read and written, in the order of the C file."""
_OFF: list[bool] = []
POINTER, COUNT, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Matrix(ctypes.Structure):
    """`matrix` of the C file."""

    _fields_ = [("values", POINTER), ("scale", POINTER), ("bias", POINTER), ("out", COUNT)]


@cache
def functions() -> ctypes.CDLL | None:
    """The library with the signatures of its functions."""
    found = library()
    if found is None:
        return None
    found.has_tiles()  # asks for them, once for the process
    found.int8_linear.argtypes = (
        [POINTER, INT, COUNT, COUNT, INT]
        + [POINTER] * 3
        + [COUNT, POINTER, COUNT, POINTER, INT, INT]
    )
    found.int4_linear.argtypes = (
        [POINTER] + [COUNT] * 3 + [POINTER] * 3 + [COUNT] + [POINTER] * 2 + [COUNT, POINTER, INT]
    )
    found.rms_norm.argtypes = [POINTER, POINTER, INT, COUNT, COUNT, ctypes.c_float, POINTER, INT]
    found.wide_linear.argtypes = (
        [POINTER, INT, COUNT, COUNT, INT]
        + [POINTER] * 3
        + [COUNT, POINTER, COUNT, INT, POINTER, INT, INT]
    )
    found.swiglu.argtypes = [POINTER, POINTER, INT, COUNT, COUNT, COUNT, POINTER, INT]
    found.rope.argtypes = [POINTER, INT] + [COUNT] * 3 + [POINTER] * 3 + [INT]
    found.head_linear.argtypes = (
        [POINTER, INT] + [COUNT] * 3 + [POINTER, COUNT, COUNT, INT, POINTER, INT]
    )
    found.combine.argtypes = [POINTER, INT, POINTER, POINTER] + [COUNT] * 3 + [POINTER, INT]
    found.float_experts.argtypes = [POINTER] * 3 + [COUNT] * 3 + [POINTER] * 3 + [INT, POINTER, INT]
    _declare_tiles(found)
    found.softmax.argtypes = (
        [POINTER, COUNT, COUNT, ctypes.c_float, POINTER] + [COUNT] * 3 + [POINTER, INT]
    )
    found.softmax_backward.argtypes = [
        *(POINTER, POINTER, COUNT, COUNT, ctypes.c_float),
        *(POINTER, INT),
    ]
    found.activate.argtypes, found.activate_backward.argtypes = [
        [POINTER] * inputs + [COUNT, POINTER, POINTER, INT] for inputs in (1, 2)
    ]
    for name in (
        *("rms_norm", "rope"),
        *("activate", "activate_backward", "softmax", "softmax_backward"),
    ):
        getattr(found, name).restype = None
    found.decode_attention.argtypes = (
        [POINTER, POINTER, INT]
        + [COUNT] * 3
        + [ctypes.c_float, POINTER, POINTER]
        + [COUNT, POINTER, INT]
    )
    return found


def _declare_tiles(found: ctypes.CDLL) -> None:
    """Signatures of what runs on AMX."""
    found.tile_linear.argtypes = [
        *(POINTER, COUNT, COUNT, POINTER, COUNT, INT, COUNT),
        *(POINTER, COUNT, INT),
    ]
    found.tile_experts.argtypes = [
        *(POINTER, POINTER, POINTER, COUNT, POINTER, INT),
        *(COUNT, COUNT, COUNT, COUNT, POINTER, INT),
    ]
    found.int8_experts.argtypes = [
        *(POINTER, INT, COUNT, COUNT, POINTER, POINTER),
        *(COUNT, POINTER, POINTER, INT),
    ]


@cache
def has_tiles() -> bool:
    """Whether products of many rows run on AMX."""
    return _has("has_tiles")


@cache
def has_experts() -> bool:
    """Whether there are experts in float32."""
    return _has("has_experts")


@cache
def has_int4() -> bool:
    """Whether there are products with int4 weights."""
    return _has("has_int4")


def _has(part: str) -> bool:
    """What the library says of a part of it."""
    found = functions()
    return found is not None and bool(getattr(found, part)())


def available() -> bool:
    """Whether there is a library, and it is not left out at the moment."""
    return not _OFF and functions() is not None


@contextmanager
def left_out() -> Iterator[None]:
    """Let PyTorch do everything meanwhile, in all threads: to compare with."""
    _OFF.append(True)
    try:
        yield
    finally:
        _OFF.pop()


def describe() -> str:
    """What the functions use of this processor, or why there are none."""
    if functions() is None:
        try:
            load(machine_flags())  # once more, for the reason
        except NotBuiltError as error:
            return f"not compiled: {error}"
    used = {"AMX": has_tiles(), "AVX-512": has_int4()}
    return "compiled" + "".join(f", {name}" for name, there in used.items() if there)


def int8_linear(
    x: Float[Tensor, "n i"],
    matrices: Sequence[tuple[Int8[Tensor, ...], Float[Tensor, ...]]],
    *,
    bias: Float[Tensor, " o"] | None = None,
    activation: str = "none",
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "m total"]:
    """Rows, rounded, times matrices of one width; the results stand side by side.

    Args:
        x: float32 or bfloat16, others are cast.
        matrices: values and scales, [out, in] or stacked per expert.
        bias: of the only matrix.
        activation: what happens to x before it is rounded. "swiglu": a row holds gate and then up,
            silu(gate) * up is rounded, in float32, w = i / 2.
        groups: which rows meet which expert; without it all meet the matrices as they are.
        dtype: of the result: float32 or bfloat16, others are cast.

    Raises:
        ValueError: a matrix has another width.
    """
    x = (x if x.dtype in DTYPES else x.float()).contiguous()
    count, inputs = x.shape
    width = inputs // 2 if activation == "swiglu" else inputs
    shift = None if bias is None else bias.float().contiguous()
    found, total = _matrices(matrices, shift, width)
    made = dtype if dtype in DTYPES else torch.float32
    out = torch.empty((_rows(count, groups), total), dtype=made)
    failed = ready().int8_linear(
        *_activations(x, activation),
        *_pointers(groups),
        found,
        len(matrices),
        out.data_ptr(),
        DTYPES.index(made),
        torch.get_num_threads(),
    )
    check(failed)
    return out if made == dtype else out.to(dtype)


def wide_linear(
    x: Float[Tensor, "n i"],
    matrices: Sequence[Float[Tensor, ...]],
    *,
    bias: Float[Tensor, " o"] | None = None,
    activation: str = "none",
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "m total"]:
    """Few rows times matrices as they are stored, in float32; the results stand side by side.

    Args:
        x: float32 or bfloat16.
        matrices: [out, in] or stacked per expert, contiguous, all float32 or all bfloat16.
        bias: of the only matrix.
        activation: as `int8_linear`, but nothing is rounded.
        groups: as `int8_linear`.
        dtype: of the result: float32 or bfloat16, others are cast.

    Raises:
        ValueError: a matrix has another width or dtype than the others, or is not contiguous.
    """
    dtypes = {matrix.dtype for matrix in matrices}
    if len(dtypes) > 1 or not all(matrix.is_contiguous() for matrix in matrices):
        raise ValueError(f"matrices are of {dtypes} or not contiguous: expected one dtype, by rows")
    x = x.contiguous()
    count, inputs = x.shape
    width = inputs // 2 if activation == "swiglu" else inputs
    shift = None if bias is None else bias.float().contiguous()
    found, total = _matrices([(matrix, None) for matrix in matrices], shift, width)
    made = dtype if dtype in DTYPES else torch.float32
    out = torch.empty((_rows(count, groups), total), dtype=made)
    failed = ready().wide_linear(
        *_activations(x, activation),
        *_pointers(groups),
        found,
        len(matrices),
        DTYPES.index(matrices[0].dtype),
        out.data_ptr(),
        DTYPES.index(made),
        torch.get_num_threads(),
    )
    check(failed)
    return out if made == dtype else out.to(dtype)


def int4_linear(
    x: Float[Tensor, "n i"],
    values: UInt8[Tensor, "*e blocks i half"],
    scale: Float[Tensor, "*e parts rows two"],
    *,
    groups: Groups | None = None,
) -> Float[Tensor, "m rows"]:
    """Rows, as they are, times the matrix of an `Int4Weight` with its padded rows, in float32.

    Args:
        x: activations.
        values: nibbles of one matrix, or of one per expert.
        scale: their scales and zero points.
        groups: as `int8_linear`.

    Raises:
        ValueError: the matrix has another width.
    """
    x = x.float().contiguous()
    count, width = x.shape
    parts, out_rows = scale.shape[-3], scale.shape[-2]
    check_width(values.shape[-2], width)
    out = torch.empty((_rows(count, groups), out_rows))
    failed = ready().int4_linear(
        x.data_ptr(),
        count,
        width,
        width // parts,
        *_pointers(groups),
        values.data_ptr(),
        scale.data_ptr(),
        out_rows,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def float_experts(
    x: Float[Tensor, "n h"],
    groups: Groups,
    gate: Float[Tensor, "e i h"],
    up: Float[Tensor, "e i h"],
    down: Float[Tensor, "e h i"],
) -> Float[Tensor, "m h"]:
    """Each row of the groups through its expert's SwiGLU, in float32.

    Args:
        x: float32.
        groups: which rows meet which expert.
        gate: float32 or bfloat16, as the others.
        up: of the same shape.
        down: the way back.
    """
    x = x.contiguous()
    assert groups.tokens is not None
    out = torch.empty((len(groups.tokens), x.shape[1]))
    failed = ready().float_experts(
        x.data_ptr(),
        groups.tokens.data_ptr(),
        groups.ends.data_ptr(),
        len(groups.ends),
        x.shape[1],
        gate.shape[1],
        gate.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        DTYPES.index(gate.dtype),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    check(failed)
    return out


def ready() -> ctypes.CDLL:
    """The functions, where ops/backend.py has said that they are there."""
    found = functions()
    assert found is not None, "ask ops/backend.py first"
    return found


def _activations(x: Tensor, activation: str) -> tuple[int, int, int, int, int]:
    """Rows and what happens to them before they are multiplied."""
    rows, inputs = x.shape
    return x.data_ptr(), DTYPES.index(x.dtype), rows, inputs, ACTIVATIONS.index(activation)


def _pointers(groups: Groups | None) -> tuple[int | None, int | None, int | None, int]:
    if groups is None:
        return None, None, None, 0
    experts = None if groups.experts is None else groups.experts.data_ptr()
    tokens = None if groups.tokens is None else groups.tokens.data_ptr()
    return tokens, experts, groups.ends.data_ptr(), len(groups.ends)


def _rows(count: int, groups: Groups | None) -> int:
    """Rows of the result, where x has `count`."""
    return count if groups is None or groups.tokens is None else len(groups.tokens)


def _matrices(
    found: Sequence[tuple[Tensor, Tensor | None]], bias: Tensor | None, width: int
) -> tuple[ctypes.Array[Matrix], int]:
    """Values and scales, if there are any, as the C files take them, and rows of all together.

    It is called for every product of a token: loops cost less than generators there.
    """
    shift = None if bias is None else bias.data_ptr()
    made, total = (Matrix * len(found))(), 0
    for place, (values, scale) in enumerate(found):
        if values.shape[-1] != width:
            check_width(values.shape[-1], width)
        rows = values.shape[-2]
        scales = None if scale is None else scale.data_ptr()
        made[place] = Matrix(values.data_ptr(), scales, shift, rows)
        total += rows
    return made, total


def check_width(found: int, width: int) -> None:
    """Refuse a matrix of another width.

    Raises:
        ValueError: they differ.
    """
    if found != width:
        raise ValueError(f"rows are {width} wide and the matrix takes {found}: expected the same")


def check(failed: int) -> None:
    """Raise if a function had no memory.

    Raises:
        MemoryError: it had none.
    """
    if failed:
        raise MemoryError("no memory for a product's working space: use fewer tokens at a time")
