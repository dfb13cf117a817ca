"""Files of pictures for the tests of the image gate."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vl2.processing import image_gate
from vl2.processing.image_error import REFUSALS, ImageError
from vl2.processing.image_gate import open_image


def to_bytes(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(wide: int = 24, high: int = 16) -> Image.Image:
    """Noise in colours, so that every pixel has its place."""
    noise = np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def photo() -> Image.Image:
    """Smooth colours, as lossy formats like them."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 3], -1).astype(np.uint8))


def png(
    wide: int,
    high: int,
    data: bytes,
    *,
    depth: int = 1,
    colour: int = 0,
    transparency: bytes = b"",
) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0)
    key = chunk(b"tRNS", transparency) if transparency else b""
    parts = (chunk(b"IHDR", header), key, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: dict[int, int], data: bytes, strip: int) -> bytes:
    """A grey little-endian TIFF; `strip` is the tag that points to its data."""
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = sorted({**tags, strip: start}.items())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def refusal(source, policy=image_gate.MESSAGES) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, policy)
    assert str(caught.value) == REFUSALS[caught.value.code].format(**caught.value.values)
    assert caught.value.__cause__ is None
    return caught.value.code
