"""The pictures of a row: where they are, and how large they will be; nothing is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vl2.data.source_record import Origin, PictureSources
from vl2.geometry import Resolution
from vl2.processing.image_gate import MESSAGES, ImageError, ImagePolicy, open_image, probe

TRAINING = MESSAGES
"""Pictures are learnt as they will be asked about: turned as EXIF says, transparency on white."""
_NO_PATH = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+://|data:[^,]*,)")
HEADERS = replace(TRAINING, max_pixels=2**31)
"""For sizes of pictures that are not decoded: what is too large is refused when it is decoded."""


def read_pictures(value: Any, root: Path, origin: Origin) -> PictureSources:
    """Pictures of a field: nothing, one or a list of paths, bytes or {"bytes", "path"}.

    A path that is not absolute starts at `root`. Whether the file is there shows when it is opened.

    Raises:
        RecordError: a picture is none of these.
    """
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_picture(each, root, origin) for each in values)


def picture_size(
    source: bytes | Path, policy: ImagePolicy = HEADERS, *, decoded: bool = False
) -> Resolution:
    """(width, height) of a picture as it is shown, to which boxes refer, from the header.

    With `decoded` it is the size that `open_image(source, policy)` gives: a large JPEG is decoded
    at reduced scale. Only a PNG that carries an orientation where its header does not show it has
    to be decoded.

    Raises:
        ImageError: the picture is refused.
    """
    size = probe(source, policy, as_sent=not decoded)
    if size[0] == size[1]:
        return size
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            told_elsewhere = _may_be_turned(file)
    except OSError:
        raise ImageError("missing") from None
    return open_image(source, policy).size if told_elsewhere else size


def _picture(value: Any, root: Path, origin: Origin) -> bytes | Path:
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        if _NO_PATH.match(value):
            raise origin.error("a picture is an address or base64: save it and give its path")
        return root / value
    raise origin.error(f"a picture is of type {type(value).__name__}: expected a path")


def _may_be_turned(file: io.BytesIO | io.BufferedReader) -> bool:
    """Whether a PNG holds EXIF or XMP in any chunk."""
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return False
    while len(head := file.read(8)) == 8:
        if head[4:] == b"eXIf":
            return True
        length = int.from_bytes(head[:4], "big")
        known = file.read(min(length, 24)) if head[4:] in _TEXT_CHUNKS else b""
        if known.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return True
        file.seek(length - len(known) + 4, io.SEEK_CUR)
    return False


_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
