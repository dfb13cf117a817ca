"""What a picture may be given as: everything becomes a path, the bytes of a file or a PIL image."""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vl2.out_of_memory import is_out_of_memory
from vl2.processing.colour import eight_bits
from vl2.processing.image_error import ImageError

PictureSource = Any
"""A path (str or os.PathLike), the bytes of a file (bytes, bytearray, memoryview, an array of one
dimension), an open binary file, a PIL image, a NumPy array or torch tensor of pixels, a text of
base64 or a data URL, or a dict that holds one of these as "bytes", "path", "url", "base64",
"image_url" or "data". A string that is none of these texts is a path, never an address."""

CHANNELS = (1, 3, 4)
WRAPPED = ("bytes", "path", "url", "base64", "data", "image_url", "image", "source")
"""Names under which a dict holds a picture."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_DATA_URL = re.compile(r"\s*data:[^,]*,", re.IGNORECASE)
_ENCODED = re.compile(
    rb"\s*((?i:data:[^,]{,99};base64,)|iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK)"
)
"""How base64 and data URLs begin where they are bytes; no picture's file begins like this."""
_BASE64 = re.compile(
    r"\s*(iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/=_\s\-]{60,}|Qk[A-Za-z0-9+/]{60,}=*"
)
"""Base64 of the first bytes of the formats that are read, and more of it than a name has."""
SMALLEST_FILE = 26
"""Bytes of the smallest file of all formats, a GIF."""
LONGEST_PATH = 4096
"""No system opens a file by a longer name."""


@runtime_checkable
class Readable(Protocol):
    """A file that is open, of whatever library."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""
        ...


@runtime_checkable
class Seekable(Protocol):
    """A file that can go back."""

    def tell(self) -> int:
        """The place in the file."""
        ...

    def seek(self, offset: int, /) -> object:
        """Go to a place from the start."""
        ...


def plain_source(
    source: PictureSource, *, max_bytes: int, max_pixels: int
) -> Path | bytes | Image.Image:
    """A path, the bytes of a file, or a PIL image.

    Args:
        source: anything of `PictureSource`; what is given stays as it was.
        max_bytes: most bytes of a file that is not given by its path.
        max_pixels: most pixels of an array.

    Raises:
        ImageError: it is none of `PictureSource`, or too large.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str):
        source = _text(source, max_bytes)
    elif isinstance(source, Mapping):
        return _unwrapped(source, max_bytes=max_bytes, max_pixels=max_pixels)
    elif isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if isinstance(source, Path):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _file(source, max_bytes)
    array, first = _array(source)
    if array is not None:
        if array.ndim == 1 and array.dtype == np.uint8:
            return _limited(np.ascontiguousarray(array).data, max_bytes)
        return _from_array(array, max_pixels, first=first)
    if isinstance(source, Readable):
        return _limited(_read(source, max_bytes), max_bytes)
    raise ImageError("unknown_source", kind=type(source).__name__)


def _unwrapped(
    source: Mapping[Any, Any], *, max_bytes: int, max_pixels: int
) -> Path | bytes | Image.Image:
    """What a dict holds: Hugging Face's {"bytes", "path"}, OpenAI's {"url"} and the like."""
    key = next((key for key in WRAPPED if source.get(key) is not None), None)
    if key is None:
        raise ImageError("unknown_source", kind="a dict without bytes, path or url")
    found = source[key]
    if isinstance(found, str) and key in ("bytes", "base64", "data"):
        found = found if _DATA_URL.match(found) else _decoded(found, max_bytes)
    return plain_source(found, max_bytes=max_bytes, max_pixels=max_pixels)


def _text(text: str, max_bytes: int) -> Path | bytes:
    if head := _DATA_URL.match(text[:LONGEST_PATH]):
        if not head[0][:-1].lower().endswith(";base64"):
            raise ImageError("not_base64")
        return _decoded(text[head.end() :], max_bytes)
    if _ADDRESS.match(text):
        raise ImageError("remote")
    if len(text) > LONGEST_PATH or _BASE64.fullmatch(text):
        return _decoded(text, max_bytes)
    return Path(text)


def _decoded(text: str, max_bytes: int) -> bytes:
    if len(text) * 3 // 4 > max_bytes + 2:  # the padding stands for up to two bytes
        raise ImageError("too_many_bytes", limit=max_bytes)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: a letter that is not ASCII
        raise ImageError("not_base64") from None
    if len(data) < SMALLEST_FILE:
        raise ImageError("cut_base64")
    return data


def _file(data: bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    """The bytes of a file, also where they are its base64 or data URL."""
    limited = _limited(data, max_bytes)
    head = _ENCODED.match(limited)
    if head is None:
        return limited
    start = head.end() if head[1].endswith(b",") else 0
    return _decoded(limited[start:].decode("latin-1"), max_bytes)


def _limited(data: bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > max_bytes:
        raise ImageError("too_many_bytes", limit=max_bytes)
    return bytes(data)


def _read(file: Readable, max_bytes: int) -> bytes:
    """The bytes of a file from its start, if it can go there; it then stands where it stood."""
    try:
        before = _rewind(file)
        data = file.read(max_bytes + 1)
        if before is not None and isinstance(file, Seekable):
            file.seek(before)
    except (OSError, ValueError):  # ValueError: it is closed
        raise ImageError("missing") from None
    if isinstance(data, str):
        raise ImageError("text_file")
    if not isinstance(data, bytes):
        raise ImageError("unknown_source", kind=type(file).__name__)
    return data


def _rewind(file: Readable) -> int | None:
    """Where the file stood before it was moved to its start; None if it cannot move."""
    if not isinstance(file, Seekable):
        return None
    try:
        before = file.tell()
        file.seek(0)
    except OSError:  # a pipe or a socket
        return None
    return before


def _array(source: Any) -> tuple[np.ndarray | None, bool]:
    """The array of an array or tensor, and whether channels come first by its library's habit."""
    if isinstance(source, np.ndarray):
        return source, False
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is None or not isinstance(source, torch.Tensor):
        return None, False
    try:
        tensor = source.detach().cpu().resolve_neg().resolve_conj()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy(), True
    except (RuntimeError, TypeError) as error:  # no numbers that NumPy can hold
        if is_out_of_memory(error):
            raise ImageError("no_memory") from None
        raise ImageError("bad_tensor", kind=_kind_of(source)) from None


def _kind_of(tensor: Any) -> str:
    """The kind of a tensor, in words for a refusal."""
    special = {
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        "meta": tensor.is_meta,
        "sparse": "sparse" in str(tensor.layout),
    }
    words = [name for name, so in special.items() if so]
    return " ".join([*words, str(tensor.dtype).removeprefix("torch.")])


def _from_array(array: np.ndarray, max_pixels: int, *, first: bool) -> Image.Image:
    """Pixels of an array; channels stand first where only that can be meant, or by its habit."""
    ends = [side in CHANNELS for side in (*array.shape[:1], *array.shape[-1:])]
    fits = array.ndim == 2 or (array.ndim == 3 and any(ends))
    if not fits or array.dtype.kind not in "biuf" or not array.size:
        shape = " x ".join(map(str, array.shape)) or "no dimension"
        raise ImageError("bad_array", kind=f"{array.dtype} and shape {shape}")
    if array.ndim == 3 and ends[0] and (first or not ends[1]):
        array = np.moveaxis(array, 0, -1)
    pixels = array.shape[0] * array.shape[1]
    if pixels > max_pixels:
        raise ImageError("too_many_pixels", pixels=pixels, limit=max_pixels)
    if array.shape[2:] == (1,):
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(eight_bits(array)))
