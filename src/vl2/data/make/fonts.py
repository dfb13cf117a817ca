"""Fonts in use: what each can draw, which split its family belongs to, and loaded once per size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vl2.data.make.packages import fetch_all, packages
from vl2.folders import cache_folder

Font = ImageFont.FreeTypeFont
Split = str  # "train" or "heldout"
SPLITS: tuple[Split, ...] = ("train", "heldout")
HELDOUT_SHARE = 0.15
ASCII = "".join(map(chr, range(33, 127)))
PROBE = 64  # font size in pixels at which a face is examined
WEIGHTS = (300, 400, 400, 500, 600, 700, 800)
"""Of variable fonts; regular is the most frequent."""
HAND = re.compile(
    r"caveat|dancing|delius|great.?vibes|indie|kalam|permanent|satisfy|shadows|yellowtail|zeyada"
    r"|amatic|patrick|handlee|gloria|rock.?salt|coming.?soon|breip|delphine|dkg"
    r"|humor|kaushan|kristi|rufscript|stevehand",
    re.IGNORECASE,
)
"""Families that look written by hand."""
SMALL_CAPITALS = re.compile("amatic|cinzel|humor|permanent", re.IGNORECASE)
"""Families whose lower-case letters are smaller capitals, which one reads as capitals."""
UNFIT = re.compile(
    r"hairline|thin|extralight|tusj|capture_it|seasrn|walkway_(oblique|semibold)|sourcehan|takao"
    r"|hb-test|color|emoji|icons?|barcode|dkg(bi|it)|redacted|flow(?!er)|libre_?barcode|guides|symbols",
    re.IGNORECASE,
)
"""Files that nobody can read: hair-thin, torn, without Latin letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """One font file as it is drawn."""

    path: str  # empty: the font inside Pillow
    family: str
    weight: int = 0  # of a variable font; 0 leaves a font as it is
    mono: bool = False
    hand: bool = False
    capitals_only: bool = False  # lower-case letters look like capitals
    cap_height: float = 0.7  # of an H, in font sizes


def faces(split: Split) -> tuple[Face, ...]:
    """All faces of a split, "train" or "heldout"; a family is never in both.

    Which split a family belongs to depends on its name alone: new fonts move none.
    """
    return tuple(face for face in _examined() if (_is_heldout(face.family)) == (split == "heldout"))


def family(name: str) -> str:
    """The family of a font file: its name's first word, so that close relatives stay together."""
    match = re.match(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[^_\W]+", name)
    return (match.group() if match else name).lower()


@lru_cache(maxsize=2048)
def load(face: Face, size: int) -> Font:
    """The face at `size` pixels per em."""
    if not face.path:
        font = ImageFont.load_default(size)
        assert isinstance(font, Font)  # Pillow's wheels have FreeType
        return font
    font = ImageFont.truetype(face.path, size, layout_engine=ImageFont.Layout.BASIC)
    if face.weight:
        font.set_variation_by_axes(
            [
                _clamped(face.weight, axis.get("minimum"), axis.get("maximum"))
                if axis.get("name") == b"Weight"
                else float(axis.get("default") or 0)
                for axis in font.get_variation_axes()
            ]
        )
    return font


@lru_cache(maxsize=2**18)
def advance(face: Face, size: int, char: str, following: str) -> float:
    """Pixels from the start of `char` to that of `following`, kerning included."""
    font = load(face, size)
    return font.getlength(char + following) - font.getlength(following)


@lru_cache(maxsize=2**16)
def glyph_box(face: Face, size: int, char: str) -> tuple[int, int, int, int]:
    """Ink of a character in pixels, relative to the pen and the ascender; empty for a space."""
    margin = size  # ink may reach out on both sides of the pen
    layer = Image.new("L", (3 * size + 2 * margin, 2 * size + 2 * margin))
    place = (margin, margin)
    ImageDraw.Draw(layer).text(place, char, fill=255, font=load(face, size))
    box = layer.point(_VISIBLE).getbbox() or (margin, margin, margin, margin)
    return box[0] - margin, box[1] - margin, box[2] - margin, box[3] - margin


_VISIBLE = [255 * (value > 40) for value in range(256)]
"""What counts as ink of a smoothed edge."""


def _clamped(value: int, low: int | None, high: int | None) -> float:
    return float(min(max(value, low or 0), high or value))


@lru_cache(maxsize=1)
def _examined() -> tuple[Face, ...]:
    """Every usable face of the pinned font packages; examined once, then read from the cache."""
    names = sorted(name for name, package in packages().items() if package.use == "fonts")
    patterns = [HAND.pattern, SMALL_CAPITALS.pattern, UNFIT.pattern]
    chosen = repr([*(packages()[name] for name in names), *patterns])
    key = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    kept = cache_folder("packages") / f"faces-{key}.json"
    if not kept.exists():
        found = [asdict(face) for folder in fetch_all(names) for face in _of_folder(folder)]
        unfinished = kept.with_suffix(".part")
        unfinished.write_text(json.dumps(found, indent=0), encoding="utf-8")
        unfinished.rename(kept)
    return tuple(Face(**each) for each in json.loads(kept.read_text(encoding="utf-8")))


def _of_folder(folder: Path) -> Iterable[Face]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".ttf", ".otf") and not UNFIT.search(path.name):
            yield from _of_file(path)


def _of_file(path: Path) -> Iterable[Face]:
    """A fixed font, or several weights of a variable one; nothing where a character is missing."""
    font = ImageFont.truetype(path, PROBE, layout_engine=ImageFont.Layout.BASIC)
    missing = _pixels(font, "\ue0ff")
    masks = {char: _pixels(font, char) for char in ASCII}
    if any(not mask or mask == missing for mask in masks.values()):
        return
    top, bottom = font.getbbox("H")[1::2]
    name = path.name.rsplit("--", 1)[-1]
    common = {
        "path": str(path),
        "family": family(name),
        "mono": font.getlength("i") == font.getlength("W"),
        "hand": bool(HAND.search(name)),
        "capitals_only": masks["a"] == masks["A"] or bool(SMALL_CAPITALS.search(name)),
        "cap_height": (bottom - top) / PROBE,
    }
    variable = "wght" in name
    for weight in sorted(set(WEIGHTS)) if variable else (0,):
        yield Face(**common, weight=weight)


def _pixels(font: Font, char: str) -> bytes:
    """What a character looks like; empty where nothing is drawn."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(char))
    layer = Image.new("L", (max(0, right - left), max(0, bottom - top)))
    ImageDraw.Draw(layer).text((-left, -top), char, fill=255, font=font)
    return layer.tobytes() if layer.getbbox() else b""


def _is_heldout(name: str) -> bool:
    digest = hashlib.sha256(f"vl2 families {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_SHARE
