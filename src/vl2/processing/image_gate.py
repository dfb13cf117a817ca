"""The one gate for pictures: bytes, files and PIL images become RGB, or one fixed refusal.

Nothing about the source (an address, a path, a decoder's message) ever stands in an error, so that
it may be shown to whoever sent the picture. Formats are allow-listed, pixels are counted before
they are decoded, and at most one frame is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Imported here so that PIL need not load every plugin it has: EPS, for one, starts a program.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from vl2.geometry import Resolution
from vl2.logs import get_logger
from vl2.processing.colour import Alpha, orientation, to_rgb, upright

log = get_logger(__name__)

Source = str | Path | bytes | Image.Image
"""A path, the bytes of a file, or a PIL image. A string is always a path, never an address."""

MAX_PIXELS = 40_000_000
MAX_BYTES = 20 * 2**20

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened. A JPEG with more pictures behind it (MPO; phones write them) counts as JPEG."""

_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
REFUSALS = {
    "missing": "the picture file does not exist or cannot be opened: give a file that can be read",
    "too_many_bytes": "the picture file is too large: send a smaller one",
    "unsupported": f"this is not a picture of a kind that is read: send {_KINDS}",
    "too_many_pixels": "the picture has too many pixels: scale it down first",
    "unreadable": f"the picture is damaged or incomplete: send a whole {_KINDS} file",
    "animated": "the picture has several frames or pages: send one",
    "too_thin": "the picture is thinner than one pixel once fitted into the model's view: crop it",
}
"""Every `ImageError.code` and its text."""


class ImageError(ValueError):
    """A refused picture: a stable `code`, and a text that is fixed for the code."""

    def __init__(self, code: str) -> None:
        super().__init__(REFUSALS[code])
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str]]:
        """Travels from a worker process by its code."""
        return ImageError, (self.code,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePolicy:
    """How pictures are admitted."""

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES  # of sources given as bytes
    exif: bool = True  # turn the picture as its EXIF says (PIL turns a TIFF in any case)
    alpha: Alpha = "white"  # lay transparency on white, or "drop" it
    strict: bool = False  # refuse several frames instead of taking the first


MESSAGES = ImagePolicy()
"""For pictures that people send."""

REFERENCE = ImagePolicy(exif=False, alpha="drop")
"""As the official code reads files: no EXIF, and colours hidden by transparency show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A picture behind the gate."""

    image: Image.Image  # decoded, mode RGB
    notes: tuple[
        str, ...
    ] = ()  # what the sender should know, for instance that frames were left out


def open_image(source: Source, policy: ImagePolicy = MESSAGES) -> Image.Image:
    """Any picture as a decoded RGB image; see `admit`.

    Raises:
        ImageError: the picture is refused.
    """
    return admit(source, policy).image


def admit(source: Source, policy: ImagePolicy = MESSAGES) -> Admitted:
    """Check, decode and convert one picture to RGB. A PIL image that is given is not changed.

    Raises:
        ImageError: the picture is refused; its `code` says why.
    """
    with _fixed_refusals(), _header(source, policy) as image:
        notes = ()
        if _frames_follow(image):
            if policy.strict:
                raise ImageError("animated")
            notes = ("the picture has several frames or pages: only the first was used",)
        image.load()
        _check_pixels(image.size, policy)
        turned = upright(image) if policy.exif else image
        return Admitted(image=to_rgb(turned, policy.alpha), notes=notes)


def probe(source: Source, policy: ImagePolicy = MESSAGES) -> Resolution:
    """(width, height) that the admitted picture will have; decodes nothing.

    A PNG may hide its EXIF behind its pixels; such a one is measured as it lies.

    Raises:
        ImageError: the header alone is reason to refuse the picture.
    """
    with _fixed_refusals(), _header(source, policy) as image:
        wide, high = image.size
        told = image.format != "PNG" or "exif" in image.info  # getexif would decode a PNG
        # PIL turns TIFF by itself and gives the size after that.
        turned = policy.exif and told and image.format != "TIFF" and orientation(image) >= 5
        return (high, wide) if turned else (wide, high)


@contextmanager
def _fixed_refusals() -> Iterator[None]:
    """Whatever a decoder raises becomes a fixed text; its own may hold addresses and paths."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels") from None
    except Exception:  # decoders raise anything
        log.debug("a picture was refused because of this", exc_info=True)
        raise ImageError("unreadable") from None


@contextmanager
def _header(source: Source, policy: ImagePolicy) -> Iterator[Image.Image]:
    """The picture before decoding, its header checked; a file that was opened here is closed."""
    if isinstance(source, Image.Image):
        undecoded = isinstance(source, ImageFile.ImageFile)
        if undecoded and source.format not in (*FORMATS, "MPO"):
            raise ImageError("unsupported")
        _check_pixels(source.size, policy)
        yield source
        return
    with _stream(source, policy) as file:
        kind = _sniff(file.read(16))
        if kind is None:
            raise ImageError("unsupported")
        file.seek(0)
        image = Image.open(file, formats=(kind,))
        _check_pixels(image.size, policy)
        _check_tiff_tile(image, policy)
        yield image


def _stream(source: str | Path | bytes, policy: ImagePolicy) -> io.BytesIO | io.BufferedReader:
    if isinstance(source, bytes):
        if len(source) > policy.max_bytes:
            raise ImageError("too_many_bytes")
        return io.BytesIO(source)
    try:
        path = Path(source)
        if path.is_file():  # no folder, and no pipe or device, which would block
            return path.open("rb")
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
    if size[0] * size[1] > policy.max_pixels:
        raise ImageError("too_many_pixels")


def _check_tiff_tile(image: Image.Image, policy: ImagePolicy) -> None:
    """A TIFF may declare a tile far larger than its picture, and the decoder allocates the tile."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = image.tag_v2.get(322, 1) * image.tag_v2.get(323, 1)  # TileWidth, TileLength
        if tile > policy.max_pixels:
            raise ImageError("too_many_pixels")


def _frames_follow(image: Image.Image) -> bool:
    """Whether there is a second frame; none is decoded to learn it."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))
