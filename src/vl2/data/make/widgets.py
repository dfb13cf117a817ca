"""Pieces of screens: windows, buttons, check boxes and switches, and what a screen shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vl2.data.make.chance import chance, integer, pick, some
from vl2.data.make.paper import ink
from vl2.data.make.sheet import Colour, Sheet, Style
from vl2.data.make.world import World
from vl2.geometry import PixelBox

BUTTONS = {
    "train": (
        *("OK", "Cancel", "Yes", "No", "Save", "Close", "Apply", "Retry", "Delete", "Next", "Back"),
        *("Open", "Help", "Install", "Accept", "Decline", "Send", "Print", "Don't save", "Ignore"),
    ),
    "heldout": (
        *("OK", "Cancel", "Continue", "Quit", "Allow", "Deny", "Update", "Later", "Submit", "Skip"),
        *("Finish", "Reset", "Discard", "Replace", "Log in", "Sign out"),
    ),
}


@dataclass(slots=True)
class Screen:
    """What a screen shows."""

    kind: str
    title: str = ""
    message: str = ""
    buttons: dict[str, PixelBox] = field(default_factory=dict)
    default: str = ""
    entries: dict[str, PixelBox] = field(default_factory=dict)
    chosen: str = ""
    shortcuts: dict[str, str] = field(default_factory=dict)
    options: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours of a program."""

    face: Colour
    text: Colour
    accent: Colour
    bar: Colour


WidgetPlace = tuple[int, int, int]
"""Left, top and width in pixels."""


def window(
    rng: np.random.Generator,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
    title: str,
    height: int,
) -> int:
    """A frame with a title bar; returns where its inside begins."""
    left, top, width = place
    bar = round(style.size * 1.9)
    sheet.draw.rectangle(
        (left, top, left + width, top + height), fill=theme.face, outline=theme.text
    )
    if title:
        sheet.draw.rectangle((left, top, left + width, top + bar), fill=theme.bar)
        tint = replace(style, colour=ink(rng, theme.bar, plain=True))
        free = width - style.width(style.shown(title)) - 3 * style.size
        x = left + style.size // 2 + (max(0, free // 2) if chance(rng, 0.4) else 0)
        sheet.text(x, top + style.size * 0.3, title, tint)
        cross, y = left + width - round(style.size * 1.2), top + bar // 2
        half = style.size // 4
        sheet.draw.line((cross - half, y - half, cross + half, y + half), fill=tint.colour, width=2)
        sheet.draw.line((cross - half, y + half, cross + half, y - half), fill=tint.colour, width=2)
        screen.title = style.shown(title)
        return top + bar
    return top


def button_row(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> None:
    """A row of buttons at the right, in the middle or at the left; one may be highlighted."""
    left, y, width = place
    names = some(rng, world.style(BUTTONS), integer(rng, 1, 4))
    widths = [style.width(style.shown(name)) + 2 * style.size for name in names]
    gap = style.size // 2
    while sum(widths) + gap * len(widths) > width - style.size:
        names, widths = names[:-1], widths[:-1]
    free = width - sum(widths) - gap * (len(widths) - 1) - style.size
    x = left + style.size // 2 + pick(rng, (0, free // 2, free, free))
    first = integer(rng, 0, len(names) - 1) if chance(rng, 0.6) else -1
    for n, (name, wide) in enumerate(zip(names, widths, strict=True)):
        box = (x, y, x + wide, y + round(style.size * 2))
        fill = theme.accent if n == first else None
        sheet.draw.rounded_rectangle(box, style.size // 4, fill=fill, outline=theme.text)
        tint = style if fill is None else replace(style, colour=ink(rng, fill, plain=True))
        sheet.text(x + style.size, y + style.size * 0.35, name, tint)
        shown = style.shown(name)
        screen.buttons[shown] = sheet.mark(
            f"button {shown}", (box[0], box[1], box[2] + 1, box[3] + 1)
        )
        screen.default = shown if n == first else screen.default
        x += wide + gap


def check_box(sheet: Sheet, style: Style, theme: Theme, box: PixelBox, state: bool) -> None:
    """A square, with a tick where the state is on."""
    sheet.draw.rectangle(box, outline=theme.text, width=2)
    if state:
        x1, y1, x2, y2 = box
        points = [(x1 + 3, (y1 + y2) // 2), ((x1 + x2) // 2, y2 - 3), (x2 - 2, y1 + 2)]
        sheet.draw.line(points, fill=theme.accent, width=max(2, style.size // 7))


def switch(sheet: Sheet, style: Style, theme: Theme, box: PixelBox, state: bool) -> None:
    """A knob at the right and the accent's colour where the state is on."""
    half = (box[3] - box[1]) // 2
    sheet.draw.rounded_rectangle(box, half, fill=theme.accent if state else (150, 150, 150))
    x = box[2] - 2 * half if state else box[0]
    sheet.draw.ellipse((x + 2, box[1] + 2, x + 2 * half - 2, box[3] - 2), fill=theme.face)
