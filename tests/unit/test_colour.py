"""Colours behind the gate: deep grey, ink, transparency, orientation."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from tests.unit.picture_files import png

from vl2.processing.image_error import ImageError
from vl2.processing.image_gate import (
    MESSAGES,
    REFERENCE,
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


@pytest.mark.parametrize("policy", [MESSAGES, REFERENCE])
@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([128.0] * 3, [128] * 3),
        ([100.0, 125.0, 150.0], [100, 125, 150]),
        ([0.0, 128.4, 255.0], [0, 128, 255]),
        ([1.5, 2.0, 3.0], [2, 2, 3]),
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.25, 0.25, 0.5], [64, 64, 128]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([0.0, 128.0, 256.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([1e30, 2e30, 3e30], [0, 128, 255]),
        ([7e3, 7e3, 7e3], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_kept_or_stretched(values, wanted, as_file, policy):
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    source = to_bytes(image, "TIFF") if as_file else image
    assert np.asarray(open_image(source, policy))[0, :, 0].tolist() == wanted


def test_what_the_library_makes_of_bytes_comes_back():
    grey = picture().convert("L")
    assert open_image(grey.convert("F")).tobytes() == grey.convert("RGB").tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_floats(bad: float):
    values = np.full((4, 4), 7.0, np.float32)
    values[1, 2] = bad
    for source in (Image.fromarray(values), to_bytes(Image.fromarray(values), "TIFF")):
        with pytest.raises(ImageError, match="replace NaN and infinity") as caught:
            open_image(source)
        assert caught.value.code == "not_finite"


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


COLOUR = (1000, 2000, 3000)


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "key", "wanted"),
    [
        (1, 0, b"\0\x40", (1,), [0, 255, 0]),
        (1, 0, b"\0\xa0", (0,), [255, 255, 255]),
        (2, 0, b"\0\xe4", (2,), [255, 255, 85]),
        (2, 0, b"\0\x1b", (0,), [255, 85, 170]),
        (4, 0, b"\0\x5f\x00", (5,), [255, 255, 0]),
        (4, 0, b"\0\x5f\x00", (0,), [85, 255, 255]),
        (8, 0, b"\0\x05\x06\x07", (5,), [255, 6, 7]),
        (16, 0, b"\0\0\0\x03\xe8\x80\0", (1000,), [0, 255, 128]),
        (16, 0, b"\0\0\0\x03\xe8\x80\0", (0,), [255, 4, 128]),
        (16, 0, b"\0\0\0\x03\xe8\x80\0", (32768,), [0, 4, 255]),
        (
            16,
            2,
            b"\0" + bytes.fromhex("03e807d00bb8 800080008000 000000000000"),
            (1000, 2000, 3000),
            [255, 128, 0],
        ),
        (8, 2, b"\0\1\2\3\4\4\4\0\0\0", (1, 2, 3), [255, 4, 0]),
    ],
)
def test_a_colour_that_stands_for_transparency(depth, colour, rows, key, wanted):
    """In every depth of a PNG: white where the colour stood."""
    told = b"".join(value.to_bytes(2, "big") for value in key)
    data = png(3, 1, zlib.compress(rows), depth=depth, colour=colour, transparency=told)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == wanted


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


XMP = {
    "attribute": '<rdf:Description tiff:Orientation="{}"/>',
    "single quotes": "<rdf:Description tiff:Orientation='{}'/>",
    "spaces": '<rdf:Description tiff:Orientation = "{}"/>',
    "element": "<tiff:Orientation>{}</tiff:Orientation>",
}


def with_xmp(kind: str, xmp: str) -> bytes:
    if kind.startswith("PNG"):
        info = PngImagePlugin.PngInfo()
        add = info.add_text if kind == "PNG text" else info.add_itxt
        add("XML:com.adobe.xmp", xmp, zip=kind == "PNG zip")
        return to_bytes(picture(), "PNG", pnginfo=info)
    if kind == "TIFF":
        return to_bytes(picture(), kind, tiffinfo={700: xmp.encode()})
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    return to_bytes(picture(), kind, xmp=xmp.encode(), **options)


@pytest.mark.parametrize("kind", ["PNG", "PNG zip", "PNG text", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("form", XMP)
@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_orientation_in_xmp(value: int, form: str, kind: str):
    data = with_xmp(kind, XMP[form].format(value))
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}.get(value)
    turn = Image.Transpose.ROTATE_90 if value == 8 else turn
    got = open_image(data)
    assert got.size == probe(data) == ((16, 24) if value in (6, 8) else (24, 16))
    if kind != "JPEG":
        wanted = picture() if turn is None else picture().transpose(turn)
        assert got.tobytes() == wanted.tobytes()
    if kind != "TIFF":  # PIL turns that in any case
        assert open_image(data, NO_EXIF).size == probe(data, NO_EXIF) == (24, 16)


def test_exif_goes_before_xmp():
    exif = Image.Exif()
    exif[0x0112] = 1
    data = to_bytes(picture(), "WEBP", exif=exif, xmp=XMP["attribute"].format(6).encode())
    assert open_image(data).size == probe(data) == (24, 16)
    exif[0x0112] = 6
    both = to_bytes(
        picture(), "TIFF", exif=exif, tiffinfo={700: XMP["single quotes"].format(6).encode()}
    )
    assert open_image(both).size == probe(both) == (16, 24)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))
    data = to_bytes(picture(), "JPEG", exif=exif)
    assert open_image(data).size == (24, 16)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_unknown_orientation_is_upright(value: int):
    assert open_image(with_exif(value, "JPEG")).size == (24, 16)
