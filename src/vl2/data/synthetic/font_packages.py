"""Fonts fetched from pinned packages when training data is built; the repository keeps none."""

import hashlib
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vl2.folders import cache_folder

FONT_SUFFIXES = (".ttf", ".otf")


@dataclass(frozen=True, kw_only=True, slots=True)
class FontPackage:
    """A pure-Python wheel that carries font files."""

    name: str
    version: str
    sha256: str
    skip: tuple[str, ...] = ()
    """Starts of the names of files unfit for reading: hair-thin, torn, inlined or not Latin."""


FONT_PACKAGES: tuple[FontPackage, ...] = (
    FontPackage(
        name="trdg",
        version="1.8.0",
        sha256="0283e855bd6713a05bd0c798bbb5486c793186ce6f149bf21e09af6c797d1dde",
        skip=(
            *("SourceHanSans", "TakaoMincho", "Capture_it", "FFF_Tusj", "SEASRN", "Pacifico"),
            *("Lato-Hairline", "Lato-Thin", "Raleway-Thin", "Raleway-ExtraLight", "Roboto-Thin"),
            *("Walkway_Oblique.", "Walkway_SemiBold", "Walkway_Oblique_SemiBold"),
        ),
    ),
    FontPackage(
        name="font-caladea",
        version="0.0.2",
        sha256="eab5b77f1da830226524f419d16d4bc4cb5b68d2de0f47ef83760a8b202e94bc",
    ),
    FontPackage(
        name="font-source-serif-pro",
        version="0.0.1",
        sha256="38dd9a8d8027d22aa8ef2d10d27d7c558701b32772ff9f3790f509577e91dca4",
        skip=("SourceSerifPro-ExtraLight",),
    ),
    FontPackage(
        name="fontpkg-bitter",
        version="3.21",
        sha256="0a55a79b3bb239fab78e0ba3dac635d79271acac48dc20e5717e3b486badf428",
    ),
    FontPackage(
        name="fontpkg-caveat",
        version="2.0",
        sha256="fcab480da07243af667fd70098d54f34129f8e5c42c1bf5da5c5842b7c187c19",
    ),
    FontPackage(
        name="fontpkg-inconsolata",
        version="3.1",
        sha256="9428dd98d26739e511fc97032c22c35666f925a686119fc91c9540801bea67f1",
    ),
    FontPackage(
        name="fontpkg-indie-flower",
        version="2.0",
        sha256="30fd37149b5d91068e7614628b0f3d139d9fb880929d7e163d389691d778c21d",
    ),
    FontPackage(
        name="fontpkg-kalam",
        version="2.1",
        sha256="6effb7ee67f3b862de84524a705beb362777153da60c4417805c93b3548e147d",
    ),
    FontPackage(
        name="fontpkg-lora",
        version="3.8",
        sha256="b0d7761989bf25e4b5f23e2d5964bd896fcac2a7e2719a294c19fe5235552043",
    ),
    FontPackage(
        name="fontpkg-merriweather",
        version="2.100",
        sha256="61aefb10d743f23dc59c07a26c21f7ad0b181cc7e1ad304d6527df792bc4d7da",
    ),
    FontPackage(
        name="fontpkg-playfair-display",
        version="1.203",
        sha256="5941b14cc9742d6d93b8a163b4582b81761d1fd99fbe312ad2efb116f1d1106e",
    ),
    FontPackage(
        name="fontpkg-roboto-slab",
        version="2.2",
        sha256="48e15750db5677f21c23590e92d7889c40e104cd9bf9ab1f38b6432c2ae6d72c",
    ),
    FontPackage(
        name="fontpkg-shadows-into-light",
        version="1.0",
        sha256="342bece4a8f7f0e55de8162079804b0a50a31a95a4f220250318398a6775d2c2",
    ),
    FontPackage(
        name="fontpkg-space-mono",
        version="1.3",
        sha256="e3b106370fee08de2a63d87d5b8c24fb1bb0c474a3f0b3c95832c239e14e5c7a",
    ),
    FontPackage(
        name="reportlab",
        version="5.1.0",
        sha256="59fdbaec5efe437095ad1d7292ec9a271c8ca2d3ec75e889c6e61400929b90df",
        skip=("hb-test",),
    ),
)


def default_cache_dir() -> Path:
    """`$VL2_CACHE/fonts`, or `~/.cache/vl2/fonts`."""
    return cache_folder("fonts")


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


def _package_fonts(package: FontPackage, root: Path) -> list[Path]:
    """The usable fonts of one package; of a font in two formats the first."""
    folder = root / f"{package.name}-{package.version}"
    complete = folder / "complete"
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.whl"):
            leftover.unlink()
        wheel = _download(package, folder)
        unzip_fonts(wheel, folder)
        wheel.unlink()
        complete.touch()
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in FONT_SUFFIXES]
    usable = {path.stem: path for path in paths if not path.name.startswith(package.skip)}
    return list(usable.values())


def _download(package: FontPackage, folder: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    result = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.strip()]
        raise RuntimeError(
            f"pip could not download {requirement} for its fonts "
            f"({errors[-1].strip() if errors else 'no wheel came'}); check the network"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        wheels[0].unlink()
        raise RuntimeError(
            f"{requirement} has sha256 {digest}, expected {package.sha256}; "
            "the index serves another file than the pinned one, so it was not used"
        )
    return wheels[0]


def unzip_fonts(archive: Path, folder: Path) -> list[Path]:
    """Write the font files of a zip into `folder` under their bare, plain names, nothing else."""
    written = []
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.infolist():
            name = re.split(r"[/\\]", entry.filename)[-1]
            plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.,\[\]-]*", name)
            if plain and name.lower().endswith(FONT_SUFFIXES):
                (folder / name).write_bytes(entries.read(entry))
                written.append(folder / name)
    return written
