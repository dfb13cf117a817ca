"""The safetensors container: checked headers, reads straight into tensors, streamed writes.

A file is eight bytes with the little-endian length n of the header, n bytes of JSON
(`{"key": {"dtype", "shape", "data_offsets"}, "__metadata__": {...}}`) and the data without holes.
Read with plain `read` calls and not through a memory map: mapped pages of the file count as
resident memory, so a map would let a load look (and under a limit, be) twice as large as the model.
Source: the format description of github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vl2.checkpoint.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Names in a header and the dtypes they mean: the ones that weights can have."""
QUANTIZED_DTYPES: dict[str, torch.dtype] = {
    **DTYPES,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""The same with the dtypes of quantised weights."""
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in QUANTIZED_DTYPES.items()}

MAX_HEADER_BYTES = 8 * 2**20
"""Longest header that is read; the largest released model would need 1 MiB in one file."""
MAX_RANK = 8
"""Most dimensions of a tensor; a model here has four."""
CHUNK_BYTES = 8 * 2**20
"""Size of the buffer that carries data which changes its dtype or its device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `numel` values of `dtype` from byte `start` of `file`."""

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, index: int) -> StoredTensor:
        """Slice `index` along the first axis, which the file holds as one piece."""
        whole = replace(self, shape=self.shape[1:])
        return replace(whole, start=self.start + index * whole.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutTensor:
    """A tensor to write: `pieces()` yields its values in order, each piece any shape and dtype."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path, dtypes: Mapping[str, torch.dtype] = DTYPES) -> dict[str, StoredTensor]:
    """Read and check the header of a safetensors file, with tensors of `dtypes`; no data is read.

    Raises:
        CheckpointError: the header is damaged or the file does not hold what it promises.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if prefix == b"version ":
                raise CheckpointError(
                    f"{file} is a pointer of Git LFS and not the file itself: run `git lfs pull`, "
                    "or download the file"
                )
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8:
                raise _damaged(file, f"its header should take {length} bytes, the file has {size}")
            if length > MAX_HEADER_BYTES:
                raise _damaged(file, f"its header takes {length} bytes, at most {MAX_HEADER_BYTES}")
            header = _parse(file, stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): check the file") from None
    data = {key: entry for key, entry in header.items() if key != "__metadata__"}
    stored = {key: _stored(file, key, entry, 8 + length, dtypes) for key, entry in data.items()}
    _check_cover(file, stored.values(), 8 + length, size)
    return stored


def read_tensors(
    file: Path, wanted: Iterable[tuple[StoredTensor, Tensor]], on_bytes: Callable[[int], None]
) -> None:
    """Fill each target (contiguous, of the stored shape, any dtype and device) from `file`.

    Resident memory grows by at most `CHUNK_BYTES` beside the targets. `on_bytes` hears the number
    of bytes of every read.

    Raises:
        CheckpointError: the file ends early, or a value does not fit float16.
    """
    with file.open("rb", buffering=0) as stream:
        for stored, target in sorted(wanted, key=lambda pair: pair[0].start):
            flat = target.detach().view(-1)
            if flat.dtype == stored.dtype and flat.device.type == "cpu":
                stream.seek(stored.start)
                _read_exactly(stream, flat, stored, on_bytes)
                continue
            at = 0
            for piece in _read_pieces(stream, stored, on_bytes):
                part = flat[at : at + piece.numel()]
                part.copy_(piece)
                check_range(stored.key, piece, part)
                at += piece.numel()


def iter_pieces(
    stored: StoredTensor, on_bytes: Callable[[int], None] = lambda _: None, *, unit: int = 1
) -> Iterator[Tensor]:
    """Values of one stored tensor in flat pieces of about `CHUNK_BYTES`; memory is reused.

    Every piece but the last has a multiple of `unit` values, so that rows stay whole.
    """
    with stored.file.open("rb", buffering=0) as stream:
        yield from _read_pieces(stream, stored, on_bytes, unit)


def write_tensors(
    file: Path, tensors: Sequence[OutTensor], on_bytes: Callable[[int], None]
) -> None:
    """Write `tensors` into `file` and flush it to the disk; nothing is copied whole.

    Raises:
        CheckpointError: a value does not fit float16.
    """
    # Widest values first aligns every tensor to its own size, as the safetensors library does.
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end := end + tensor.nbytes]
        header[tensor.key] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            _write_tensor(stream, tensor, on_bytes)
        stream.flush()
        os.fsync(stream.fileno())


def main_dtype(tensors: Iterable[StoredTensor | OutTensor]) -> torch.dtype:
    """The dtype that most bytes of the floats have; quantised weights and their scales are none."""
    count: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype in DTYPES.values() and not tensor.key.endswith(".scale"):
            count[tensor.dtype] += tensor.nbytes
    return count.most_common(1)[0][0]


def check_range(key: str, source: Tensor, converted: Tensor) -> None:
    """Refuse a conversion to float16 that turns finite values into infinity.

    Raises:
        CheckpointError: a value lies outside +-65504.
    """
    if converted.dtype != torch.float16 or source.dtype == torch.float16:
        return
    if bool(torch.isfinite(source).all()) and not bool(torch.isfinite(converted).all()):
        raise CheckpointError(f"{key} has values beyond float16's 65504: use bfloat16 or float32")


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, shared."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is not an intact safetensors file: {why[:300]}; fetch it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is in it twice")
        found[key] = value
    return found


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header cannot be read ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(file, f"its header is {type(header).__name__}, expected an object")
    return header


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _counts(file: Path, key: str, entry: Mapping[str, Any], name: str) -> list[int]:
    values = entry.get(name)
    if (
        not isinstance(values, list)
        or len(values) > MAX_RANK
        or not all(_is_count(value) for value in values)
    ):
        raise _damaged(file, f"{name} of {key!r} is {values!r:.60}, expected a list of counts")
    return values


def _stored(
    file: Path, key: str, entry: object, data_start: int, dtypes: Mapping[str, torch.dtype]
) -> StoredTensor:
    if not isinstance(entry, dict):
        raise _damaged(file, f"the entry of {key!r} is {entry!r:.60}, expected an object")
    name = entry.get("dtype")
    if not isinstance(name, str) or name not in dtypes:
        raise CheckpointError(
            f"{key!r:.200} in {file} has dtype {name!r:.40}, which cannot be loaded: "
            f"expected {', '.join(dtypes)}; convert the checkpoint with the tool that wrote it"
        )
    shape, offsets = _counts(file, key, entry, "shape"), _counts(file, key, entry, "data_offsets")
    stored = StoredTensor(
        key=key,
        file=file,
        dtype=dtypes[name],
        shape=tuple(shape),
        start=data_start + sum(offsets[:1]),
    )
    if len(offsets) != 2 or offsets[1] - offsets[0] != stored.nbytes:
        raise _damaged(
            file,
            f"{key!r} of {shape} {name} takes {stored.nbytes} bytes but has offsets {offsets}",
        )
    return stored


def _check_cover(file: Path, tensors: Iterable[StoredTensor], start: int, size: int) -> None:
    """The tensors must follow each other without hole or overlap and end where the file ends."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != start:
            kind = "overlaps the tensor before it" if tensor.start < start else "follows a hole"
            raise _damaged(file, f"{tensor.key!r} {kind} (byte {tensor.start}, expected {start})")
        start += tensor.nbytes
        if start > size:
            raise _damaged(
                file, f"it is cut short: {tensor.key!r} ends at {start}, the file at {size}"
            )
    if start != size:
        raise _damaged(file, f"its tensors end at byte {start}, the file at {size}")


def _read_exactly(
    stream: Any, target: Tensor, stored: StoredTensor, on_bytes: Callable[[int], None]
) -> None:
    view = as_bytes(target)
    while view:
        # Not more at a time, so that whoever watches `on_bytes` sees a large tensor move.
        count = stream.readinto(view[:CHUNK_BYTES])
        if not count:
            raise _damaged(stored.file, f"it ended inside {stored.key!r} while it was read")
        view = view[count:]
        on_bytes(count)


def _read_pieces(
    stream: Any, stored: StoredTensor, on_bytes: Callable[[int], None], unit: int = 1
) -> Iterator[Tensor]:
    unit *= stored.dtype.itemsize
    size = unit * max(1, CHUNK_BYTES // unit)
    scratch = torch.empty(min(size, stored.nbytes), dtype=torch.uint8)
    stream.seek(stored.start)
    left = stored.nbytes
    while left:
        part = scratch[: min(left, size)]
        _read_exactly(stream, part, stored, on_bytes)
        left -= part.numel()
        yield part.view(stored.dtype)


def _write_tensor(stream: BinaryIO, tensor: OutTensor, on_bytes: Callable[[int], None]) -> None:
    written = 0
    for piece in tensor.pieces():
        values = piece.detach().to(device="cpu", dtype=tensor.dtype).contiguous()
        check_range(tensor.key, piece, values)
        written += stream.write(as_bytes(values))
        on_bytes(values.nbytes)
    # A short tensor would shift every later one: the caller's pieces must match the shape.
    assert written == tensor.nbytes, (tensor.key, written, tensor.nbytes)
