"""Colours behind the gate: deep grey, ink, transparency, orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from vl2.processing.image_gate import (
    MESSAGES,
    REFERENCE,
    ImageError,
    ImagePolicy,
    open_image,
    probe,
)

DROP = ImagePolicy(alpha="drop")
NO_EXIF = ImagePolicy(exif=False)


def to_bytes(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture() -> Image.Image:
    """Noise in colours, so that every pixel has its place."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def mean(image: Image.Image) -> float:
    return float(np.asarray(image, dtype=np.float64).mean())


# 16 bits, floats


def ramp() -> np.ndarray:
    return np.linspace(0, 65535, 256 * 16).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("policy", [MESSAGES, REFERENCE])
@pytest.mark.parametrize(
    "source",
    [
        to_bytes(Image.fromarray(ramp()), "PNG"),
        to_bytes(Image.fromarray(ramp()), "TIFF"),
        Image.frombytes("I;16B", (64, 64), ramp().astype(">u2").tobytes()),
        Image.fromarray(ramp().astype(np.int32)),
        to_bytes(Image.fromarray((ramp() / 65535).astype(np.float32)), "TIFF"),
        to_bytes(Image.fromarray((ramp() - 4e4).astype(np.float32)), "TIFF"),
        Image.fromarray(ramp().astype(np.int32) * 1000 - 7),
    ],
    ids=["I;16 PNG", "I;16 TIFF", "I;16B", "I", "float 0..1", "float any", "32 bits"],
)
def test_deep_grey_is_scaled_not_saturated(source, policy):
    image = open_image(source, policy)
    assert image.getextrema() == ((0, 255),) * 3
    assert mean(image) == pytest.approx(127.5, abs=1)


def test_eight_bit_values_in_a_deep_mode_stay():
    grey = picture().convert("L")
    assert open_image(grey.convert("I")).tobytes() == grey.convert("RGB").tobytes()


def test_sixteen_bits_are_divided_by_257():
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    got = np.asarray(open_image(Image.fromarray(values)))[0, :, 0]
    assert got.tolist() == [0, 1, 4, 128, 255]


def test_constant_and_broken_floats():
    assert open_image(Image.fromarray(np.full((4, 4), 7.0, np.float32))).size == (4, 4)
    for bad in (np.nan, np.inf):
        values = np.full((4, 4), bad, np.float32)
        with pytest.raises(ImageError) as caught:
            open_image(to_bytes(Image.fromarray(values), "TIFF"))
        assert caught.value.code == "unreadable"


# Colours


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 8), ("TIFF", 0)])
def test_cmyk_chart(kind: str, tolerance: int):
    colours = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    inks = [(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    chart = Image.new("CMYK", (64, 16))
    for n, ink in enumerate(inks):
        chart.paste(ink, (16 * n, 0, 16 * n + 16, 16))
    options = {"quality": 95} if kind == "JPEG" else {}
    data = to_bytes(chart, kind, **options)
    assert (b"Adobe" in data) == (kind == "JPEG")  # inverted, as Adobe writes it
    got = open_image(data)
    for n, colour in enumerate(colours):
        error = np.abs(np.array(got.getpixel((16 * n + 8, 8))) - colour).max()
        assert error <= tolerance


def clear_pictures() -> dict[str, Image.Image | bytes]:
    """Left half opaque red (grey where there is no colour), right half invisible black."""
    rgba = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (4, 0, 8, 4))
    palette = Image.new("P", (8, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.paste(1, (4, 0, 8, 4))
    rgb = rgba.convert("RGB")
    return {
        "RGBA PNG": to_bytes(rgba, "PNG"),
        "RGBA WebP": to_bytes(rgba, "WEBP", lossless=True, exact=True),
        "RGBA TIFF": to_bytes(rgba, "TIFF"),
        "P bytes": to_bytes(palette, "PNG", transparency=b"\xff\x00"),
        "P GIF": to_bytes(palette, "GIF", transparency=1),
        "RGB key": to_bytes(rgb, "PNG", transparency=(0, 0, 0)),
        "LA": to_bytes(rgba.convert("LA"), "PNG"),
        "L key": to_bytes(rgba.convert("L"), "PNG", transparency=0),
        "La": rgba.convert("LA").convert("La"),
        "PA": palette.convert("PA"),
    }


@pytest.mark.parametrize("name", clear_pictures())
def test_transparency(name: str):
    source = clear_pictures()[name]
    seen = (76, 76, 76) if name in ("LA", "L key", "La") else (255, 0, 0)
    behind = (255, 255, 255) if name != "PA" else (0, 0, 0)  # PIL makes PA opaque here
    assert open_image(source).getpixel((1, 1)) == pytest.approx(seen, abs=1)
    assert open_image(source).getpixel((6, 1)) == behind
    assert open_image(source, DROP).getpixel((1, 1)) == pytest.approx(seen, abs=1)
    assert open_image(source, DROP).getpixel((6, 1)) == (0, 0, 0)


def test_half_transparency_is_composited():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert open_image(image).getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


# EXIF


def with_exif(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    return to_bytes(picture(), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str):
    data = with_exif(orientation, kind)
    plain = Image.open(io.BytesIO(data))
    turned = ImageOps.exif_transpose(plain).convert("RGB")
    got = open_image(data)
    assert got.size == ((24, 16) if orientation < 5 else (16, 24))
    assert got.tobytes() == turned.tobytes()
    assert probe(data) == got.size
    assert open_image(got).tobytes() == got.tobytes()  # not turned twice
    assert open_image(data, NO_EXIF).tobytes() == plain.convert("RGB").tobytes()
    assert probe(data, NO_EXIF) == open_image(data, NO_EXIF).size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))
    data = to_bytes(picture(), "JPEG", exif=exif)
    assert open_image(data).size == (24, 16)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_unknown_orientation_is_upright(value: int):
    assert open_image(with_exif(value, "JPEG")).size == (24, 16)
