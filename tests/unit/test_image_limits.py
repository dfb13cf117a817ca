"""Pictures that are too large for the gate, and photographs that it decodes at reduced scale."""

from __future__ import annotations

import functools
import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from tests.unit.picture_files import photo, picture, png, refusal, tiff, to_bytes

from vl2.processing import image_gate
from vl2.processing.image_error import ImageError
from vl2.processing.image_gate import ImagePolicy, admit, open_image, probe


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


def jpeg_of(wide: int, high: int, **options) -> bytes:
    """A JPEG of a red and a blue half, small as a file."""
    image = Image.new("RGB", (wide, high), "blue")
    image.paste((255, 0, 0), (0, 0, wide // 2, high))
    return to_bytes(image, "JPEG", **options)


@functools.cache
def photograph() -> bytes:
    return jpeg_of(8000, 6000)


def test_a_photograph_of_48_megapixels_is_decoded_at_half_its_size():
    got = admit(photograph())
    assert got.image.size == (4000, 3000)
    assert got.sent == (8000, 6000)
    assert got.image.getpixel((100, 100)) == pytest.approx((254, 0, 0), abs=3)
    assert got.image.getpixel((3900, 100)) == pytest.approx((0, 0, 254), abs=3)
    assert len(got.notes) == 1
    assert "8000 x 6000" in got.notes[0]
    assert probe(photograph()) == (4000, 3000)
    assert probe(photograph(), as_sent=True) == (8000, 6000)


@pytest.mark.parametrize(
    ("size", "limit", "scale"),
    [
        ((101, 67), 101 * 67, 1),
        ((101, 67), 101 * 67 - 1, 2),
        ((101, 67), 51 * 34, 2),
        ((101, 67), 51 * 34 - 1, 4),
        ((100, 66), 26 * 17 - 1, None),  # more than eight times the limit
        ((1000, 3), 2900, 2),
        ((65000, 1), 40000, None),  # nothing is left of one row
    ],
)
def test_a_jpeg_is_reduced_to_the_limit_and_no_further(
    size: tuple[int, int], limit: int, scale: int | None
):
    data, policy = jpeg_of(*size), ImagePolicy(max_pixels=limit)
    if scale is None:
        assert refusal(data, policy) == "too_many_pixels"
        return
    wanted = tuple(-(-side // scale) for side in size)
    assert admit(data, policy).image.size == probe(data, policy) == wanted
    assert admit(data, policy).sent == size


def test_a_reduced_jpeg_is_turned_and_its_size_as_sent_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data, policy = jpeg_of(200, 100, exif=exif), ImagePolicy(max_pixels=5000)
    got = admit(data, policy)
    assert (got.image.size, got.sent) == ((50, 100), (100, 200))
    assert probe(data, policy) == (50, 100)
    assert probe(data, policy, as_sent=True) == (100, 200)
    assert got.image.getpixel((25, 10)) == pytest.approx((254, 0, 0), abs=3)


def test_jpegs_that_are_held_whole_while_they_are_decoded_have_a_lower_limit():
    limit = ImagePolicy(max_pixels=5000)
    assert open_image(jpeg_of(200, 200), limit).size == (50, 50)
    assert refusal(jpeg_of(200, 200, progressive=True), limit) == "too_many_pixels"
    assert open_image(jpeg_of(100, 100, progressive=True), limit).size == (50, 50)
    # A baseline JPEG whose colours lie in scans of their own says so in its first scan.
    apart = bytearray(jpeg_of(200, 200))
    scan = apart.index(b"\xff\xda")
    apart[scan : scan + 14] = bytes.fromhex("ffda 0008 01 0100 003f00")
    assert refusal(bytes(apart), limit) == "too_many_pixels"
    hidden = bytes(apart[:scan]) + bytes.fromhex("fffe 0010 00 0000 000000 ffda000c0301")
    assert refusal(hidden + bytes(apart[scan:]), limit) == "too_many_pixels"


def test_a_given_image_of_a_large_jpeg_stays_as_it_was():
    source = Image.open(io.BytesIO(jpeg_of(200, 100)))
    policy = ImagePolicy(max_pixels=5000)
    assert admit(source, policy).image.size == (100, 50)
    assert probe(source, policy, as_sent=True) == (200, 100)
    assert source.size == (200, 100)
    assert source.convert("RGB").getpixel((10, 10)) == pytest.approx((254, 0, 0), abs=3)
    assert refusal(source, policy) == "too_many_pixels"  # now it is decoded


def test_refusals_say_the_numbers_and_the_setting():
    with pytest.raises(ImageError, match=r"has 384 pixels and at most 383 .* raise max_pixels"):
        open_image(to_bytes(picture(), "PNG"), ImagePolicy(max_pixels=383))
    with pytest.raises(ImageError, match="more than 9 bytes: send a smaller one, or raise max_by"):
        open_image(bytes(10), ImagePolicy(max_bytes=9))


@pytest.mark.filterwarnings("error")
def test_a_raised_limit_goes_past_the_limit_of_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "JPEG", "BMP"):
        assert open_image(to_bytes(picture(), kind)).size == (24, 16)


def test_memory_that_runs_out_is_not_called_damage(monkeypatch: pytest.MonkeyPatch):
    def load(_image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    assert refusal(Image.new("RGB", (4, 4))) == "no_memory"


def large_webp() -> bytes:
    """The header of a WebP of 13,000 x 13,900 pixels."""
    lossless = b"VP8L\x08\0\0\0\x2f" + (12999 | 13899 << 14).to_bytes(4, "little") + bytes(3)
    return b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP" + lossless


def large_tiff() -> bytes:
    return tiff(
        {256: 13000, 257: 13900, 258: 8, 259: 8, 262: 1, 277: 1, 278: 13900, 279: 9}, b"", 273
    )


@pytest.mark.parametrize("make", [large_webp, large_tiff])
@pytest.mark.parametrize("limit", [40_000_000, 178_000_000])
def test_a_limit_below_pillows_is_the_one_that_is_told(make, limit: int):
    with pytest.raises(ImageError) as caught:
        open_image(make(), ImagePolicy(max_pixels=limit))
    assert str(caught.value) == (
        f"the picture has 180,700,000 pixels and at most {limit:,} are decoded: scale it down "
        "first, or raise max_pixels"
    )


@pytest.mark.parametrize("make", [large_webp, large_tiff])
def test_pillows_own_limit_is_not_raised_by_ours(make):
    with pytest.raises(ImageError) as caught:
        open_image(make(), ImagePolicy(max_pixels=2**31))
    assert caught.value.code == "too_many_for_pillow"
    assert str(caught.value) == (
        "the picture has 180,700,000 pixels and Pillow decodes at most 178,956,970 of this file "
        "type: scale it down first, or save it as PNG or JPEG"
    )
