"""Bar, line and pie charts drawn piece by piece, with the axes and labels that people set."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, pick
from vl2.data.make.paper import any_colour, ink, light_colour, luminance
from vl2.data.make.series import Series, scale
from vl2.data.make.sheet import Colour, Sheet, Style, fitting
from vl2.data.make.world import World
from vl2.geometry import PixelBox

STYLES = {"train": ("grid", "plain", "values"), "heldout": ("ticks", "boxed")}


def drawn(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    """The chart, 300 to 900 pixels wide; bars, points and slices are marked by their names."""
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
    return sheet


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


def _bars(
    rng: np.random.Generator, sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> None:
    """Upright bars; values on an axis at the left, or above the bars."""
    left, right, bottom, heights = _framed(sheet, series, style, top=top, look=look)
    slot = (right - left) / len(series.names)
    thick = slot * between(rng, 0.45, 0.8)
    colours = _palette(rng, _paper(sheet), len(series.names))
    for n, name in enumerate(series.names):
        middle = left + slot * (n + 0.5)
        box = (
            round(middle - thick / 2),
            round(heights[n]),
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
    end, _ = scale(series.values)
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
    left, right, bottom, heights = _framed(sheet, series, style, top=top, look=look)
    slot = (right - left) / len(series.names)
    points = [(left + slot * (n + 0.5), y) for n, y in enumerate(heights)]
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
        sheet.mark(name, slice_box(middle, radius, start, stop))
        y = top + round(n * fit.size * 1.6)
        sheet.draw.rectangle((x, y, x + fit.size, y + fit.size), fill=colours[n])
        sheet.text(x + round(fit.size * 1.5), y - fit.size // 8, entries[n], fit)
        start = stop
    if look == "boxed":
        sheet.draw.ellipse(around, outline=style.colour)


def slice_box(
    middle: tuple[float, float], radius: float, start: float, stop: float, inner: float = 0.0
) -> PixelBox:
    """The tight box of a sector, or of a part of a ring; degrees clockwise from the right."""
    angles = [start, stop, *(a for a in range(-360, 721, 90) if start < a < stop)]
    points = [(radius, a) for a in angles] + [(inner, start), (inner, stop)]
    xs = [middle[0] + far * math.cos(math.radians(a)) for far, a in points]
    ys = [middle[1] + far * math.sin(math.radians(a)) for far, a in points]
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


def _framed(
    sheet: Sheet, series: Series, style: Style, *, top: int, look: str
) -> tuple[int, int, int, list[float]]:
    """Draw the axis at the left; returns left, right, bottom of the plot, and y of the values."""
    end, step = scale(series.values)
    left = style.width(f"{end}{series.unit}") + 2 * style.size
    bottom, right = sheet.size[1] - round(style.size * 2.4), sheet.size[0] - style.size

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * value / end

    ticks = [(value, y_of(value)) for value in range(0, end + 1, step)]
    _axis(sheet, style, ticks, (left, right), series.unit, look)
    return left, right, bottom, [y_of(value) for value in series.values]


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
