"""Material for makers that needs no package: Pillow's own font and a few texts."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache, partial
from pathlib import Path

from PIL import Image
from tests.unit.pdf_files import PdfPage, pdf_of, show

from vl2.data.make.drawings import Drawing, Drawings, Thing
from vl2.data.make.fonts import Face, Split
from vl2.data.make.pdf_pages import Document
from vl2.data.make.shapes import draw_shape
from vl2.data.make.texts import Texts
from vl2.data.make.world import World

TEXT = (
    "The old library keeps many letters. Its first keeper wrote a list of 240 names, and nobody "
    "has read all of them since. In summer the rooms are cool, so that people come to sit there."
)


THINGS = {  # name: shape, group, what several are called
    "dog": ("heart", "animal", ""),
    "mouse": ("ellipse", "animal", "mice"),
    "apple": ("circle", "food", ""),
    "scissors": ("cross", "object", "-"),
    "battery": ("rectangle", "object", ""),
    "man": ("star", "person", "men"),
    "sun": ("ring", "sky", ""),
    "bus": ("hexagon", "vehicle", ""),
}
ENDS, JOBS = ("ton", "field", "by", "ham"), ("pilot", "baker", "judge", "cook")


LINES = (
    *("The old library keeps many letters, and", "a list of 240 names from its first keeper."),
    *("Nobody has read all of them since, but", "people come to sit there (in summer)."),
    *("- Prices: $3.50, or 20% less on Monday", "Mail: jug.quist@up.org"),
)


def small_pdf() -> bytes:
    """Two pages with the lines of `LINES`."""
    lines = [show(text, 40, 300 - 18 * n) for n, text in enumerate(LINES)]
    large = [show(text, 20, 500 - 32 * n, 18, font=1) for n, text in enumerate(LINES)]
    return pdf_of(
        [
            PdfPage(content="".join(lines), box=(0, 0, 320, 360)),
            PdfPage(content="".join(large), box=(0, 0, 420, 600), crop=(10, 200, 400, 560)),
        ]
    )


def small_world(split: Split = "train") -> World:
    """What makers draw from in tests."""
    face = Face(path="", family="built-in", cap_height=0.7)
    texts = Texts(
        words=("house", "river", "quick", "yellow", "paper", "jug"),
        sentences=tuple(f"{part}." for part in TEXT.strip(".").split(". ")),
        paragraphs=(TEXT,),
        first_names=("Ada", "Ben", "Cleo", "Dan", "Eve"),
        last_names=("Young", "Quist", "Jagger", "Lopez"),
        places=tuple(f"{name}{end}" for name in ("Up", "Glay", "Norf") for end in ENDS),
        jobs=tuple(f"{name} {job}" for name in ("Head", "Chief", "Vice") for job in JOBS),
        nouns=("bread", "apples", "soap", "grey paint", "jam", "tea", "glue", "salt", "rice"),
        goods=("milk", "socks", "green tea", "paint", "oranges", "day pass", "eggs", "oil", "pen"),
    )
    return World(
        split=split,
        print_faces=((face,),),
        hand_faces=((face,),),
        texts=texts,
        documents=lambda: (Document(source=small_pdf(), pages=(1, 2)),),
        drawings=partial(small_drawings, split),
    )


@cache
def small_drawings(split: Split) -> Drawings:
    """Shapes instead of drawings of things; those of the two splits have different colours."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    colour = "red" if split == "train" else "blue"

    def drawing(name: str, shape: str, *, ink: bool) -> Drawing:
        mask = draw_shape(shape, 90, 0.0)
        image = Image.new("RGBA", mask.size, "black" if ink else colour)
        image.putalpha(mask)
        path = Path(folder.name) / f"{name}-{ink}.png"
        image.crop(mask.getbbox()).save(path)
        return Drawing(path=str(path), colour="" if ink else colour, ink=ink)

    things = []
    for name, (shape, group, many) in THINGS.items():
        drawn = tuple(drawing(name, shape, ink=ink) for ink in (False, True))
        things.append(Thing(name=name, group=group, kin=name, many=many, drawings=drawn))
    return Drawings(things=tuple(things), unknown=(drawing("odd", "crescent", ink=False),))
