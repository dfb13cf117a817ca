"""Bar, line and pie charts with exact values, drawn with the axes and labels that people set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, phrase, pick, shuffled, some
from vl2.data.make.paper import any_colour, finish, ink, light_colour, luminance
from vl2.data.make.sample import Ask, Box, Made, Spot, ask
from vl2.data.make.sheet import Colour, Sheet, Style, fitting
from vl2.data.make.texts import DAYS, MONTHS
from vl2.data.make.world import World

FORMS = {
    "train": ("bars", "bars", "rows", "line", "pie"),
    "heldout": ("bars", "rows", "line", "pie"),
}
STYLES = {"train": ("grid", "plain", "values"), "heldout": ("ticks", "boxed")}
NOUN = {"bars": "bar", "rows": "bar", "line": "point", "pie": "slice"}
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
ABSENT = ("There is no {name} in the chart.",)
UNITS = ("", "", "", "%", "k", " kg", " EUR")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Names with whole values."""

    form: str  # "bars", "rows", "line" or "pie"
    title: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    unit: str = ""

    def shown(self, n: int) -> str:
        """A value as it is written."""
        return f"{self.values[n]}{self.unit}"


def make(rng: np.random.Generator, world: World) -> Made:
    """A chart of 2 to 8 values, 300 to 900 pixels wide."""
    series = random_series(rng, world, pick(rng, world.style(FORMS)))
    width = integer(rng, 300, 900)
    height = round(width * between(rng, 0.6, 1.0))
    paper = light_colour(rng) if chance(rng, 0.85) else (32, 34, 38)
    sheet = Sheet(Image.new("RGB", (width, height), paper))
    size = max(12, round(min(width, height) * between(rng, 0.03, 0.05)))
    style = Style(face=world.plain_face(rng), size=size, colour=ink(rng, paper, plain=True))
    top = _title(rng, sheet, series, style)
    look = pick(rng, world.style(STYLES))
    {"bars": _bars, "rows": _rows, "line": _line, "pie": _pie}[series.form](
        rng, sheet, series, style, top=top, look=look
    )
    image, marks = finish(rng, sheet, strength=0.8)
    things = {mark.text: mark.box for mark in marks if mark.kind == "thing"}
    facts = {
        "title": series.title,
        "names": series.names,
        "values": series.values,
        "form": series.form,
    }
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, series, things)), facts=facts)


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
    if form == "line" or chance(rng, 0.4):
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
    title = world.texts.phrase(rng, 1, 4).strip(".,;:()\"'").capitalize()
    return Series(form=form, title=title, names=names, values=tuple(values), unit=unit)


def _shares(rng: np.random.Generator, count: int) -> list[int]:
    """Different whole percentages of at least 4 that make 100."""
    while True:
        cuts = np.sort(rng.permutation(np.arange(4, 97))[: count - 1])
        parts = np.diff([0, *cuts.tolist(), 100])
        if parts.min() >= 4 and len(set(parts.tolist())) == count:
            return parts.tolist()


def _title(rng: np.random.Generator, sheet: Sheet, series: Series, style: Style) -> int:
    big = fitting(series.title, replace(style, size=round(style.size * 1.35)), sheet.size[0] * 0.9)
    x = (sheet.size[0] - big.width(series.title)) // 2 if chance(rng, 0.7) else style.size
    sheet.text(x, style.size // 2, series.title, big)
    return round(style.size * 2.6)


def _palette(rng: np.random.Generator, paper: Colour, count: int) -> list[Colour]:
    """Colours that stand out from the paper: one for all, or one each."""
    found: list[Colour] = []
    while len(found) < count:
        colour = any_colour(rng)
        if abs(luminance(colour) - luminance(paper)) > 0.22:
            found.append(colour)
    return found if chance(rng, 0.5) else found[:1] * count


def _scale(values: tuple[int, ...]) -> tuple[int, int]:
    """The end of the value axis and the distance of its ticks."""
    rough = max(values) / 5
    power = 10 ** math.floor(math.log10(max(rough, 1)))
    step = next(int(s * power) for s in (1, 2, 5, 10) if s * power >= rough)
    return step * math.ceil(max(values) / step), max(1, step)


def _bars(
    rng: np.random.Generator, sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> None:
    """Upright bars; values on an axis at the left, or above the bars."""
    width, height = sheet.size
    end, step = _scale(series.values)
    left = style.width(f"{end}{series.unit}") + 2 * style.size
    bottom, right = height - round(style.size * 2.4), width - style.size
    y_of = lambda value: bottom - (bottom - top) * value / end  # noqa: E731
    _axis(
        sheet,
        style,
        [(v, y_of(v)) for v in range(0, end + 1, step)],
        (left, right),
        series.unit,
        look,
    )
    slot = (right - left) / len(series.names)
    thick = slot * between(rng, 0.45, 0.8)
    colours = _palette(rng, _paper(sheet), len(series.names))
    for n, name in enumerate(series.names):
        middle = left + slot * (n + 0.5)
        box = (
            round(middle - thick / 2),
            round(y_of(series.values[n])),
            round(middle + thick / 2),
            bottom,
        )
        sheet.draw.rectangle(
            box, fill=colours[n], outline=style.colour if look == "boxed" else None
        )
        sheet.mark(name, box)
        _centred(
            sheet, fitting(name, style, slot * 0.96), name, (middle, bottom + style.size * 0.4)
        )
        if look == "values":
            text = series.shown(n)
            _centred(sheet, style, text, (middle, box[1] - style.size * 1.3))
    sheet.draw.line((left, bottom, right, bottom), fill=style.colour)


def _rows(
    rng: np.random.Generator, sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> None:
    """Lying bars with their names at the left and their values at the ends."""
    width, height = sheet.size
    end, _ = _scale(series.values)
    left = max(style.width(name) for name in series.names) + 2 * style.size
    right = width - style.width(f"{end}{series.unit}") - 2 * style.size
    slot = (height - top - style.size) / len(series.names)
    colours = _palette(rng, _paper(sheet), len(series.names))
    for n, name in enumerate(series.names):
        y, x = top + slot * (n + 0.5), left + max(2, (right - left) * series.values[n] / end)
        box = (left, round(y - slot * 0.33), round(x), round(y + slot * 0.33))
        sheet.draw.rectangle(
            box, fill=colours[n], outline=style.colour if look == "boxed" else None
        )
        sheet.mark(name, box)
        fit = fitting(
            name, replace(style, size=min(style.size, max(9, int(slot * 0.8)))), left - style.size
        )
        sheet.text(left - fit.width(name) - style.size // 2, y - fit.size * 0.6, name, fit)
        sheet.text(
            x + style.size // 2, y - fit.size * 0.6, series.shown(n), replace(style, size=fit.size)
        )
    sheet.draw.line((left, top, left, height - style.size), fill=style.colour)


def _line(
    rng: np.random.Generator, sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> None:
    """Points joined by a line over an axis with ticks."""
    width, height = sheet.size
    end, step = _scale(series.values)
    left = style.width(f"{end}{series.unit}") + 2 * style.size
    bottom, right = height - round(style.size * 2.4), width - style.size
    y_of = lambda value: bottom - (bottom - top) * value / end  # noqa: E731
    _axis(
        sheet,
        style,
        [(v, y_of(v)) for v in range(0, end + 1, step)],
        (left, right),
        series.unit,
        look,
    )
    slot = (right - left) / len(series.names)
    points = [(left + slot * (n + 0.5), y_of(value)) for n, value in enumerate(series.values)]
    [colour] = _palette(rng, _paper(sheet), 1)
    sheet.draw.line(points, fill=colour, width=integer(rng, 2, 4), joint="curve")
    radius = integer(rng, 3, 6)
    for n, (x, y) in enumerate(points):
        box = (round(x - radius), round(y - radius), round(x + radius), round(y + radius))
        sheet.draw.ellipse(box, fill=colour)
        sheet.mark(series.names[n], box)
        name = series.names[n]
        _centred(sheet, fitting(name, style, slot * 0.96), name, (x, bottom + style.size * 0.4))
        if look in ("values", "boxed"):
            _centred(
                sheet, style, series.shown(n), (x, max(top - style.size, y - style.size * 1.6))
            )
    sheet.draw.line((left, bottom, right, bottom), fill=style.colour)


def _pie(
    rng: np.random.Generator, sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> None:
    """Slices with a legend at the right that names them with their shares."""
    width, height = sheet.size
    radius = round(min(height - top - style.size, width * 0.5) / 2)
    middle = (style.size + radius, top + radius)
    around = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    start = between(rng, -90, 270)
    colours = _spread(rng, _paper(sheet), len(series.names))
    x = around[2] + style.size
    entries = [f"{name} {series.shown(n)}" for n, name in enumerate(series.names)]
    fit = min(
        (fitting(entry, style, width - x - 2 * style.size) for entry in entries),
        key=lambda s: s.size,
    )
    for n, name in enumerate(series.names):
        stop = start + 3.6 * series.values[n]
        sheet.draw.pieslice(around, start, stop, fill=colours[n], outline=_paper(sheet))
        sheet.mark(name, _slice_box(middle, radius, start, stop))
        y = top + round(n * fit.size * 1.6)
        sheet.draw.rectangle((x, y, x + fit.size, y + fit.size), fill=colours[n])
        sheet.text(x + round(fit.size * 1.5), y - fit.size // 8, entries[n], fit)
        start = stop
    if look == "boxed":
        sheet.draw.ellipse(around, outline=style.colour)


def _slice_box(middle: tuple[int, int], radius: int, start: float, stop: float) -> Box:
    """The tight box of a sector; angles in degrees, clockwise from the right."""
    angles = [start, stop, *(a for a in range(-360, 721, 90) if start < a < stop)]
    xs = [middle[0], *(middle[0] + radius * math.cos(math.radians(a)) for a in angles)]
    ys = [middle[1], *(middle[1] + radius * math.sin(math.radians(a)) for a in angles)]
    return round(min(xs)), round(min(ys)), round(max(xs)), round(max(ys))


def _spread(rng: np.random.Generator, paper: Colour, count: int) -> list[Colour]:
    """Colours that differ from the paper and from each other."""
    found: list[Colour] = []
    while len(found) < count:
        colour = any_colour(rng)
        others = [paper, *found]
        if all(sum(abs(a - b) for a, b in zip(colour, o, strict=True)) > 120 for o in others):
            found.append(colour)
    return found


def _axis(
    sheet: Sheet,
    style: Style,
    ticks: list[tuple[int, float]],
    span: tuple[int, int],
    unit: str,
    look: str,
) -> None:
    """Ticks with their numbers at the left, and lines across where the look has them."""
    left, right = span
    for value, y in ticks:
        text = f"{value}{unit}"
        sheet.text(left - style.width(text) - style.size // 2, y - style.size * 0.6, text, style)
        if look in ("grid", "boxed"):
            sheet.draw.line((left, y, right, y), fill=(160, 160, 160))
        elif look == "ticks":
            sheet.draw.line((left - 4, y, left, y), fill=style.colour)
    sheet.draw.line((left, ticks[0][1], left, ticks[-1][1]), fill=style.colour)


def _paper(sheet: Sheet) -> Colour:
    red, green, blue = sheet.image.getpixel((1, 1))  # pyright: ignore[reportGeneralTypeIssues]
    return int(red), int(green), int(blue)


def _centred(sheet: Sheet, style: Style, text: str, at: tuple[float, float]) -> None:
    sheet.text(at[0] - style.width(text) / 2, at[1], text, style)


def _asks(rng: np.random.Generator, series: Series, things: dict[str, Box]) -> list[Ask]:
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
    if names[n] in things:
        question = phrase(rng, pick(rng, WHERE), noun=noun, name=names[n])
        asks.append(
            ask("chart.locate", question, (Spot(label=names[n], boxes=(things[names[n]],)),))
        )
    if series.form == "line":
        a, b = sorted(some(rng, range(len(names)), 2))
        way = "They rise." if values[b] > values[a] else "They fall."
        asks.append(ask("chart.trend", phrase(rng, pick(rng, TREND), a=names[a], b=names[b]), way))
    return shuffled(rng, asks)[:6]


def _kind(form: str) -> str:
    return {
        "bars": "A bar chart.",
        "rows": "A bar chart.",
        "line": "A line chart.",
        "pie": "A pie chart.",
    }[form]
