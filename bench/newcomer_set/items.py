"""The items of the set: 25 pictures of each of twelve kinds, each with its questions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from PIL import Image

from newcomer_set.asking import Question
from newcomer_set.charts import chart
from newcomer_set.fonts import Fonts
from newcomer_set.objects import objects
from newcomer_set.pages import page
from newcomer_set.papers import form, receipt
from newcomer_set.prose import paragraph
from newcomer_set.screens import screen
from newcomer_set.shapes import shapes
from newcomer_set.sheet import Sheet, photographed
from newcomer_set.short import line, word
from newcomer_set.signs import sign
from newcomer_set.tables import table

SEED = 20261130
EACH = 25
KINDS: dict[str, Callable[[int, random.Random, Fonts], tuple[Sheet, list[Question]]]] = {
    "word": word, "line": line, "paragraph": paragraph, "page": page, "receipt": receipt,
    "form": form, "table": table, "chart": chart, "screen": screen, "shapes": shapes,
    "sign": sign, "object": objects,
}  # fmt: skip
PHOTOGRAPHED = {"line", "paragraph", "page", "receipt", "form", "table", "sign"}
"""Kinds of which every sixth picture looks like a photograph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A picture with its questions; boxes are in its pixels."""

    name: str
    kind: str
    picture: Image.Image
    questions: tuple[Question, ...]

    def told(self) -> dict:
        """The item's line in items.jsonl."""
        return {
            "picture": f"pictures/{self.name}.png",
            "kind": self.kind,
            "size": list(self.picture.size),
            "questions": [asdict(question) for question in self.questions],
        }


def item(kind: str, number: int, fonts: Fonts) -> Item:
    """Draw picture `number` (from 0) of a kind: the same one at each call."""
    rng = random.Random(f"{SEED} {kind} {number}")
    sheet, drawn = KINDS[kind](number, rng, fonts)
    asked = list({question.ask: question for question in drawn}.values())
    picture = sheet.picture()
    if kind in PHOTOGRAPHED and number % 6 == 5:
        picture, moved = photographed(picture, rng)
        asked = [
            replace(question, answers=tuple(moved(box) for box in question.answers))  # pyright: ignore[reportArgumentType]
            if question.rule == "boxes"
            else question
            for question in asked
        ]
    return Item(name=f"{kind}-{number:02d}", kind=kind, picture=picture, questions=tuple(asked))
