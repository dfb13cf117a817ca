"""Pictures of text and shapes that are drawn when they are read: data without a file.

A row is a pure function of the kind and its number. Its questions are the turns of one
conversation.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vl2.data.config import SourceConfig
from vl2.data.records import PLACEHOLDER, Record, Turn
from vl2.data.synthetic import Question, Scene, SceneRecipe, ask, draw_scene, drill

SEED = 418_001
"""Far from the seeds of the embedded model's pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What is drawn, and what is asked about it."""

    recipe: SceneRecipe
    asker: Callable[[Scene, np.random.Generator], list[Question]]
    rows: int  # that are drawn unless the source says how many


_EASY = SceneRecipe(
    sizes=(((112, 112), 1.0),), min_cap_height=28.0, min_shape=26.0, max_shapes=3, augment=0.0
)
KINDS: dict[str, Kind] = {
    "easy": Kind(recipe=_EASY, asker=ask, rows=200),
    "drills": Kind(
        recipe=SceneRecipe(
            kinds=(("shapes", 0.6), ("count", 0.2), ("text", 0.2)),
            sizes=(((112, 112), 1.0),),
            min_cap_height=28.0,
            min_shape=26.0,
            min_shapes=2,
            max_shapes=4,
            augment=0.2,
        ),
        asker=drill,
        rows=2000,
    ),
}
"""Kinds by the name that `SourceConfig.path` gives."""


class SyntheticSource:
    """Drawn conversations, in Pillow's built-in font."""

    def __init__(self, config: SourceConfig) -> None:
        """Nothing is drawn yet.

        Raises:
            ValueError: an unknown kind.
        """
        if config.path not in KINDS:
            raise ValueError(
                f"synthetic path is {config.path!r}: expected a kind, one of {', '.join(KINDS)}"
            )
        self.kind = config.path
        self.name = config.name or f"synthetic {config.path}"
        self.rows = config.rows or KINDS[config.path].rows

    def __len__(self) -> int:
        """Rows that may be drawn."""
        return self.rows

    def __getitem__(self, row: int) -> Record:
        """Draw one row."""
        kind = KINDS[self.kind]
        rng = np.random.default_rng((SEED, row))
        scene = draw_scene(rng, recipe=kind.recipe)
        turns: list[Turn] = []
        for question in kind.asker(scene, rng):
            lead = "" if turns else f"{PLACEHOLDER}\n"
            turns.append(Turn(role="user", text=lead + question.text))
            turns.append(Turn(role="assistant", text=question.answer))
        return Record(
            id=f"{self.kind}#{row}",
            source=self.name,
            images=(_png(scene.image),),
            turns=tuple(turns),
        )

    def place(self, row: int) -> str:
        """Which row it is, from 1 on."""
        return f"{self.kind} row {row + 1}"

    def fingerprint(self) -> str:
        """What decides the rows: the kind, the seed, and the first picture as it is drawn here."""
        first = self[0]
        text = f"{self.kind}/{SEED}/{self.rows}/{first.turns}".encode()
        pictures = b"".join(image for image in first.images if isinstance(image, bytes))
        return hashlib.sha256(text + pictures).hexdigest()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
