"""Tables, ruled or not, of words and numbers, with one row of headings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vl2.data.make.chance import chance, integer, phrase, pick, shuffled, some
from vl2.data.make.paper import any_colour, finish, ink, light_colour, luminance
from vl2.data.make.reading import locate
from vl2.data.make.sample import Ask, Made, Mark, ask
from vl2.data.make.sheet import Colour, Sheet, Style
from vl2.data.make.texts import code, date, money, percent
from vl2.data.make.world import World
from vl2.geometry import PixelBox

RULES = {
    "train": ("grid", "rows", "head", "none", "zebra"),
    "heldout": ("frame", "columns", "double"),
}
MARKDOWN = (
    "[Write|Give|Transcribe|Convert] the table [as|in|to] Markdown.",
    "[Read|Extract] the table.",
    "Table to [m|M]arkdown.",
    "What does the table [say|contain]?",
)
CELL = (
    "What is the {column} of {row}?",
    "What is {row}'s {column}?",
    "[Which|What] {column} does {row} have?",
    "What [stands|is] in row {row}, column {column}?",
    "{column} of {row}?",
)
AT = (
    "What is in row {r}, column {c}?",
    "What [stands|is written] in the cell at row {r}, column {c}?",
)
ROWS = (
    "How many rows [are there|does the table have][ without the heading|]?",
    "[Count|Number of] rows[.|?]",
)
COLUMNS = ("How many columns [are there|does the table have]?", "[Count|Number of] columns[.|?]")
HEADINGS = ("What are the [column headings|headers|columns]?", "[List|Name] the columns.")
WHICH = ("Which {first} has the {column} [of|] {value}?",)
NO_ROW = "There is no row {row}."

_Column = tuple[str, Callable[[np.random.Generator, World], str], bool]


def _names(rng: np.random.Generator, world: World) -> str:
    return world.texts.person(rng)


COLUMNS_OF: tuple[_Column, ...] = (
    ("Name", _names, False),
    ("Item", lambda rng, world: world.texts.product(rng), False),
    ("City", lambda rng, world: pick(rng, world.texts.places), False),
    ("Company", lambda rng, world: world.texts.firm(rng), False),
    ("Job", lambda rng, world: pick(rng, world.texts.jobs), False),
    ("Date", lambda rng, world: date(rng), False),
    ("Price", lambda rng, world: f"{money(rng):.2f}", True),
    ("Amount", lambda rng, world: f"{money(rng, 10, 9999):,.2f}", True),
    ("Quantity", lambda rng, world: str(integer(rng, 1, 99)), True),
    ("Year", lambda rng, world: str(integer(rng, 1950, 2030)), True),
    ("Share", lambda rng, world: percent(rng), True),
    ("Points", lambda rng, world: str(integer(rng, 0, 1000)), True),
    ("Code", lambda rng, world: code(rng), False),
    ("Age", lambda rng, world: str(integer(rng, 1, 99)), True),
    (
        "Status",
        lambda rng, world: pick(rng, ("open", "closed", "paid", "late", "new", "done")),
        False,
    ),
    ("Rank", lambda rng, world: str(integer(rng, 1, 50)), True),
)
"""A heading, what stands below it, and whether it is a number (set to the right)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The words of a table; `rows` are without the headings."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]

    def markdown(self) -> str:
        """The table as Markdown, one space beside each bar."""
        lines = [self.headings, tuple("---" for _ in self.headings), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def make(rng: np.random.Generator, world: World) -> Made:
    """A table of 2 to 6 columns and 2 to 10 rows on plain paper, sometimes with a title."""
    grid = random_grid(rng, world, columns=integer(rng, 2, 6), rows=integer(rng, 2, 10))
    style = Style(face=world.plain_face(rng), size=integer(rng, 13, 26))
    sheet, cells = draw_grid(rng, world, grid, style)
    image, marks = finish(rng, sheet, strength=0.8)
    found = [mark for mark in marks if mark.kind == "cell"]
    facts = {"headings": grid.headings, "rows": grid.rows, "cells": cells}
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, grid, found)), facts=facts)


def random_grid(rng: np.random.Generator, world: World, *, columns: int, rows: int) -> Grid:
    """Different columns; the first holds names that differ from row to row."""
    first = pick(rng, COLUMNS_OF[:5])
    chosen = [first, *some(rng, [c for c in COLUMNS_OF if c is not first], columns - 1)]
    names: list[str] = []
    while len(names) < rows:  # every list of names is far longer than a table
        if (name := first[1](rng, world)) not in names:
            names.append(name)
    lines = [(name, *(make_cell(rng, world) for _, make_cell, _ in chosen[1:])) for name in names]
    cased = pick(rng, (str, str, str.upper, str.lower))
    return Grid(
        headings=tuple(cased(heading) for heading, _, _ in chosen),
        rows=tuple(lines),
        numeric=tuple(numeric for _, _, numeric in chosen),
    )


def draw_grid(
    rng: np.random.Generator, world: World, grid: Grid, style: Style
) -> tuple[Sheet, int]:
    """The table on paper of its own size, and its number of cells."""
    pad = (integer(rng, 6, 20), integer(rng, 3, 12))
    lines = (grid.headings, *grid.rows)
    widths = [
        max(style.width(line[c]) for line in lines) + 2 * pad[0] for c in range(len(grid.headings))
    ]
    height, margin = style.size + 4 + 2 * pad[1], integer(rng, 4, 40)
    title = world.texts.phrase(rng, 2, 5).strip(".,;:").capitalize() if chance(rng, 0.3) else ""
    top = margin + (2 * style.leading if title else 0)
    size = (sum(widths) + 2 * margin, top + height * len(lines) + margin)
    size = (max(size[0], style.width(title) + 2 * margin), size[1])
    paper = light_colour(rng)
    sheet = Sheet(Image.new("RGB", size, paper))
    colour = ink(rng, paper, plain=True)
    if title:
        sheet.text(margin, margin, title, _in(style, colour))
    lefts = [margin + sum(widths[:c]) for c in range(len(widths) + 1)]
    tops = [top + height * r for r in range(len(lines) + 1)]
    head = _rule(rng, sheet, lefts, tops, pick(rng, world.style(RULES)), colour)
    for r, line in enumerate(lines):
        tint = ink(rng, head, plain=True) if r == 0 and head is not None else colour
        for c, text in enumerate(line):
            free = widths[c] - 2 * pad[0] - style.width(text)
            x = lefts[c] + pad[0] + (free if grid.numeric[c] else 0)
            box = sheet.text(x, tops[r] + pad[1], text, _in(style, tint))
            sheet.mark(text, box, "cell")
    return sheet, len(lines) * len(widths)


def _rule(
    rng: np.random.Generator,
    sheet: Sheet,
    lefts: list[int],
    tops: list[int],
    kind: str,
    colour: Colour,
) -> Colour | None:
    """Draw lines and shades; returns the colour behind the headings if it is not the paper's."""
    draw, (x1, x2, y1, y2) = sheet.draw, (lefts[0], lefts[-1], tops[0], tops[-1])
    head = any_colour(rng) if chance(rng, 0.4) else None
    if head is not None:
        draw.rectangle((x1, y1, x2, tops[1]), fill=head)
    if kind == "zebra":
        shade = (225, 228, 232) if luminance(colour) < 0.5 else (60, 60, 60)
        for r in range(2, len(tops) - 1, 2):
            draw.rectangle((x1, tops[r], x2, tops[r + 1]), fill=shade)
    across = {
        "grid": tops,
        "rows": tops,
        "double": tops[:2] + tops[-1:],
        "frame": [y1, tops[1], y2],
    }
    for y in across.get(kind, [tops[1]] if kind == "head" else []):
        draw.line((x1, y, x2, y), fill=colour)
        if kind == "double":
            draw.line((x1, y + 3, x2, y + 3), fill=colour)
    for x in {"grid": lefts, "columns": lefts[1:-1], "frame": [x1, x2]}.get(kind, []):
        draw.line((x, y1, x, y2), fill=colour)
    return head


def _in(style: Style, colour: Colour) -> Style:
    return Style(face=style.face, size=style.size, colour=colour)


def _asks(rng: np.random.Generator, grid: Grid, cells: list[Mark]) -> list[Ask]:
    """Markdown, cells by name and by number, counts, headings, and a row that is not there."""
    rows, columns = len(grid.rows), len(grid.headings)
    r, c = integer(rng, 0, rows - 1), integer(rng, 1, columns - 1)
    row, column, value = grid.rows[r][0], grid.headings[c], grid.rows[r][c]
    asks = [
        ask("table.markdown", phrase(rng, pick(rng, MARKDOWN)), grid.markdown()),
        ask("table.cell", phrase(rng, pick(rng, CELL), row=row, column=column), value),
        ask("table.at", phrase(rng, pick(rng, AT), r=str(r + 1), c=str(c + 1)), value),
        ask("table.rows", phrase(rng, pick(rng, ROWS)), str(rows)),
        ask("table.columns", phrase(rng, pick(rng, COLUMNS)), str(columns)),
        ask("table.headings", phrase(rng, pick(rng, HEADINGS)), ", ".join(grid.headings)),
    ]
    if [line[c] for line in grid.rows].count(value) == 1:
        question = phrase(rng, pick(rng, WHICH), first=grid.headings[0], column=column, value=value)
        asks.append(ask("table.which", question, row))
    where: dict[str, list[PixelBox]] = {}
    for cell in cells:
        where.setdefault(cell.text, []).append(cell.box)
    if value in where:
        asks.append(locate(rng, "table", value, tuple(where[value])))
    return shuffled(rng, asks)[:6]
