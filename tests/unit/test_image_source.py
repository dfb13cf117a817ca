"""What a picture may be given as, and the one clear refusal of everything else."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.unit.picture_files import picture, refusal, to_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

import vl2
from vl2.processing.image_error import ImageError
from vl2.processing.image_gate import ImagePolicy, open_image, probe

PIXELS = np.asarray(picture())


@functools.cache
def png() -> bytes:
    return to_bytes(picture(), "PNG")


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{text(data)}"


class Upload:
    """A file of a library that is no `io` class."""

    def __init__(self, data: bytes | str) -> None:
        self._data = data

    def read(self, size: int = -1) -> Any:
        return self._data[: None if size < 0 else size]


FORMS: dict[str, Callable[[], Any]] = {
    "bytes": png,
    "bytearray": lambda: bytearray(png()),
    "memoryview": lambda: memoryview(png()),
    "memoryview with steps": lambda: memoryview(b"".join(bytes((b, 0)) for b in png()))[::2],
    "BytesIO": lambda: io.BytesIO(png()),
    "gzip file": lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(png()))),
    "file of another library": lambda: Upload(png()),
    "array of file bytes": lambda: np.frombuffer(png(), np.uint8),
    "image": picture,
    "array": lambda: PIXELS,
    "array, channels first": lambda: PIXELS.transpose(2, 0, 1),
    "array in Fortran's order": lambda: np.asfortranarray(PIXELS),
    "float array of 0..1": lambda: PIXELS / 255,
    "float16 array of 0..1": lambda: (PIXELS / 255).astype(np.float16),
    "float array of 0..255": lambda: PIXELS.astype(np.float32),
    "uint16 array": lambda: PIXELS.astype(np.uint16) * 257,
    "int64 array": lambda: PIXELS.astype(np.int64),
    "tensor": lambda: torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
    "tensor, channels last": lambda: torch.from_numpy(PIXELS.copy()),
    "float tensor": lambda: torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255),
    "parameter": lambda: torch.nn.Parameter(torch.from_numpy(PIXELS / 255)),
    "data URL": lambda: url(png()),
    "data URL of another kind": lambda: url(png(), "text/plain;charset=utf-8"),
    "DATA URL": lambda: url(png()).replace("data:image/png;base64", "DATA:image/PNG;BASE64"),
    "data URL without a kind": lambda: url(png(), ""),
    "base64": lambda: text(png()),
    "Hugging Face": lambda: {"bytes": png(), "path": "not/there.png"},
    "Hugging Face with base64": lambda: {"bytes": text(png()), "path": None},
    "OpenAI": lambda: {"url": url(png()), "detail": "low"},
    "OpenAI's part": lambda: {"type": "image_url", "image_url": {"url": url(png())}},
    "a source as Anthropic has it": lambda: {"type": "base64", "data": text(png())},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_picture(form: str):
    source = FORMS[form]()
    assert probe(source) == (24, 16)
    error = np.abs(np.asarray(open_image(source), int) - PIXELS).max()
    assert error <= (1 if "float16" in form else 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_base64_of_every_format_is_no_path(kind: str):
    data = to_bytes(picture(), kind)
    assert open_image(text(data)).tobytes() == open_image(data).tobytes()


def test_paths_of_every_kind(tmp_path: Path):
    file = tmp_path / "a picture.png"
    file.write_bytes(png())
    for source in (file, str(file), {"path": str(file)}, {"bytes": None, "path": file}):
        assert open_image(source).tobytes() == picture().tobytes()


def test_an_open_file_is_read_from_its_start_and_stays_where_it_stood(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file, tempfile.NamedTemporaryFile() as other:
        other.write(png())
        for source in (file, other, io.BytesIO(png())):
            source.seek(30)
            assert open_image(source).tobytes() == picture().tobytes()
            assert source.tell() == 30
    assert refusal(file) == "missing"  # it is closed
    with (tmp_path / "a.png").open("r", encoding="latin-1") as file:
        assert refusal(file) == "text_file"


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[[0], [128]]], np.uint8), [0, 128]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 1]], np.int32), [0, 1]),
        (np.array([[0, 1.0]]), [0, 255]),
        (np.array([[0, 0.5, 128.0]]), [0, 0, 128]),
        (np.array([[-1.0, 0.0, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 1000.0]]), [0, 255]),
        (np.array([[-5, 5]], np.int8), [0, 255]),
        (np.array([[-1e308, 0.0, 1e308]]), [0, 128, 255]),
        (np.array([[1e300, 1e300]]), [0, 0]),
        (np.array([[2**63, 2**63]], np.uint64), [0, 0]),
    ],
)
def test_numbers_of_every_kind_as_brightness(array: np.ndarray, wanted: list[int]):
    got = np.asarray(open_image(array))
    assert got[0, :, 0].tolist() == wanted
    assert (got == got[..., :1]).all()


def test_transparency_of_arrays_is_laid_on_white():
    array = np.zeros((2, 2, 4), np.uint8)
    array[0, :, 3] = 255
    got = open_image(array)
    assert (got.getpixel((0, 0)), got.getpixel((0, 1))) == ((0, 0, 0), (255, 255, 255))


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))
def test_channels_are_found_by_shape_and_by_the_habit_of_the_library(
    high: int, wide: int, channels: int
):
    assert open_image(np.zeros((high, wide, channels), np.uint8)).size == (wide, high)
    assert open_image(torch.zeros(channels, high, wide)).size == (wide, high)
    if wide not in (1, 3, 4):
        assert open_image(np.zeros((channels, high, wide), np.uint8)).size == (wide, high)
    if high not in (1, 3, 4):
        assert open_image(torch.zeros(high, wide, channels)).size == (wide, high)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((5, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.float32),
        np.zeros(()),
        np.zeros((8, 8), np.complex64),
        np.array([["a"]]),
        np.array([[None]]),
        torch.zeros(1, 3, 8, 8),
    ],
)
def test_arrays_that_are_no_picture(array: Any):
    with pytest.raises(ImageError, match="height x width") as caught:
        open_image(array)
    assert caught.value.code == "bad_array"
    assert str(array.dtype).removeprefix("torch.") in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(bad: float):
    assert refusal(np.array([[0.0, bad]])) == "not_finite"
    assert refusal(torch.tensor([[0.0, bad]])) == "not_finite"


@pytest.mark.parametrize(
    "source",
    [None, 7, 1.5, object(), [png()], (1, 2), {1, 2}, {}, {"bytes": None, "path": None}, {"a": 1}],
)
def test_what_is_no_picture_is_named_with_what_is_taken(source: Any):
    with pytest.raises(ImageError, match="PIL image") as caught:
        open_image(source)
    assert caught.value.code == "unknown_source"
    kind = "dict" if isinstance(source, dict) else type(source).__name__
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "http://example.com/a.png",
        "HTTPS://example.com/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        {"url": "https://example.com/a.png"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ],
)
def test_addresses_are_not_fetched(source: Any):
    with pytest.raises(ImageError, match="is not fetched: download it") as caught:
        open_image(source)
    assert caught.value.code == "remote"
    assert "example" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:80] + "\n" + t[80:],
        lambda t: t[:80] + " " + t[80:],
        lambda t: t + "\n",
        lambda t: t.rstrip("=") + "A" * (1 if len(t.rstrip("=")) % 4 != 3 else 2),
        lambda t: t[:90] + "-_" + t[92:],
        lambda t: t[:90] + "é" + t[91:],
        lambda t: t[:90] + "%3D" + t[90:],
    ],
)
def test_base64_is_strict(change: Callable[[str], str]):
    broken = change(text(png()))
    for source in (f"data:image/png;base64,{broken}", {"base64": broken}):
        with pytest.raises(ImageError, match="base64 text is not valid") as caught:
            open_image(source)
        assert caught.value.code == "not_base64"


def test_base64_that_is_bytes_or_indented():
    plain, encoded = open_image(png()), text(png())
    url = f"data:image/png;base64,{encoded}"
    for source in (encoded.encode(), url.encode(), f"\n {url}", {"data": url.encode()}):
        assert open_image(source).tobytes() == plain.tobytes()
    assert refusal(f" {encoded}") == "not_base64"
    assert refusal(b"data:,") == "unsupported"
    assert refusal(f"{encoded}\n".encode()) == "not_base64"


def test_texts_that_are_neither():
    assert refusal("data:image/png,abc") == "not_base64"
    assert refusal("data:image/svg+xml;utf8,<svg/>") == "not_base64"
    assert refusal(text(png())[:-3]) == "not_base64"
    assert refusal("a question " * 1000) == "not_base64"
    assert refusal(text(b"%PDF-1.7" + bytes(9000))) == "pdf"
    assert refusal(url(b"%PDF-1.7" + bytes(30))) == "pdf"
    for cut in (png()[:20], png()[:8], b"II*", b""):
        assert refusal(url(cut)) == "cut_base64"
    assert refusal(url(png()[:-60])) == "unreadable"
    assert refusal("iVBORw0KGgo.png") == "missing"
    assert refusal("data/cat.png") == "missing"
    assert refusal("C:\\pictures\\a.png") == "missing"
    assert refusal("a" * 3000) == "missing"


def test_a_wrong_word_for_the_kind_does_not_matter():
    assert open_image(url(to_bytes(picture(), "BMP"), "image/jpeg")).size == (24, 16)
    both = to_bytes(picture(), "PNG") + b"%PDF-1.7"
    assert open_image(both).size == (24, 16)


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("image",) and "rr" not in f])
def test_limits_hold_for_every_form(form: str):
    source = FORMS[form]()
    if "tensor" in form or form == "parameter":
        assert refusal(source, ImagePolicy(max_pixels=383)) == "too_many_pixels"
    else:
        assert refusal(source, ImagePolicy(max_bytes=len(png()) - 1)) == "too_many_bytes"


def test_a_long_text_is_not_decoded_to_be_refused():
    assert refusal("A" * 10_000, ImagePolicy(max_bytes=100)) == "too_many_bytes"
    assert refusal(np.zeros((1, 500), np.uint8), ImagePolicy(max_pixels=499)) == "too_many_pixels"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x.to_sparse(), "sparse float32"),
        (lambda x: x[0].to_sparse_csr(), "sparse float32"),
        (lambda x: x.to("meta"), "meta float32"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "quantised quint8"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised qint8"),
        (lambda x: torch.nested.nested_tensor([x[0], x[0, :4]]), "nested float32"),
        (lambda x: FakeTensorMode().from_tensor(x), "float32"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch calls some of these kinds unfinished
def test_tensors_that_hold_no_dense_numbers_are_told(make: Callable, kind: str):
    with pytest.raises(ImageError, match=f" a {kind} tensor, .*: give a dense tensor") as caught:
        open_image(make(torch.rand(3, 8, 8)))
    assert caught.value.code == "bad_tensor"


def test_lazy_views_are_their_numbers():
    half = torch.full((3, 8, 8), -0.5)
    assert open_image(torch._neg_view(half)).getpixel((0, 0)) == (128, 128, 128)
    real = torch.complex(torch.zeros(8, 8), half[0]).conj().imag  # a negated view
    assert open_image(real).getpixel((0, 0)) == (128, 128, 128)


def test_a_given_array_stays_as_it_was():
    array = PIXELS.copy()
    open_image(array).putpixel((0, 0), (1, 2, 3))
    assert (array == PIXELS).all()


def test_images_that_were_never_files():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"):
        assert open_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_parts_of_messages_carry_every_form(tmp_path: Path):
    processor = vl2.Processor.from_pretrained("nano")
    file = tmp_path / "a.png"
    file.write_bytes(png())
    parts = [
        {"type": "image", "image": picture()},
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": {"bytes": png(), "path": None}},
        {"type": "image", "path": str(file)},
        {"type": "image", "url": url(png())},
        {"type": "image", "source": {"type": "base64", "data": text(png())}},
        {"type": "image_url", "image_url": url(png())},
        {"type": "image_url", "image_url": {"url": url(png()), "detail": "low"}},
    ]

    def tiles(part: dict[str, Any]) -> torch.Tensor:
        return processor(
            [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
        ).images

    wanted = tiles(parts[0])
    assert all(torch.equal(tiles(part), wanted) for part in parts)
    with pytest.raises(ImageError, match="is not fetched"):
        tiles({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})
    with pytest.raises(ValueError, match="a part 'image_url' without 'image_url': give it"):
        tiles({"type": "image_url"})
    with pytest.raises(ValueError, match="a part 'image' without 'image': give it"):
        tiles({"type": "image"})
