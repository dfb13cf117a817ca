"""Charts by matplotlib, whose look most people's charts have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vl2.data.make.chance import between, chance, integer, pick
from vl2.data.make.charts_drawn import slice_box
from vl2.data.make.paper import ink, luminance
from vl2.data.make.plots import (
    DPI,
    Plot,
    centred,
    fit_all,
    fraction,
    palette,
    pixels,
    plotted,
    set_legend,
    set_limits,
    set_ticks,
)
from vl2.data.make.series import Series, Table, scale
from vl2.data.make.sheet import Colour, Sheet, fitting
from vl2.data.make.world import World
from vl2.geometry import PixelBox


def drawn(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    """A chart of one series; bars, points and slices are marked by their names."""
    return _FORMS[series.form](rng, world, series)


def several(rng: np.random.Generator, world: World, table: Table) -> Sheet:
    """Several series with a legend at the right; "SERIES NAME" marks a bar or a point."""
    stacked, lines = table.form == "stacked", table.form == "lines"
    sums = [sum(column) for column in zip(*table.values, strict=True)]
    end, step = scale(tuple(sums) if stacked else tuple(v for row in table.values for v in row))
    with plotted(rng, world, widest=str(end), legend=table.series) as plot:
        colours = palette(rng, world, plot, len(table.series))
        places = np.arange(len(table.names), dtype=float)
        set_limits(plot, len(places), end, step)
        share = 1 if stacked else len(table.series)
        width = between(rng, 0.6, 0.85) / share
        marker, below = between(rng, 4, 8), np.zeros(len(places))
        boxes: list[tuple[float, float, float, float]] = []  # in the axes' units
        for k, row in enumerate(table.values):
            if lines:
                plot.axes.plot(places, row, "o-", color=fraction(colours[k]), markersize=marker)
                boxes += [(x, y, x, y) for x, y in zip(places, row, strict=True)]
                continue
            shift = 0.0 if stacked else (k - (share - 1) / 2) * width
            plot.axes.bar(
                places + shift, row, width, below, color=fraction(colours[k]), hatch=plot.hatch
            )
            boxes += [
                (x + shift - width / 2, low, x + shift + width / 2, low + value)
                for x, low, value in zip(places, below, row, strict=True)
            ]
            below = below + row if stacked else below
        sheet = plot.sheet(table.title)
        names = [(series, name) for series in table.series for name in table.names]
        reach = marker / 72 * DPI / 2 if lines else 0.0
        values = [v for row in table.values for v in row]
        for (series, name), box, value in zip(names, boxes, values, strict=True):
            placed = pixels(plot, box, reach)
            sheet.mark(f"{series} {name}", placed)
            if stacked:
                _inside(sheet, plot, str(value), placed)
        set_ticks(sheet, plot, table.names, end, step)
        set_legend(sheet, plot, table.series, colours)
        return sheet


def _bars(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    end, step = scale(series.values)
    with plotted(rng, world, widest=f"{end}{series.unit}") as plot:
        count, width = len(series.names), between(rng, 0.45, 0.85)
        set_limits(plot, count, end, step)
        edge = plot.style.colour if chance(rng, 0.3) else None
        plot.axes.bar(
            range(count),
            series.values,
            width,
            color=[fraction(c) for c in _shared(rng, world, plot, count)],
            hatch=plot.hatch,
            edgecolor=fraction(edge) if edge else None,
        )
        sheet = plot.sheet(series.title)
        valued = chance(rng, 0.35)
        for n, name in enumerate(series.names):
            box = pixels(plot, (n - width / 2, 0, n + width / 2, series.values[n]))
            sheet.mark(name, box)
            if valued:
                centred(sheet, plot.style, series.shown(n), ((box[0] + box[2]) / 2, box[1]), -1.35)
        set_ticks(sheet, plot, series.names, end, step, series.unit)
        return sheet


def _rows(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    end, step = scale(series.values)
    longest = max(series.names, key=len)
    with plotted(rng, world, widest=f"{longest}m") as plot:
        count, width, axes = len(series.names), between(rng, 0.45, 0.8), plot.axes
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_yticks(range(count))
        axes.set_xlim(0, end * 1.08)
        axes.set_xticks(range(0, end + 1, step))
        colours = [fraction(c) for c in _shared(rng, world, plot, count)]
        axes.barh(range(count), series.values, width, color=colours, hatch=plot.hatch)
        sheet, style = plot.sheet(series.title), plot.style
        for n, name in enumerate(series.names):
            sheet.mark(name, pixels(plot, (0, n + width / 2, series.values[n], n - width / 2)))
            y = plot.at(0, n)[1] - style.size * 0.6
            fit = fitting(name, style, plot.box[0] - style.size)
            sheet.text(plot.box[0] - fit.width(name) - 0.6 * style.size, y, name, fit)
        ticks = [f"{v}{series.unit}" for v in range(0, end + 1, step)]
        fit = fit_all(ticks, style, (plot.box[2] - plot.box[0]) / len(ticks) * 0.9)
        for n, text in enumerate(ticks):
            centred(sheet, fit, text, (plot.at(n * step, 0)[0], plot.box[3]), 0.4)
        return sheet


def _line(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    end, step = scale(series.values)
    with plotted(rng, world, widest=f"{end}{series.unit}") as plot:
        count, marker = len(series.names), between(rng, 4, 9)
        set_limits(plot, count, end, step)
        [colour] = palette(rng, world, plot, 1)
        form = f"{pick(rng, 'oos^D')}{pick(rng, ('-', '-', '--'))}"
        width = between(rng, 1, 3)
        plot.axes.plot(
            range(count),
            series.values,
            form,
            color=fraction(colour),
            markersize=marker,
            linewidth=width,
        )
        if chance(rng, 0.2):
            plot.axes.fill_between(range(count), series.values, color=fraction(colour), alpha=0.25)
        sheet, valued = plot.sheet(series.title), chance(rng, 0.3)
        _points(sheet, plot, list(enumerate(series.values)), series.names, marker)
        for n, value in enumerate(series.values if valued else ()):
            x, y = plot.at(n, value)
            at = (x, max(y - marker, plot.box[1] + 1.5 * plot.style.size))
            centred(sheet, plot.style, series.shown(n), at, -1.45)
        set_ticks(sheet, plot, series.names, end, step, series.unit)
        return sheet


def _scatter(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    """Points with letters beside them; numbers on both axes."""
    end, step = scale(series.values)
    with plotted(rng, world, widest=str(end)) as plot:
        count, marker = len(series.names), between(rng, 5, 10)
        xs = rng.permutation(np.arange(1, 20))[:count] + rng.uniform(-0.2, 0.2, count)
        set_limits(plot, 21, end, step)
        plot.axes.set_xticks(range(0, 21, 5))
        [colour] = palette(rng, world, plot, 1)
        plot.axes.plot(xs, series.values, pick(rng, "oos^D"), color=fraction(colour), ms=marker)
        sheet, places = plot.sheet(series.title), list(zip(xs, series.values, strict=True))
        _points(sheet, plot, places, series.names, marker)
        for (x, value), name in zip(places, series.names, strict=True):
            at, y = plot.at(x, value)
            sheet.text(at + marker, y - 1.3 * plot.style.size, name, plot.style)
        set_ticks(sheet, plot, ("0", "5", "10", "15", "20"), end, step, apart=5)
        return sheet


def _pie(rng: np.random.Generator, world: World, series: Series) -> Sheet:
    """A pie or a ring with its shares inside or in the legend."""
    inside = min(series.values) >= 8 and chance(rng, 0.5)
    entries = (
        series.names
        if inside
        else tuple(f"{name} {series.shown(n)}" for n, name in enumerate(series.names))
    )
    with plotted(rng, world, legend=entries, below=1.0) as plot:
        hole = between(rng, 0.4, 0.6) if chance(rng, 0.3) else 0.0
        colours = palette(rng, world, plot, len(series.names))
        line = between(rng, 0, 2)
        around = {"edgecolor": fraction(plot.paper), "linewidth": line, "width": 1 - hole}
        wedges = plot.axes.pie(
            series.values,
            colors=[fraction(c) for c in colours],
            startangle=integer(rng, 0, 359),
            counterclock=chance(rng, 0.5),
            wedgeprops=around,
        )[0]
        sheet = plot.sheet(series.title)
        middle, edge = plot.at(0, 0), plot.at(1, 0)[0]
        for n, wedge in enumerate(wedges):
            first, last = -wedge.theta2, -wedge.theta1
            radius = edge - middle[0]
            box = slice_box(middle, radius, first, last, radius * hole)
            sheet.mark(series.names[n], box)
            if inside:
                turn, far = math.radians((first + last) / 2), radius * (0.7 + hole / 4)
                at = (middle[0] + far * math.cos(turn), middle[1] + far * math.sin(turn))
                small = fitting(series.shown(n), plot.style, radius * 0.35)
                tint = replace(small, colour=ink(rng, colours[n], plain=True))
                centred(sheet, tint, series.shown(n), at, -0.6)
        set_legend(sheet, plot, entries, colours)
        return sheet


_FORMS = {"bars": _bars, "rows": _rows, "line": _line, "scatter": _scatter, "pie": _pie}


def _points(
    sheet: Sheet,
    plot: Plot,
    places: Sequence[tuple[float, float]],
    names: Sequence[str],
    marker: float,
) -> None:
    for (x, y), name in zip(places, names, strict=True):
        sheet.mark(name, pixels(plot, (x, y, x, y), marker / 72 * DPI / 2))


def _inside(sheet: Sheet, plot: Plot, text: str, box: PixelBox) -> None:
    """A value in the middle of its bar."""
    room = 0.9 * (box[2] - box[0])
    size = min(plot.style.size, round(0.85 * (box[3] - box[1])))
    fit = fitting(text, replace(plot.style, size=max(8, size)), room)
    behind = sheet.image.getpixel(((box[0] + box[2]) // 2, box[3] - 3))
    assert isinstance(behind, tuple)
    colour: Colour = (255, 255, 255) if luminance(behind) < 0.5 else (0, 0, 0)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    centred(sheet, replace(fit, colour=colour), text, middle, -0.62)


def _shared(rng: np.random.Generator, world: World, plot: Plot, count: int) -> list[Colour]:
    """One colour for all in most cases, as matplotlib has it, or one each."""
    colours = palette(rng, world, plot, count)
    return colours if chance(rng, 0.35) else colours[:1] * count
