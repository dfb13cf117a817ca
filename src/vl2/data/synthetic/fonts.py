"""Fonts for synthetic text: fetched from pinned packages, split by family, loaded once per size."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

HELDOUT_SHARE = 0.15
FONT_SUFFIXES = (".ttf", ".otf")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True, kw_only=True, slots=True)
class FontPackage:
    """A pure-Python wheel that carries font files."""

    name: str
    version: str
    sha256: str
    skip: tuple[str, ...] = ()
    """Stems of files that are unfit for reading: no lower case, torn or hair-thin letters."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


FONT_PACKAGES: tuple[FontPackage, ...] = (
    FontPackage(
        name="trdg",
        version="1.8.0",
        sha256="0283e855bd6713a05bd0c798bbb5486c793186ce6f149bf21e09af6c797d1dde",
        skip=("SourceHanSans-Normal", "TakaoMincho"),
    ),
)


def default_cache_dir() -> Path:
    """`$VL2_CACHE/fonts`, or `~/.cache/vl2/fonts`."""
    return Path(os.environ.get("VL2_CACHE") or Path.home() / ".cache" / "vl2") / "fonts"


def fetch_fonts(cache_dir: Path | None = None) -> list[Path]:
    """Paths of all usable fonts, downloading the packages that are not in the cache yet.

    Args:
        cache_dir: where fonts are kept; `default_cache_dir()` when None.

    Raises:
        RuntimeError: a package cannot be downloaded or is not the pinned file.
    """
    root = default_cache_dir() if cache_dir is None else cache_dir
    paths = [path for package in FONT_PACKAGES for path in _package_fonts(package, root)]
    return sorted(paths, key=lambda path: path.name)


def font_split(paths: Iterable[Path], split: str) -> list[Path]:
    """The fonts of one split, "train" or "heldout"; a family is never in both.

    The choice depends on the family's name alone, so that adding fonts moves none.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}; use 'train' or 'heldout'")
    return [path for path in paths if is_heldout(family(path)) == (split == "heldout")]


def family(path: Path) -> str:
    """The family of a font file: its first word, so that close relatives stay together."""
    match = re.match(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^_\W]+", path.stem)
    return (match.group() if match else path.stem).lower()


def is_heldout(family_name: str) -> bool:
    """Whether fonts of this family are kept for evaluation only."""
    digest = hashlib.sha256(f"vl2 font {family_name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_SHARE


def by_family(paths: Iterable[Path]) -> tuple[tuple[Path, ...], ...]:
    """The fonts grouped by family, in a fixed order."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda path: path.name):
        groups.setdefault(family(path), []).append(path)
    return tuple(tuple(group) for group in groups.values())


@lru_cache(maxsize=4096)
def load_font(path: Path | None, size: int) -> Font:
    """The font file at `size` pixels per em, or Pillow's built-in font when `path` is None."""
    if path is not None:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install a wheel from PyPI")
    return font


@lru_cache(maxsize=4096)
def capital_height(path: Path | None) -> float:
    """Height of a capital H as a fraction of the font size."""
    _, top, _, bottom = load_font(path, 200).getbbox("H")
    return (bottom - top) / 200


def _package_fonts(package: FontPackage, root: Path) -> list[Path]:
    folder = root / f"{package.name}-{package.version}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = _download(package, folder)
        _unzip_fonts(wheel, folder)
        wheel.unlink()
        (folder / "complete").touch()
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in FONT_SUFFIXES and path.stem not in package.skip
    ]


def _download(package: FontPackage, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    result = subprocess.run(
        [*command, package.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError(
            f"pip could not download {package.requirement} (fonts): "
            f"{errors[-1] if errors else 'no wheel came'}; check the network or pip's index"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        wheels[0].unlink()
        raise RuntimeError(
            f"{package.requirement} has sha256 {digest}, expected {package.sha256}; "
            "the index serves another file than the pinned one, so it was not used"
        )
    return wheels[0]


def _unzip_fonts(wheel: Path, folder: Path) -> None:
    """Write each font file of the archive into `folder` under its bare, checked name."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = re.split(r"[/\\]", entry.filename)[-1]
            plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.,\[\]-]*", name)
            if plain and name.lower().endswith(FONT_SUFFIXES):
                (folder / name).write_bytes(archive.read(entry))
