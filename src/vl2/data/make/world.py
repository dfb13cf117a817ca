"""What a split is made of: its fonts and texts, so that training and evaluation share none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from vl2.data.make.chance import pick
from vl2.data.make.drawings import Drawings, drawings
from vl2.data.make.fonts import SPLITS, Face, Split, faces
from vl2.data.make.pdf_pages import Document, documents
from vl2.data.make.texts import Texts, texts


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The material of one split."""

    split: Split
    print_faces: tuple[tuple[Face, ...], ...]  # by family
    hand_faces: tuple[tuple[Face, ...], ...]
    texts: Texts
    drawings: Callable[[], Drawings]  # fetched by those who draw them
    documents: Callable[[], tuple[Document, ...]]  # PDFs, which are fetched when they are needed

    def face(self, rng: np.random.Generator, *, hand: bool = False) -> Face:
        """A face to print with; every family is equally likely."""
        return pick(rng, pick(rng, self.hand_faces if hand else self.print_faces))

    def plain_face(self, rng: np.random.Generator) -> Face:
        """A printed face that tells capitals from small letters, as on documents and screens."""
        while (face := self.face(rng)).capitals_only:
            pass
        return face

    def style(self, options: dict[Split, tuple[str, ...]]) -> tuple[str, ...]:
        """The names of layouts or backgrounds that this split may use."""
        return options[self.split]


@lru_cache(maxsize=2)
def world(split: Split) -> World:
    """The material of a split, "train" or "heldout".

    Raises:
        ValueError: another split.
        OSError: a package cannot be fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: expected one of {', '.join(SPLITS)}")
    everything = faces(split)
    return World(
        split=split,
        print_faces=_by_family(face for face in everything if not face.hand),
        hand_faces=_by_family(face for face in everything if face.hand),
        texts=texts(split),
        drawings=partial(drawings, split),
        documents=partial(documents, split),
    )


def _by_family(found: Iterable[Face]) -> tuple[tuple[Face, ...], ...]:
    groups: dict[str, list[Face]] = {}
    for face in found:
        groups.setdefault(face.family, []).append(face)
    return tuple(tuple(group) for group in groups.values())
