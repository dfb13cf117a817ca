"""Charts with exact values: drawn piece by piece, or by matplotlib as most people draw them."""

from __future__ import annotations

import numpy as np

from vl2.data.make import charts_drawn, charts_matplotlib
from vl2.data.make.chance import chance, pick
from vl2.data.make.paper import finish
from vl2.data.make.sample import Made
from vl2.data.make.series import random_series, random_table, series_asks, table_asks
from vl2.data.make.world import World

FORMS = {
    "train": ("bars", "bars", "rows", "line", "pie"),
    "heldout": ("bars", "rows", "line", "pie"),
}
PLOTS = {
    "train": ("bars", "bars", "rows", "line", "pie", "scatter"),
    "heldout": ("bars", "rows", "line", "pie", "scatter"),
}
TABLES = {"train": ("grouped", "lines"), "heldout": ("grouped", "stacked", "lines")}


def make(rng: np.random.Generator, world: World) -> Made:
    """A chart of 2 to 8 values, or of two to four series of values."""
    plotted = chance(rng, 0.5)
    if plotted and chance(rng, 0.25):
        return _several(rng, world)
    series = random_series(rng, world, pick(rng, world.style(PLOTS if plotted else FORMS)))
    sheet = (charts_matplotlib if plotted else charts_drawn).drawn(rng, world, series)
    image, marks = finish(rng, sheet, strength=0.8)
    things = {mark.text: mark.box for mark in marks if mark.kind == "thing"}
    facts = {
        "title": series.title,
        "names": series.names,
        "values": series.values,
        "form": series.form,
    }
    asks = tuple(series_asks(rng, world, series, things))
    return Made(image=image, marks=marks, asks=asks, facts=facts)


def _several(rng: np.random.Generator, world: World) -> Made:
    """Groups of bars, or several lines, with a legend."""
    table = random_table(rng, world, pick(rng, world.style(TABLES)))
    image, marks = finish(rng, charts_matplotlib.several(rng, world, table), strength=0.8)
    things = {mark.text: mark.box for mark in marks if mark.kind == "thing"}
    facts = {
        "title": table.title,
        "names": table.names,
        "series": table.series,
        "values": table.values,
        "form": table.form,
    }
    asks = tuple(table_asks(rng, table, things))
    return Made(image=image, marks=marks, asks=asks, facts=facts)
