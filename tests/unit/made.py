"""Material for makers that needs no package: Pillow's own font and a few texts."""

from __future__ import annotations

from vl2.data.make.fonts import Face, Split
from vl2.data.make.texts import Texts
from vl2.data.make.world import World

TEXT = (
    "The old library keeps many letters. Its first keeper wrote a list of 240 names, and nobody "
    "has read all of them since. In summer the rooms are cool, so that people come to sit there."
)


ENDS, JOBS = ("ton", "field", "by", "ham"), ("pilot", "baker", "judge", "cook")


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
    )
    return World(split=split, print_faces=((face,),), hand_faces=((face,),), texts=texts)
