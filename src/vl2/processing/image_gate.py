"""The one gate for pictures: files, bytes, images and arrays become RGB, or one fixed refusal.

Nothing about the source (an address, a path, a decoder's message) ever stands in an error, so that
it may be shown to whoever sent the picture. Formats are allow-listed, pixels are counted before
they are decoded, and at most one frame is decoded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

# Imported here so that PIL need not load every plugin it has: EPS, for one, starts a program.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from vl2.geometry import Resolution
from vl2.logs import get_logger
from vl2.processing.colour import Alpha, to_rgb, told_orientation, transparent_key, upright
from vl2.processing.image_error import ImageError
from vl2.processing.image_source import PictureSource, plain_source
from vl2.ranges import Range, check_ranges

log = get_logger(__name__)

MAX_PIXELS, MOST_PIXELS = 40_000_000, 2**31
MAX_BYTES, MOST_BYTES = 20 * 2**20, 2**40
REDUCED = 8
"""A JPEG of up to so many times `max_pixels` is decoded at a half, a quarter or an eighth."""
REDUCED_SCANS = 2
"""The same limit of a JPEG in several scans: all of its coefficients are in memory at once."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are opened. A JPEG that more pictures follow (MPO, of phones) counts as JPEG."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePolicy:
    """How pictures are admitted."""

    # decoded; a larger JPEG is decoded at reduced scale
    max_pixels: Annotated[int, Range(least=1, most=MOST_PIXELS)] = MAX_PIXELS
    # of a source that is no path and no picture in memory
    max_bytes: Annotated[int, Range(least=1, most=MOST_BYTES)] = MAX_BYTES
    exif: bool = True  # turn the picture as its EXIF says (PIL turns a TIFF in any case)
    alpha: Alpha = "white"  # lay transparency on white, or "drop" it
    strict: bool = False  # refuse several frames instead of taking the first

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_ranges(self)


MESSAGES = ImagePolicy()
"""The policy for pictures that people send."""

REFERENCE = ImagePolicy(exif=False, alpha="drop")
"""The policy of the official code: no EXIF, and colours hidden by transparency show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A picture that the gate has admitted."""

    image: Image.Image  # decoded, mode RGB
    sent: Resolution  # (width, height) of the picture as it was sent, turned; boxes refer to it
    notes: tuple[
        str, ...
    ] = ()  # what the sender should know, for instance that frames were left out


def open_image(source: PictureSource, policy: ImagePolicy = MESSAGES) -> Image.Image:
    """Any picture as a decoded RGB image; see `admit`.

    Raises:
        ImageError: the picture is refused.
    """
    return admit(source, policy).image


def admit(source: PictureSource, policy: ImagePolicy = MESSAGES) -> Admitted:
    """Check, decode and convert one picture to RGB. A PIL image that is given is not changed.

    Raises:
        ImageError: the picture is refused; its `code` says why.
    """
    with _fixed_refusals(policy), _header(source, policy) as (image, sent):
        notes = []
        if _frames_follow(image):
            if policy.strict:
                raise ImageError("animated")
            which = f"frame {image.tell() + 1}, at which it stood," if image.tell() else "the first"
            notes.append(f"the picture has several frames or pages: only {which} was used")
        reduced = image.size != sent
        if reduced:
            notes.append(
                f"the picture of {sent[0]} x {sent[1]} pixels was decoded at reduced scale"
            )
        key = transparent_key(image)
        image.load()
        _check_pixels(image.size, policy)
        turned = upright(image) if policy.exif else image
        return Admitted(
            image=to_rgb(turned, policy.alpha, key),
            sent=_oriented(sent, image, policy) if reduced else turned.size,
            notes=tuple(notes),
        )


def probe(
    source: PictureSource, policy: ImagePolicy = MESSAGES, *, as_sent: bool = False
) -> Resolution:
    """(width, height) that the admitted picture will have; decodes nothing.

    A PNG may hold its EXIF after its pixels; its size is then taken as it is stored.

    Args:
        source: the picture.
        policy: how it is admitted.
        as_sent: the size before a large JPEG is reduced, to which boxes refer.

    Raises:
        ImageError: the header alone is reason to refuse the picture.
    """
    with _fixed_refusals(policy), _header(source, policy) as (image, sent):
        return _oriented(sent if as_sent else image.size, image, policy)


def _oriented(size: Resolution, image: Image.Image, policy: ImagePolicy) -> Resolution:
    """The size after the picture is turned; PIL turns TIFF in any case."""
    turned = (policy.exif or image.format == "TIFF") and told_orientation(image) >= 5
    return (size[1], size[0]) if turned else size


@contextmanager
def _fixed_refusals(policy: ImagePolicy) -> Iterator[None]:
    """Whatever a decoder raises becomes a fixed text; its own may hold addresses and paths."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("no_memory") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels, limit = map(int, re.findall(r"\d+", str(error))[:2])
        own = policy.max_pixels < limit  # more than Pillow's own limit is no use
        code = "too_many_pixels" if own else "too_many_for_pillow"
        raise ImageError(code, pixels=pixels, limit=policy.max_pixels if own else limit) from None
    except Exception:  # decoders raise anything
        log.debug("a picture was refused because of this", exc_info=True)
        raise ImageError("unreadable") from None


@contextmanager
def _header(source: PictureSource, policy: ImagePolicy) -> Iterator[tuple[Image.Image, Resolution]]:
    """The picture before decoding, its header checked, and its size before it is reduced.

    A file that was opened here is closed.
    """
    plain = plain_source(source, max_bytes=policy.max_bytes, max_pixels=policy.max_pixels)
    if isinstance(plain, Image.Image):
        undecoded = isinstance(plain, ImageFile.ImageFile)
        if undecoded and plain.format not in (*FORMATS, "MPO"):
            raise ImageError("unsupported")
        image = _reopened(plain, policy)
        sent = image.size
        _reduce(image, policy)
        yield image, sent
        return
    with _stream(plain) as file:
        start = file.read(16)
        kind = _sniff(start)
        if kind is None:
            raise ImageError("pdf" if start.startswith(b"%PDF-") else "unsupported")
        file.seek(0)
        image = _opener(kind)(file, "")
        sent = image.size
        _reduce(image, policy)
        _check_tiff_tile(image, policy)
        yield image, sent


def _opener(kind: str) -> Callable[[BinaryIO, str], Image.Image]:
    """PIL's reader of a format: `Image.open` has a limit of its own, and reads on for MPO."""
    return JpegImagePlugin.JpegImageFile if kind == "JPEG" else Image.OPEN[kind][0]


def _reopened(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """A second view of a JPEG's file that can be reduced without changing the given image."""
    large = image.size[0] * image.size[1] > policy.max_pixels
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not large or image.tell():
        return image
    if not image.tile or image.fp is None:  # decoded already
        return image
    image.fp.seek(0)
    return JpegImagePlugin.JpegImageFile(image.fp, "")


def _reduce(image: Image.Image, policy: ImagePolicy) -> None:
    """Have a large JPEG decoded at the largest scale that fits; refuse what does not fit."""
    wide, high = image.size
    if wide * high > policy.max_pixels and isinstance(image, JpegImagePlugin.JpegImageFile):
        times = REDUCED if _in_one_scan(image) else REDUCED_SCANS
        fitting = (s for s in (2, 4, 8) if -(-wide // s) * -(-high // s) <= policy.max_pixels)
        scale = next(fitting, None)
        if (
            scale is not None
            and min(wide, high) >= scale
            and wide * high <= times * policy.max_pixels
        ):
            image.draft(None, (wide // scale, high // scale))
    _check_pixels(image.size, policy)


def _in_one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG whose header has just been read holds all its colours in its first scan."""
    file, length = image.fp, 6 + 2 * image.layers
    if "progressive" in image.info or file is None:
        return False
    after = file.tell()
    file.seek(after - length - 2)
    scan = file.read(7)  # marker, length, number of colours, first colour, its tables
    file.seek(after)
    return scan[:5] == bytes((0xFF, 0xDA, 0, length, image.layers)) and scan[6] < 0x40


def _stream(source: bytes | Path) -> io.BytesIO | io.BufferedReader:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        if source.is_file():  # no folder, and no pipe or device, which would block
            return source.open("rb")
    except (OSError, ValueError):
        pass
    raise ImageError("missing")


def _sniff(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    signs = {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"II+\0": "TIFF",
        b"MM\0+": "TIFF",
    }
    return next((kind for sign, kind in signs.items() if head.startswith(sign)), None)


def _check_pixels(size: Resolution, policy: ImagePolicy) -> None:
    if min(size) < 1:
        raise ImageError("unreadable")
    _check_count(size[0] * size[1], policy)


def _check_count(pixels: int, policy: ImagePolicy) -> None:
    if pixels > policy.max_pixels:
        raise ImageError("too_many_pixels", pixels=pixels, limit=policy.max_pixels)


def _check_tiff_tile(image: Image.Image, policy: ImagePolicy) -> None:
    """A TIFF may declare a tile far larger than its picture, and the decoder allocates the tile."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = image.tag_v2.get(322, 1) * image.tag_v2.get(323, 1)  # TileWidth, TileLength
        _check_count(tile, policy)


def _frames_follow(image: Image.Image) -> bool:
    """Whether there is a second frame; none is decoded to learn it."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))
