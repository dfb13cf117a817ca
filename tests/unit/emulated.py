"""The C functions for aarch64 in place of the library: each call runs under qemu-user.

The functions hear addresses of tensors. Here an address remembers its tensor, so that a call's
memory can be written into a file for the program that makes the call, and read back.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vl2.ops.native import build, kernels

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
NATIVE = Path(build.__file__).parent
CALL = Path(__file__).with_name("emulated_call.c")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SECONDS = 60
C_TYPES = {kernels.POINTER: "void *", kernels.COUNT: "int64_t", kernels.INT: "int"}
READERS = {kernels.POINTER: "pointer", kernels.COUNT: "whole", kernels.INT: "whole"}
data_ptr = Tensor.data_ptr


class Address(int):
    """Where a tensor lies, and how many bytes it reaches."""

    bytes: int
    tensor: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Address:
        """Remember the tensor, so that nothing else can come to lie there."""
        made = cls(data_ptr(tensor))
        steps = ((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        made.bytes = (1 + sum(steps)) * tensor.element_size() if tensor.numel() else 0
        made.tensor = tensor
        return made


class Library(ctypes.CDLL):
    """Stands where a loaded library stands, and loads none."""

    def __init__(self, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processor = processor
        self.known: dict[int, Address] = {}
        self.made: dict[str, Function] = {}

        def remembered(tensor: Tensor) -> Address:
            found = Address.of(tensor)
            self.known[found] = found
            return found

        monkeypatch.setattr(torch.Tensor, "data_ptr", remembered)

    def __getattr__(self, name: str) -> Any:
        """A function by its name, as a `ctypes.CDLL` has it."""
        return self.made.setdefault(name, Function(self, name))


class Function:
    """A function of the library; `argtypes` and `restype` are set as those of ctypes."""

    argtypes: Any = ()
    restype: Any = ctypes.c_int

    def __init__(self, library: Library, name: str) -> None:
        self.library, self.name = library, name

    def __call__(self, *given: Any) -> int:
        """Run in the emulator; tensors hold what it left in their memory."""
        assert len(given) == len(self.argtypes)
        call = Call(self.library.known)
        words = [call.word(x, kind) for x, kind in zip(given, self.argtypes, strict=True)]
        program = compiled(self.library.processor, self.name, *self.argtypes, back=self.restype)
        with tempfile.TemporaryDirectory() as folder:
            given_to, found_in = Path(folder) / "given", Path(folder) / "found"
            given_to.write_bytes(call.packed(words))
            command = [EMULATOR, "-cpu", "max", str(program), str(given_to), str(found_in)]
            subprocess.run(command, check=True, timeout=SECONDS)
            return call.unpack(found_in.read_bytes())


class Call:
    """The memory of one call, buffer by buffer."""

    def __init__(self, known: dict[int, Address]) -> None:
        self.known = known
        self.buffers: list[tuple[int, int]] = []  # address and bytes
        self.pointers: list[tuple[int, int, int]] = []  # in which buffer, where, to which

    def word(self, given: Any, kind: Any) -> tuple[int, bytes]:
        """An argument: whether it is a buffer, and its number or bits."""
        if isinstance(given, ctypes.Array):
            return 1, struct.pack("q", self.matrices(given))
        if kind is kernels.POINTER:
            there = given is not None
            return int(there), struct.pack("q", self.buffer(given) if there else 0)
        return 0, struct.pack("f4x" if kind is ctypes.c_float else "q", given)

    def buffer(self, address: int) -> int:
        """The number of a tensor's memory."""
        place = int(address), self.known[address].bytes
        if place not in self.buffers:
            self.buffers.append(place)
        return self.buffers.index(place)

    def matrices(self, given: Any) -> int:
        """The number of an array of `Matrix`, whose pointers are set anew."""
        self.buffers.append((ctypes.addressof(given), ctypes.sizeof(given)))
        number = len(self.buffers) - 1
        for place, matrix in enumerate(given):
            for name in ("values", "scale", "bias"):
                address = getattr(matrix, name)
                if address is not None:
                    at = place * ctypes.sizeof(matrix) + getattr(type(matrix), name).offset
                    self.pointers.append((number, at, self.buffer(address)))
        return number

    def packed(self, words: list[tuple[int, bytes]]) -> bytes:
        """The file that emulated_call.c reads."""
        parts = [struct.pack("q", len(self.buffers))]
        for address, size in self.buffers:
            parts += [struct.pack("q", size), ctypes.string_at(address, size)]
        parts += [struct.pack("q", len(self.pointers))]
        parts += [struct.pack("3q", *pointer) for pointer in self.pointers]
        parts += [struct.pack("q", len(words))]
        parts += [struct.pack("q", is_buffer) + bits for is_buffer, bits in words]
        return b"".join(parts)

    def unpack(self, found: bytes) -> int:
        """Fill the memory with what the file says; the function's result."""
        place = 8
        arrays = {number for number, _, _ in self.pointers}
        for number, (address, size) in enumerate(self.buffers):
            if number not in arrays:
                ctypes.memmove(address, found[place : place + size], size)
            place += size
        assert place == len(found)
        return struct.unpack("q", found[:8])[0]


@functools.cache
def folder() -> Path:
    """Where programs are kept for as long as the tests run."""
    return Path(tempfile.mkdtemp(prefix="vl2-aarch64-"))


@functools.cache
def objects(processor: str) -> tuple[str, ...]:
    """The C files, compiled for a processor, as build.py compiles them but for no library."""
    kept = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    made = []
    for name in build.SOURCES:
        made.append(str(folder() / f"{processor}-{name}.o"))
        run(*kept, f"-march={processor}", "-c", str(NATIVE / name), "-o", made[-1])
    return tuple(made)


@functools.cache
def compiled(processor: str, name: str, *kinds: Any, back: Any) -> Path:
    """The program that calls one function."""
    types = ", ".join(C_TYPES.get(kind, "float") for kind in kinds)
    values = ", ".join(f"{READERS.get(kind, 'number')}({i})" for i, kind in enumerate(kinds))
    kind, call = ("int", f"{name}({values})") if back else ("void", f"({name}({values}), 0)")
    program = folder() / f"{processor}-{name}"
    words = f"-DDECLARATION={kind} {name}({types or 'void'});", f"-DCALL={call}"
    run("-static", "-fopenmp", *words, str(CALL), *objects(processor), "-o", str(program))
    return program


def run(*words: str) -> None:
    """Compile, without a warning."""
    subprocess.run([COMPILER, *WARNINGS, *words], check=True, timeout=SECONDS)
