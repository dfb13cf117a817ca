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

Figure = Literal["right", "cer", "f1", "teds", "precision", "recall"]
Judge = Callable[[Ask, Made], bool]
MOST_DRAWN = 60
"""Pictures that are drawn for each item that is wanted, before a skill stays short of items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skill:
    """A line of the table.

    Attributes:
        kinds: kinds of pictures, in turn.
        asked: skills of the questions that count.
        aims: what figures of `score` should reach, and have to reach; "cer" at most so much. Those
            of None are reported alone.
        most_tokens: of an answer.
        counts: which questions count, if not all that are asked.
        balanced: "Yes" and "No" are right equally often.
    """

    kinds: Sequence[str]
    asked: Sequence[str]
    aims: Mapping[Figure, tuple[float, float] | None]
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
SKILLS: Mapping[str, Skill] = {
    "word": Skill(
        kinds=("words",), asked=("word.read",), counts=_short, aims={"right": (0.92, 0.8)}
    ),
    "line": Skill(
        kinds=("lines",),
        asked=("line.read",),
        counts=_one_line,
        aims={"right": (0.7, 0.5), "cer": (0.015, 0.03)},
    ),
    "line of a PDF": Skill(
        kinds=("pdfs",),
        asked=("pdf_line.read",),
        counts=_at_most_60,
        aims={"right": (0.45, 0.25), "cer": (0.03, 0.06)},
    ),
    "block": Skill(
        kinds=("blocks",), asked=("block.read",), aims={"cer": (0.06, 0.12)}, most_tokens=512
    ),
    "lines of a page": Skill(
        kinds=("pages",), asked=("page.lines",), aims={"f1": (0.8, 0.6)}, most_tokens=1024
    ),
    "field": Skill(
        kinds=("papers",), asked=("field.value", "field.absent"), aims={"right": (0.8, 0.65)}
    ),
    "table": Skill(
        kinds=("tables",), asked=("table.markdown",), aims={"teds": (0.75, 0.6)}, most_tokens=1024
    ),
    "cell": Skill(kinds=("tables",), asked=("table.cell", "table.at"), aims={"right": (0.75, 0.6)}),
    "rows and columns": Skill(
        kinds=("tables",), asked=("table.rows", "table.columns"), aims={"right": (0.85, 0.75)}
    ),
    "chart value": Skill(kinds=("charts",), asked=("chart.value",), aims={"right": (0.75, 0.6)}),
    "chart extremes": Skill(
        kinds=("charts",),
        asked=("chart.largest", "chart.smallest"),
        aims={"right": (0.85, 0.75)},
    ),
    "chart count": Skill(kinds=("charts",), asked=("chart.count",), aims={"right": (0.9, 0.8)}),
    "dialog": Skill(
        kinds=("screens",),
        asked=("screen.message", "screen.buttons", "screen.title"),
        aims={"right": (0.8, 0.65)},
    ),
    "locate": Skill(
        kinds=(
            *("words", "lines", "screens", "shapes", "tables"),
            *("things", "signs", "diagrams", "plans"),
        ),
        asked=tuple(f"{name}.locate" for name in LOCATED),
        aims={"f1": (0.75, 0.6)},
    ),
    "colour, shape, position": Skill(
        kinds=("shapes",),
        asked=("shape.colour", "shape.name", "shape.place"),
        aims={"right": (0.98, 0.97)},
    ),
    "count": Skill(
        kinds=("shapes",), asked=("shape.count",), counts=_up_to_five, aims={"right": (0.88, 0.8)}
    ),
    "yes or no": Skill(
        kinds=("shapes", "screens", "charts", "things", "scenes", "signs"),
        asked=YES_OR_NO,
        balanced=True,
        aims={"right": (0.88, 0.8)},
    ),
    "description": Skill(
        kinds=("shapes", "things"),
        asked=("shape.describe", "thing.describe"),
        aims={"precision": (0.8, 0.7), "recall": (0.6, 0.45)},
    ),
    "thing": Skill(kinds=("things",), asked=("thing.name",), aims={"right": None}),
    "unknown thing": Skill(kinds=("things",), asked=("thing.unknown",), aims={"right": None}),
    "handwriting": Skill(
        kinds=("notes",), asked=("hand.read",), aims={"cer": None}, most_tokens=512
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
        question, answer = turns(self.ask, self.made.image.size)
        asked = [question, {**answer, "content": ""}]
        return engine.processor.from_conversation(asked, [self.made.image])

    def judge(self, answer: str) -> Figures:
        """Figures of an answer."""
        return score(self.ask.skill, self.truth, answer, self.made.image.size)


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
    """The skill's figures, how sure the model was, and whether that tells right from wrong.

    Beside them stands what always giving the commonest answer would reach.
    """
    params = SamplingParams(max_tokens=skill.most_tokens)
    done = engine.generate([item.inputs(engine) for item in items], params)
    figures = [item.judge(answer.text) for item, answer in zip(items, done, strict=True)]
    right = [one["right"] == 1.0 for one in figures]
    sure = [certainty(answer) for answer in done]
    return {
        "n": len(items),
        "right": fmean(right),
        **{name: fmean(one.get(name, one["right"]) for one in figures) for name in skill.aims},
        "majority": majority(items),
        "certainty": fmean(sure),
        "auroc": auroc(sure, right),
    }


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
