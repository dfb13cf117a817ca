"""The image gate: every kind of picture that comes in, and every kind that must not."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import subprocess
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2.processing import image_gate
from vl2.processing.image_gate import (
    FORMATS,
    REFUSALS,
    ImageError,
    ImagePolicy,
    admit,
    open_image,
    probe,
)

STRICT = ImagePolicy(strict=True)


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


def png(wide: int, high: int, data: bytes, *, depth: int = 1, colour: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
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
    assert str(caught.value) == REFUSALS[caught.value.code]
    assert caught.value.__cause__ is None
    return caught.value.code


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_opens(kind: str):
    image = open_image(to_bytes(photo(), kind))
    assert image.mode == "RGB"
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image, int) - np.asarray(photo(), int)).mean() < 12


def test_path_bytes_and_image_are_the_same(tmp_path: Path):
    file = tmp_path / "a picture.png"
    picture().save(file)
    for source in (file, str(file), file.read_bytes(), Image.open(file), picture()):
        assert open_image(source).tobytes() == picture().tobytes()
        assert probe(source) == (24, 16)


def test_given_image_stays_as_it_was():
    source = Image.open(io.BytesIO(to_bytes(picture().convert("RGBA"), "PNG")))
    open_image(source)
    assert source.mode == "RGBA"
    plain = picture()
    open_image(plain).putpixel((0, 0), (1, 2, 3))
    assert plain.tobytes() == picture().tobytes()


# Several frames


def frames(kind: str, count: int = 3) -> bytes:
    colours = [(255 - n % 200, n % 256, 0) for n in range(count)]
    images = [Image.new("RGB", (32, 24), colour) for colour in colours]
    more = {"lossless": True} if kind == "WEBP" else {}
    return to_bytes(images[0], kind, save_all=True, append_images=images[1:], **more)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_and_a_note(kind: str):
    got = admit(frames(kind))
    assert got.image.getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=3)
    assert len(got.notes) == 1
    assert refusal(frames(kind), STRICT) == "animated"


@pytest.mark.parametrize("kind", FORMATS)
def test_one_frame_needs_no_note(kind: str):
    assert admit(to_bytes(photo(), kind), STRICT).notes == ()


def test_phone_picture_with_a_second_picture_behind_it():
    data = to_bytes(photo(), "MPO", save_all=True, append_images=[photo()])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert admit(data, STRICT).notes == ()
    assert admit(Image.open(io.BytesIO(data)), STRICT).notes == ()


def test_one_thousand_frames_cost_one():
    data = frames("GIF", 1000)
    times = []
    for _ in range(3):
        start = time.process_time()
        assert admit(data).notes
        times.append(time.process_time() - start)
    assert min(times) < 0.05


# Damage


@pytest.mark.parametrize("percent", [20, 50, 90, 99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated(kind: str, percent: int):
    data = to_bytes(picture(200, 150), kind)
    assert refusal(data[: len(data) * percent // 100]) == "unreadable"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello", bytes(1000), b"%PDF-1.7", b"<html>", b"\xff\xd8", b"RIFF1234WAVE"],
)
def test_garbage(data: bytes):
    assert refusal(data) == "unsupported"


@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0"]
)
def test_header_alone(head: bytes):
    assert refusal(head) == "unreadable"
    assert refusal(head + b"\xff" * 500) == "unreadable"


@pytest.mark.filterwarnings("ignore")  # decoders warn about some damage that they survive
def test_a_thousand_damaged_files_give_a_picture_or_a_refusal():
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = picture(20, 14)
    whole = [to_bytes(small, kind) for kind in FORMATS]
    whole += [to_bytes(small, "JPEG", exif=exif), to_bytes(small.convert("RGBA"), "PNG")]
    whole += [to_bytes(small, "TIFF", compression="tiff_lzw"), frames("GIF"), frames("PNG")]
    whole += [to_bytes(small.convert("CMYK"), "JPEG"), to_bytes(small.convert("P"), "BMP")]
    refusals = []
    for _ in range(1000):
        data = bytearray(rng.choice(whole))
        if rng.random() < 0.4:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert open_image(bytes(data)).mode == "RGB"
        except ImageError as error:
            refusals.append((error.code, str(error)))
    assert 300 < len(refusals) < 1000
    assert set(refusals) <= set(REFUSALS.items())


# Too large


@functools.cache
def bombs() -> dict[str, bytes]:
    nothing = zlib.compress(bytes(1000))
    tile = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32768, 323: 32768, 325: 1000}
    wide = {256: 50000, 257: 50000, 258: 8, 259: 8, 262: 1, 277: 1, 278: 50000, 279: 1000}
    jpeg = bytearray(to_bytes(photo(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65000, 65000)
    gif = bytearray(to_bytes(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(to_bytes(photo(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    rows = zlib.compress(bytes(13377 * (1 + 13377 // 8 + 1)), 9)
    return {
        "PNG 178.9 MP": png(13377, 13377, rows),
        "PNG 324 MP": png(18000, 18000, nothing),
        "PNG 40.01 MP": png(6326, 6325, nothing),
        "PNG 4 GP": png(2**31 - 1, 2, nothing),
        "TIFF": tiff(wide, nothing, 273),
        "TIFF tile": tiff(tile, nothing, 324),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_header(name: str):
    data = bombs()[name]
    times = []
    for _ in range(3):
        start = time.process_time()
        assert refusal(data) == "too_many_pixels"
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def peak_kibibytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_refusing_bombs_takes_no_memory():
    open_image(picture())
    for data in bombs().values():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now
        before = peak_kibibytes()
        assert refusal(data) == "too_many_pixels"
        assert peak_kibibytes() - before <= 8 * 1024


def test_limits_are_inclusive_and_can_be_moved():
    data = to_bytes(picture(), "PNG")
    assert open_image(data, ImagePolicy(max_pixels=24 * 16, max_bytes=len(data))).size == (24, 16)
    assert refusal(data, ImagePolicy(max_pixels=24 * 16 - 1)) == "too_many_pixels"
    assert refusal(picture(), ImagePolicy(max_pixels=24 * 16 - 1)) == "too_many_pixels"
    assert refusal(data, ImagePolicy(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert image_gate.MAX_PIXELS == 40_000_000
    assert image_gate.MAX_BYTES == 20 * 2**20


# What is not opened at all


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch x) print\n"


@pytest.mark.parametrize(
    "data",
    [
        EPS,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        to_bytes(picture(), "ICO"),
        to_bytes(picture(), "PPM"),
        to_bytes(picture(), "JPEG2000"),
        to_bytes(picture(), "PDF"),
        to_bytes(picture(), "TGA"),
    ],
    ids=["EPS", "SVG", "ICO", "PPM", "JPEG2000", "PDF", "TGA"],
)
def test_other_formats_start_nothing(data: bytes, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_args, **_options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    assert refusal(data) == "unsupported"


def test_a_file_that_pil_opened_in_another_format():
    assert refusal(Image.open(io.BytesIO(EPS))) == "unsupported"


def test_sources_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    missing = [tmp_path, tmp_path / "none.png", tmp_path / "pipe", "/dev/zero", "a\0b", ""]
    missing += ["http://localhost/a.png", "data:image/png;base64,AAAA", "file:///etc/passwd"]
    for source in missing:
        assert refusal(source) == "missing"


def test_closed_image_is_refused_by_one_line():
    image = Image.open(io.BytesIO(to_bytes(picture(), "PNG")))
    image.close()
    assert refusal(image) == "unreadable"


def test_no_refusal_can_show_an_address_or_a_path():
    for text in REFUSALS.values():
        assert "\n" not in text
        assert not any(mark in text for mark in ("0x", "/", "Traceback", "File"))
