"""The numbers of charts, and what people ask about them, however they are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vl2.data.make.chance import chance, integer, phrase, pick, some
from vl2.data.make.reading import different
from vl2.data.make.sample import Ask, Spot, ask
from vl2.data.make.texts import DAYS, MONTHS
from vl2.data.make.world import World
from vl2.geometry import PixelBox

NOUN = {"bars": "bar", "rows": "bar", "line": "point", "pie": "slice", "scatter": "point"}
VALUE = (
    "What is the value of {name}?",
    "How [much|many|large|high] is {name}?",
    "What [value|number] does {name} have?",
    "{name}?",
)
LARGEST = (
    "Which {noun} is [the|] [largest|biggest|highest]?",
    "[What|Which] has the [highest|largest] value?",
    "Which is the [biggest|tallest|largest]?",
)
SMALLEST = (
    "Which {noun} is [the|] [smallest|lowest]?",
    "[What|Which] has the [lowest|smallest] value?",
)
COUNT = (
    "How many {noun}s are there?",
    "[Count|Number of] {noun}s[.|?]",
    "How many {noun}s does the chart [have|show]?",
)
TITLE = (
    "What is the title[ of the chart|]?",
    "What is the chart about?",
    "What does the chart show?",
)
KIND = ("What kind of chart is [this|it|shown]?", "Which type of chart is this?")
NAMES = ("[Which|What] categories are shown?", "[List|Name] the [labels|categories].")
COMPARE = ("Is {a} [larger|higher|more] than {b}?", "Is {a} above {b}?")
TREND = ("[Does the line|Do the values] rise or fall from {a} to {b}?",)
TABLE = ("[Give|Write] the [data|values|chart] as a [Markdown table|table].", "Chart to table.")
WHERE = ("Where is the {noun} [of|for] {name}?", "Locate the {noun} [of|for] {name}.")
ABSENT = "There is no {name} in the chart."
CELL = (
    "What is the value of {one} [in|for] {name}?",
    "How [much|many|high] is {one} [in|for|at] {name}?",
    "[Value of |]{one}, {name}?",
)
GROUPS = ("How many groups are there?", "How many categories are [shown|there]?")
LEGEND = ("[What|Which] [series|names] are in the legend?", "[List|Name] the legend[ entries|].")
LEGENDS = ("How many [series|colours|entries of the legend] are there?",)
BEST = ("[Where|In which group] is {one} highest?", "For which group is {one} [largest|highest]?")
BETTER = ("Is {a} [larger|higher|more] than {b} [in|for|at] {name}?",)
PLACED = ("Where is the {noun} of {one} [for|at] {name}?", "Locate {one} [for|at] {name}.")
UNITS = ("", "", "", "%", "k", " kg", " EUR")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Names with whole values."""

    form: str  # "bars", "rows", "line", "pie" or "scatter"
    title: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    unit: str = ""

    def shown(self, n: int) -> str:
        """A value as it is written."""
        return f"{self.values[n]}{self.unit}"


def random_series(rng: np.random.Generator, world: World, form: str) -> Series:
    """Names of one kind, and values of which none are hard to tell apart."""
    count = integer(rng, 3, 6) if form == "pie" else integer(rng, 2, 8)
    kinds = (
        tuple(month[:3] for month in MONTHS),
        DAYS,
        tuple(str(year) for year in range(2010, 2031)),
        ("Q1", "Q2", "Q3", "Q4"),
        tuple(f"Group {letter}" for letter in "ABCDEFGH"),
    )
    if form == "scatter":
        names = tuple("ABCDEFGH"[:count])
    elif form == "line" or chance(rng, 0.4):
        row = pick(rng, [kind for kind in kinds if len(kind) >= count])
        start = int(rng.integers(len(row) - count + 1))
        names = tuple(row[start : start + count])
    else:
        source = pick(rng, (world.texts.nouns, world.texts.places, world.texts.first_names))
        short = [pick(rng, source) for _ in range(40)]
        names = tuple(
            some(rng, sorted({n[:1].upper() + n[1:] for n in short if len(n) <= 12}), count)
        )
    top = pick(rng, (10, 50, 100, 100, 500, 1000))
    step = max(1, top // 20)
    values = [step * int(v) for v in rng.permutation(np.arange(1, 21))[: len(names)]]
    if chance(rng, 0.5) and step > 2:
        values = [v + integer(rng, -step // 3, step // 3) for v in values]
    unit = pick(rng, UNITS)
    if form == "pie":
        values, unit = _shares(rng, len(names)), "%"
    title = world.texts.phrase(rng, 1, 4).strip(".,;:()\"'-!? ").capitalize()
    if not 0 < len(title) <= 36:
        title = pick(rng, world.texts.nouns).capitalize()
    return Series(form=form, title=title, names=names, values=tuple(values), unit=unit)


def _shares(rng: np.random.Generator, count: int) -> list[int]:
    """Different whole percentages of at least 4 that make 100."""
    while True:
        cuts = np.sort(rng.permutation(np.arange(4, 97))[: count - 1])
        parts = np.diff([0, *cuts.tolist(), 100])
        if parts.min() >= 4 and len(set(parts.tolist())) == count:
            return parts.tolist()


def scale(values: tuple[int, ...]) -> tuple[int, int]:
    """The end of the value axis and the distance of its ticks."""
    rough = max(values) / 5
    power = 10 ** math.floor(math.log10(max(rough, 1)))
    step = next(int(s * power) for s in (1, 2, 5, 10) if s * power >= rough)
    return step * math.ceil(max(values) / step), max(1, step)


def series_asks(
    rng: np.random.Generator, world: World, series: Series, things: dict[str, PixelBox]
) -> list[Ask]:
    """Values, extremes, counts, comparisons, the table, places, and a name that is not there."""
    noun, names, values = NOUN[series.form], series.names, series.values
    n = integer(rng, 0, len(names) - 1)
    largest, smallest = names[int(np.argmax(values))], names[int(np.argmin(values))]
    one, two = some(rng, names, 2)
    more = "Yes" if values[names.index(one)] > values[names.index(two)] else "No"
    rows = "\n".join(f"| {name} | {series.shown(k)} |" for k, name in enumerate(names))
    asks = [
        ask("chart.value", phrase(rng, pick(rng, VALUE), name=names[n]), series.shown(n)),
        ask("chart.largest", phrase(rng, pick(rng, LARGEST), noun=noun), largest),
        ask("chart.smallest", phrase(rng, pick(rng, SMALLEST), noun=noun), smallest),
        ask("chart.count", phrase(rng, pick(rng, COUNT), noun=noun), str(len(names))),
        ask("chart.title", phrase(rng, pick(rng, TITLE)), series.title),
        ask("chart.names", phrase(rng, pick(rng, NAMES)), ", ".join(names)),
        ask("chart.compare", phrase(rng, pick(rng, COMPARE), a=one, b=two), more),
        ask("chart.kind", phrase(rng, pick(rng, KIND)), _kind(series.form)),
        ask(
            "chart.table", phrase(rng, pick(rng, TABLE)), f"| Name | Value |\n| --- | --- |\n{rows}"
        ),
    ]
    absent = pick(rng, world.texts.nouns).capitalize()
    if chance(rng, 0.3) and absent not in names:
        question = phrase(rng, pick(rng, VALUE[:3]), name=absent)
        asks.append(ask("chart.absent", question, ABSENT.format(name=absent)))
    if names[n] in things:
        question = phrase(rng, pick(rng, WHERE), noun=noun, name=names[n])
        asks.append(
            ask("chart.locate", question, (Spot(label=names[n], boxes=(things[names[n]],)),))
        )
    if series.form == "line":
        a, b = sorted(some(rng, range(len(names)), 2))
        way = "They rise." if values[b] > values[a] else "They fall."
        asks.append(ask("chart.trend", phrase(rng, pick(rng, TREND), a=names[a], b=names[b]), way))
    if series.form == "scatter":  # a point has two values
        asks = [a for a in asks if a.skill not in ("chart.value", "chart.table", "chart.absent")]
    return different(rng, asks, 6)


def _kind(form: str) -> str:
    return {
        "bars": "A bar chart.",
        "rows": "A bar chart.",
        "line": "A line chart.",
        "pie": "A pie chart.",
        "scatter": "A scatter plot.",
        "grouped": "A grouped bar chart.",
        "stacked": "A stacked bar chart.",
        "lines": "A line chart.",
    }[form]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Several series over the same names."""

    form: str  # "grouped", "stacked" or "lines"
    title: str
    names: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]  # by series, then by name

    def markdown(self) -> str:
        """All values, a row for each name."""
        lines = [("Name", *self.series), ("---",) * (1 + len(self.series))]
        columns = [[str(v) for v in row] for row in self.values]
        lines += zip(self.names, *columns, strict=True)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def random_table(rng: np.random.Generator, world: World, form: str) -> Table:
    """Two to four series of two to five values, which differ by at least a step."""
    first = random_series(rng, world, "line")
    names = first.names[: integer(rng, 2, 5)]
    years = tuple(str(year) for year in range(2018, 2027))
    kinds = (("Men", "Women"), ("North", "South", "East", "West"), years, ("Plan", "Actual"))
    series = pick(rng, [kind for kind in kinds if not set(kind) & set(names)])
    if chance(rng, 0.4):
        short = {pick(rng, world.texts.nouns).capitalize() for _ in range(30)}
        series = tuple(some(rng, sorted(n for n in short if len(n) <= 10), 4))
    series = series[: integer(rng, 2, 4)]
    step = pick(rng, (1, 2, 5, 10, 50))
    rows = [rng.permutation(np.arange(3, 21))[: len(names)].tolist() for _ in series]
    for column in range(len(names)):  # no two values of a group are alike
        while len({row[column] for row in rows}) < len(rows):
            for row in rows:
                row[:] = rng.permutation(np.arange(3, 21))[: len(names)].tolist()
    values = tuple(tuple(step * int(v) for v in row) for row in rows)
    return Table(form=form, title=first.title, names=names, series=series, values=values)


def table_asks(rng: np.random.Generator, table: Table, things: dict[str, PixelBox]) -> list[Ask]:
    """Values by series and name, extremes, counts, the legend, the table and places."""
    s, n = integer(rng, 0, len(table.series) - 1), integer(rng, 0, len(table.names) - 1)
    one, name = table.series[s], table.names[n]
    a, b = some(rng, range(len(table.series)), 2)
    more = "Yes" if table.values[a][n] > table.values[b][n] else "No"
    best = table.names[int(np.argmax(table.values[s]))]
    pair = {"a": table.series[a], "b": table.series[b]}
    cell = ask("chart.value", phrase(rng, pick(rng, CELL), one=one, name=name), _cell(table, s, n))
    asks = [
        *[cell] * 2,
        ask("chart.largest", phrase(rng, pick(rng, BEST), one=one), best),
        ask("chart.compare", phrase(rng, pick(rng, BETTER), name=name, **pair), more),
        ask("chart.count", phrase(rng, pick(rng, GROUPS)), str(len(table.names))),
        ask("chart.count", phrase(rng, pick(rng, LEGENDS)), str(len(table.series))),
        ask("chart.legend", phrase(rng, pick(rng, LEGEND)), ", ".join(table.series)),
        ask("chart.names", phrase(rng, pick(rng, NAMES)), ", ".join(table.names)),
        ask("chart.title", phrase(rng, pick(rng, TITLE)), table.title),
        ask("chart.kind", phrase(rng, pick(rng, KIND)), _kind(table.form)),
        ask("chart.table", phrase(rng, pick(rng, TABLE)), table.markdown()),
    ]
    if (placed := f"{one} {name}") in things:
        noun = "point" if table.form == "lines" else "bar"
        question = phrase(rng, pick(rng, PLACED), noun=noun, one=one, name=name)
        asks.append(ask("chart.locate", question, (Spot(label=placed, boxes=(things[placed],)),)))
    return different(rng, asks, 6)


def _cell(table: Table, series: int, name: int) -> str:
    return str(table.values[series][name])
