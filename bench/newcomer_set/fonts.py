"""Free fonts from pinned Debian packages, none of which the training pictures use."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

PINS = {
    "fonts-allerta=2.01+dfsg1-4":
        "b7d113ac8820ce82ebfbc7a493f85702a082bbfba1641f517c5b0b99456dae37",
    "fonts-b612=1.008-3": "d05ca6b14314b488e07d795168095da1166b28216df1f4edc2ea0109fd2ce525",
    "fonts-cantarell=0.303.1-1": "8fdf5687d9e2ce70456664519025a6b48fbaaadbc5b1cfbf8b09f72c2dc5f09b",
    "fonts-clear-sans=1.00-2": "0684588e6a2b4a33ebeb032c8e4aa76c86d960ae6dc135e2ecc9ef90da83e7c1",
    "fonts-comic-neue=2.51-4": "6f002dc90d62fde01a2b51f333c09dc6c21ffbfc6ca22d05a84cc049b083c826",
    "fonts-courier-prime=0+git20190115-3":
        "6f827dd190446abbf83972f01e3f0db2c980e73bd6fb85b56d9d9a8f1755149f",
    "fonts-crosextra-caladea=20200211-1":
        "dd51af7629df5a2f3799f889cdf63d5abdda32e94e5de59398f728d98604a240",
    "fonts-go=0~20170330-1": "6d1f3b1ee1e3d5a25be14137a5c47a732d4c02f7282ea6babf697a002479aa88",
    "fonts-hack=3.003-3": "ee85559100f4657f7214f23462cf43100d233858f468e3efa0c0a8500f2b7382",
    "fonts-linuxlibertine=5.3.0-6":
        "5c77471e910189b3e4e2eda2b1c5f549ddcaf4de8f9640b97773643970d29087",
    "fonts-national-park=0.0~20220205-2":
        "27364a8f483c2bd1c5d9e239e20e00733d3db8a7f51424b88e4116fae5b958d3",
    "fonts-sil-andika=6.101-2": "c8bf1fa578f14feb3f6043ceba44095355eb385642f111e35623937e5c90d735",
    "fonts-sil-charis=6.101-1": "bc1a774ed29af7be47aea74b0afbcffb1e379c9e61e3f322ccf60c9325ff88af",
    "fonts-texgyre=20180621-6": "e7230e2dee0030c440ee841de04ef9254aa1fec73ccba93a3e1f637fa868a99a",
    "fonts-tomsontalks=1.1-9": "582a3a540696c8bbcf572c2e6c32d5c3e7ba6a156375b934bde9e9babec2908b",
}  # fmt: skip

FACES = {
    "sans": (
        ("ClearSans-Regular.ttf", "ClearSans-Bold.ttf"),
        ("Go-Regular.ttf", "Go-Bold.ttf"),
        ("B612-Regular.otf", "B612-Bold.otf"),
        ("Cantarell-Regular.otf", "Cantarell-Bold.otf"),
        ("Andika-Regular.ttf", "Andika-Bold.ttf"),
        ("texgyreheros-regular.otf", "texgyreheros-bold.otf"),
    ),
    "serif": (
        ("Caladea-Regular.ttf", "Caladea-Bold.ttf"),
        ("CharisSIL-Regular.ttf", "CharisSIL-Bold.ttf"),
        ("LinLibertine_R.otf", "LinLibertine_RB.otf"),
        ("texgyrepagella-regular.otf", "texgyrepagella-bold.otf"),
        ("texgyreschola-regular.otf", "texgyreschola-bold.otf"),
        ("texgyretermes-regular.otf", "texgyretermes-bold.otf"),
    ),
    "mono": (
        ("Go-Mono.ttf", "Go-Mono-Bold.ttf"),
        ("Hack-Regular.ttf", "Hack-Bold.ttf"),
        ("Courier Prime.otf", "Courier Prime Bold.otf"),
        ("texgyrecursor-regular.otf", "texgyrecursor-bold.otf"),
    ),
    "hand": (
        ("ComicNeue-Regular.otf", "ComicNeue-Bold.otf"),
        ("ComicNeue-Italic.otf", "ComicNeue-BoldItalic.otf"),
    ),
    "capitals": (("TomsonTalks.ttf", "TomsonTalks.ttf"),),
    "sign": (
        ("NationalPark-Regular.otf", "NationalPark-Heavy.otf"),
        ("texgyreheroscn-regular.otf", "texgyreheroscn-bold.otf"),
        ("texgyreadventor-regular.otf", "texgyreadventor-bold.otf"),
        ("allerta_medium.otf", "allerta_medium.otf"),
    ),
}
"""Style -> pairs of a plain and a bold file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """A plain and a bold file; without files, Pillow's own font."""

    plain: str | None = None
    strong: str | None = None

    def at(self, size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
        """The font in a size of pixels."""
        return _loaded(self.strong if bold else self.plain, max(6, round(size)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fonts:
    """All faces below a folder, or Pillow's own font where there is no folder."""

    folder: Path | None = None

    def pick(self, rng: random.Random, *styles: str) -> Face:
        """A face of one of the styles; the same draw from `rng` with or without a folder."""
        plain, strong = rng.choice([face for style in styles for face in FACES[style]])
        if self.folder is None:
            return Face()
        return Face(plain=str(self.folder / plain), strong=str(self.folder / strong))


@lru_cache(maxsize=512)
def _loaded(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    # the plain layout: the other one depends on the libraries of the machine
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def fetch(folder: Path) -> Fonts:
    """The pinned packages' font files, below `folder`; what is there already is not fetched again.

    Raises:
        ValueError: a package that cannot be had, or that is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name for faces in FACES.values() for pair in faces for name in pair}
    if all((folder / name).is_file() for name in wanted):
        return Fonts(folder=folder)
    lacking = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if lacking:
        raise ValueError(
            f"{lacking[0]} is not here: fetch the fonts on Debian, or use --plain-font"
        )
    for pin, digest in PINS.items():
        _unpack(_fetched(folder, pin, digest), folder, wanted)
    lacking = sorted(name for name in wanted if not (folder / name).is_file())
    if lacking:
        raise ValueError(f"font {lacking[0]} is in none of the pinned packages: mend PINS")
    return Fonts(folder=folder)


def _fetched(folder: Path, pin: str, digest: str) -> Path:
    package = pin.partition("=")[0]
    done = subprocess.run(
        ["apt-get", "download", pin], cwd=folder, capture_output=True, text=True, check=False
    )
    files = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode or not files:
        raise ValueError(f"package {pin} cannot be had: run apt-get update, or use --plain-font")
    if hashlib.sha256(files[-1].read_bytes()).hexdigest() != digest:
        files[-1].unlink()
        raise ValueError(f"package {files[-1].name} is not the pinned one: its sha256 differs")
    return files[-1]


def _unpack(package: Path, folder: Path, wanted: set[str]) -> None:
    rest = folder / package.stem
    subprocess.run(["dpkg-deb", "-x", str(package), str(rest)], check=True)
    for path in sorted(rest.rglob("*.[ot]tf")):
        if path.name in wanted:
            shutil.copyfile(path, folder / path.name)
    shutil.rmtree(rest)
    package.unlink()
