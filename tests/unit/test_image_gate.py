"""The image gate: every kind of picture that comes in, and every kind that must not."""

from __future__ import annotations

import io
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.picture_files import photo, picture, refusal, to_bytes

from vl2.processing.image_error import REFUSALS, ImageError
from vl2.processing.image_gate import FORMATS, ImagePolicy, admit, open_image, probe

STRICT = ImagePolicy(strict=True)


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


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_image_that_was_moved_to_a_frame_gives_that_frame(kind: str):
    source = Image.open(io.BytesIO(frames(kind)))
    source.seek(2)
    for _ in range(2):
        got = admit(source)
        assert got.image.getpixel((3, 3)) == pytest.approx((253, 2, 0), abs=3)
        assert "only frame 3, at which it stood," in got.notes[0]
    assert source.tell() == 2
    assert probe(source) == (32, 24)
    source.seek(0)
    assert "only the first was used" in admit(source).notes[0]


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
    [b"", b"\0", b"hello", bytes(1000), b"%PDX-1.7", b"<html>", b"\xff\xd8", b"RIFF1234WAVE"],
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
    assert all(text == REFUSALS[code] for code, text in refusals if code != "too_many_pixels")


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
        b"\0\0\0\x18ftypheic" + bytes(100),
        b"icns" + bytes(100),
    ],
    ids=["EPS", "SVG", "ICO", "PPM", "JPEG2000", "PDF", "TGA", "HEIC", "ICNS"],
)
def test_other_formats_start_nothing(data: bytes, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_args, **_options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    assert refusal(data) == ("pdf" if data.startswith(b"%PDF-") else "unsupported")


def test_a_file_that_pil_opened_in_another_format():
    assert refusal(Image.open(io.BytesIO(EPS))) == "unsupported"


def test_sources_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    missing = [tmp_path, tmp_path / "none.png", tmp_path / "pipe", "/dev/zero", "a\0b", ""]
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
