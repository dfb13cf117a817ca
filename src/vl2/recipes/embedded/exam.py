"""What the embedded model can do, by skill: questions about pictures of the held-out split.

Fonts, layouts, texts and backgrounds of these pictures are in no training picture. Each question
is asked alone; at most one of a picture counts for a skill, so that items are independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import numpy as np

from vl2.data.make.kinds import KINDS
from vl2.data.make.sample import Ask, Made, plain
from vl2.data.make.world import World
from vl2.engine.config import Completion, SamplingParams
from vl2.engine.engine import Engine
from vl2.processing.inputs import ModelInputs
from vl2.recipes.embedded.answers import turns, written
from vl2.recipes.embedded.scores import Figures, score, words

Judge = Callable[[Ask, Made], bool]
MOST_DRAWN = 60
"""Pictures that are drawn for each item that is wanted, before a skill stays short of items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skill:
    """A line of the table.

    Attributes:
        kinds: kinds of pictures, in turn.
        asked: skills of the questions that count.
        figure: which of the figures of `score` is reported.
        aim: what the figure should reach; for "cer" at most so much. None: it is reported alone.
        floor: what it has to reach.
        most_tokens: of an answer.
        counts: which questions count, if not all that are asked.
        balanced: "Yes" and "No" are right equally often.
    """

    kinds: Sequence[str]
    asked: Sequence[str]
    figure: Literal["right", "cer", "f1", "teds", "precision", "recall"] = "right"
    aim: float | None = None
    floor: float | None = None
    most_tokens: int = 64
    counts: Judge = field(default=lambda _ask, _made: True)
    balanced: bool = False

    def wants(self, ask: Ask, made: Made, found: int) -> bool:
        """Whether a question about a picture counts, when `found` were taken before."""
        if self.balanced and plain(ask.answer) != ("Yes", "No")[found % 2]:
            return False
        return ask.skill in self.asked and self.counts(ask, made)


def _one_line(ask: Ask, made: Made) -> bool:
    """One line of 20 to 40 characters."""
    return len(made.of("line")) == 1 and 20 <= len(plain(ask.answer)) <= 40


def _at_most_60(ask: Ask, _: Made) -> bool:
    return len(plain(ask.answer)) <= 60


def _short(ask: Ask, made: Made) -> bool:
    return len(made.of("line")) == 1 and len(plain(ask.answer)) <= 20


def _up_to_five(ask: Ask, _: Made) -> bool:
    return plain(ask.answer) in {"0", "1", "2", "3", "4", "5"}


YES_OR_NO = (
    *("shape.there", "shape.relation", "screen.has", "screen.state", "chart.compare"),
    *("thing.there", "thing.relation", "thing.animal", "scene.there", "sign.there"),
)
LOCATED = ("word", "line", "screen", "shape", "table", "thing", "sign", "diagram", "plan")
DESCRIBED = ("shape.describe", "thing.describe")
SKILLS: Mapping[str, Skill] = {
    "word": Skill(kinds=("words",), asked=("word.read",), counts=_short, aim=0.92, floor=0.8),
    "line": Skill(kinds=("lines",), asked=("line.read",), counts=_one_line, aim=0.7, floor=0.5),
    "line errors": Skill(
        kinds=("lines",),
        asked=("line.read",),
        counts=_one_line,
        figure="cer",
        aim=0.015,
        floor=0.03,
    ),
    "line of a PDF": Skill(
        kinds=("pdfs",), asked=("pdf_line.read",), counts=_at_most_60, aim=0.45, floor=0.25
    ),
    "line of a PDF, errors": Skill(
        kinds=("pdfs",),
        asked=("pdf_line.read",),
        counts=_at_most_60,
        figure="cer",
        aim=0.03,
        floor=0.06,
    ),
    "block errors": Skill(
        kinds=("blocks",),
        asked=("block.read",),
        figure="cer",
        aim=0.06,
        floor=0.12,
        most_tokens=512,
    ),
    "lines of a page": Skill(
        kinds=("pages",), asked=("page.lines",), figure="f1", aim=0.8, floor=0.6, most_tokens=1024
    ),
    "field": Skill(kinds=("papers",), asked=("field.value", "field.absent"), aim=0.8, floor=0.65),
    "table": Skill(
        kinds=("tables",),
        asked=("table.markdown",),
        figure="teds",
        aim=0.75,
        floor=0.6,
        most_tokens=1024,
    ),
    "cell": Skill(kinds=("tables",), asked=("table.cell", "table.at"), aim=0.75, floor=0.6),
    "rows and columns": Skill(
        kinds=("tables",), asked=("table.rows", "table.columns"), aim=0.85, floor=0.75
    ),
    "chart value": Skill(kinds=("charts",), asked=("chart.value",), aim=0.75, floor=0.6),
    "chart extremes": Skill(
        kinds=("charts",), asked=("chart.largest", "chart.smallest"), aim=0.85, floor=0.75
    ),
    "chart count": Skill(kinds=("charts",), asked=("chart.count",), aim=0.9, floor=0.8),
    "dialog": Skill(
        kinds=("screens",),
        asked=("screen.message", "screen.buttons", "screen.title"),
        aim=0.8,
        floor=0.65,
    ),
    "locate": Skill(
        kinds=(
            *("words", "lines", "screens", "shapes", "tables"),
            *("things", "signs", "diagrams", "plans"),
        ),
        asked=tuple(f"{name}.locate" for name in LOCATED),
        figure="f1",
        aim=0.75,
        floor=0.6,
    ),
    "colour, shape, position": Skill(
        kinds=("shapes",), asked=("shape.colour", "shape.name", "shape.place"), aim=0.98, floor=0.97
    ),
    "count": Skill(
        kinds=("shapes",), asked=("shape.count",), counts=_up_to_five, aim=0.88, floor=0.8
    ),
    "yes or no": Skill(
        kinds=("shapes", "screens", "charts", "things", "scenes", "signs"),
        asked=YES_OR_NO,
        balanced=True,
        aim=0.88,
        floor=0.8,
    ),
    "description, true": Skill(
        kinds=("shapes", "things"), asked=DESCRIBED, figure="precision", aim=0.8, floor=0.7
    ),
    "description, stated": Skill(
        kinds=("shapes", "things"), asked=DESCRIBED, figure="recall", aim=0.6, floor=0.45
    ),
    "thing": Skill(kinds=("things",), asked=("thing.name",)),
    "unknown thing": Skill(kinds=("things",), asked=("thing.unknown",)),
    "handwriting errors": Skill(
        kinds=("notes",), asked=("hand.read",), figure="cer", most_tokens=512
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question about one picture."""

    made: Made
    ask: Ask

    @property
    def truth(self) -> str:
        """The true answer as the model writes it."""
        return written(self.ask.answer, self.made.image.size)

    def inputs(self, engine: Engine) -> ModelInputs:
        """The question alone; on the trusted path, because it may name a thing or a place."""
        asked = [
            {**turn, "content": turn["content"] * (turn["role"] == "<|User|>")}
            for turn in turns(self.ask, self.made.image.size)
        ]
        return engine.processor.from_conversation(asked, [self.made.image])


def draw_items(skill: Skill, count: int, seed: int, world: World) -> list[Item]:
    """Up to `count` items; the same arguments give the same items."""
    rng = np.random.default_rng(seed)
    found: list[Item] = []
    for kind in itertools.islice(itertools.cycle(skill.kinds), MOST_DRAWN * count):
        made = KINDS[kind](rng, world)
        fit = [one for one in made.asks if skill.wants(one, made, len(found))]
        if fit:
            found.append(Item(made=made, ask=fit[int(rng.integers(len(fit)))]))
        if len(found) == count:
            break
    return found


def examine(engine: Engine, skill: Skill, items: Sequence[Item]) -> dict[str, float]:
    """The skill's figure, how sure the model was, and whether that tells right from wrong."""
    params = SamplingParams(max_tokens=skill.most_tokens)
    done = engine.generate([item.inputs(engine) for item in items], params)
    figures = [judge(item, answer.text) for item, answer in zip(items, done, strict=True)]
    right = [one["right"] == 1.0 for one in figures]
    sure = [certainty(answer) for answer in done]
    return {
        "n": len(items),
        skill.figure: fmean(one.get(skill.figure, one["right"]) for one in figures),
        "right": fmean(right),
        "certainty": fmean(sure),
        "auroc": auroc(sure, right),
    }


def judge(item: Item, answer: str) -> Figures:
    """Figures of an answer; a field counts by its value, wherever its place was shown."""
    figures = score(item.ask.skill, item.truth, answer, item.made.image.size)
    if item.ask.skill.startswith("field."):
        figures["right"] = figures.get("named", figures["right"])
    return figures


def certainty(answer: Completion) -> float:
    """Mean probability of the answer's tokens."""
    return fmean(map(math.exp, answer.logprobs)) if answer.logprobs else 0.0


def auroc(sure: Sequence[float], right: Sequence[bool]) -> float:
    """Chance that a right answer is surer than a wrong one; NaN where all are right, or none is."""
    good, bad = (
        [s for s, r in zip(sure, right, strict=True) if r is kind] for kind in (True, False)
    )
    pairs = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    return fmean(pairs) if pairs else math.nan


def majority(items: Iterable[Item]) -> float:
    """Share that is right when the commonest answer is always given."""
    truths = [words(item.truth) for item in items]
    return max(map(truths.count, truths)) / len(truths)
