"""Screens of programs: dialogs with buttons, menus, settings, and windows with a title bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vl2.data.make.chance import chance, integer, phrase, pick, shuffled, some
from vl2.data.make.paper import any_colour, finish, grey, ground, ink, luminance
from vl2.data.make.sample import Ask, Made, Spot, ask
from vl2.data.make.sheet import Colour, Sheet, Style, wrap
from vl2.data.make.widgets import (
    BUTTONS,
    Screen,
    Theme,
    WidgetPlace,
    button_row,
    check_box,
    switch,
    window,
)
from vl2.data.make.world import World
from vl2.geometry import PixelBox

FORMS = {"train": ("dialog", "dialog", "menu", "settings"), "heldout": ("alert", "menu", "panel")}
ENTRIES = (
    *("New", "Open...", "Save", "Save as...", "Print...", "Close", "Quit", "Undo", "Redo", "Cut"),
    *("Copy", "Paste", "Find...", "Replace...", "Select all", "Preferences", "Zoom in", "Zoom out"),
    *(
        "Full screen",
        "Help",
        "About",
        "Export",
        "Import",
        "Share",
        "Rename",
        "Properties",
        "Delete",
    ),
)
OPTIONS = (
    *("Dark mode", "Notifications", "Bluetooth", "Wi-Fi", "Location", "Automatic updates", "Sound"),
    *("Airplane mode", "Show hidden files", "Spell checking", "Sync", "Backup", "Night light"),
    *(
        "Remember password",
        "Use proxy",
        "Auto save",
        "Animations",
        "Developer mode",
        "Read receipts",
    ),
)
MESSAGES = (
    "Do you want to save [the changes|your work] [to {name}|before closing]?",
    "The file {name} [could not be opened|already exists|was not found].",
    "Are you sure [that|] you want to [delete|remove|replace] {name}?",
    "[Connection|Login|Update|Upload] failed. [Please try again.|Check your network.|]",
    "{name} has [stopped working|been installed|been updated].",
    "[Your session|The password|The licence] has expired.",
    "There is not enough [space|memory] [on the disk|].",
    "[An update|A new version] of {name} is available.",
)
TITLE = (
    "What is the title[ of the window|]?",
    "What does the title bar say?",
    "[What is|] the window[ called|'s title]?",
)
MESSAGE = (
    "What [is the message|does the dialog say|does the message say]?",
    "What does the dialog ask?",
    "[Read the|What is the] [message|text] of the dialog[.|]",
)
BUTTON = ("[What|Which] buttons are there?", "[List|Name] the buttons.", "What can I click?")
COUNT = ("How many buttons are there?", "[Count|Number of] buttons[.|?]")
WHERE = (
    "Where is the {name} button?",
    "Locate the {name} button.",
    "Where [do I|must I|should I] click [for|to choose] {name}?",
    "Click {name}.",
)
HAS = ("Is there [a|an] {name} button?", "Can I [press|click] {name}?")
DEFAULT = ("Which button is highlighted?",)
ENTRY = (
    "[What|Which] [entries|items] are in the menu?",
    "[List|Name] the menu [items|entries].",
)
CHOSEN = ("Which [entry|item] is [selected|highlighted]?",)
SHORTCUT = ("What is the shortcut [for|of] {name}?",)
STATE = ("Is {name} [on|enabled|switched on]?", "Is {name} [on or off|turned on]?")
ALL_ON = ("[What is|Which options are] [switched on|on|enabled]?",)
KIND = ("What [is this|is shown|is in this picture]?", "What kind of [window|picture] is this?")


def make(rng: np.random.Generator, world: World) -> Made:
    """A window before a desktop, or a bare one."""
    form = pick(rng, world.style(FORMS))
    style = Style(face=world.plain_face(rng), size=integer(rng, 13, 24))
    dark = chance(rng, 0.3)
    face: Colour = grey(integer(rng, 28, 60) if dark else integer(rng, 225, 255))
    theme = Theme(
        face=face, text=ink(rng, face, plain=True), accent=_accent(rng, face), bar=any_colour(rng)
    )
    width = integer(rng, 18, 30) * style.size
    sheet = Sheet(ground(rng, world, (width + 12 * style.size, 60 * style.size)))
    at = (integer(rng, 0, 12 * style.size), integer(rng, 0, 6 * style.size))
    screen = Screen(kind=form)
    bottom = _FORMS[form](
        rng, world, sheet, screen, replace(style, colour=theme.text), theme, (*at, width)
    )
    spare = integer(rng, 0, 5 * style.size)
    sheet.image = sheet.image.crop((0, 0, sheet.size[0], min(sheet.size[1], bottom + 2 + spare)))
    image, marks = finish(rng, sheet, strength=0.6)
    boxes = {mark.text: mark.box for mark in marks if mark.kind == "thing"}
    facts = {
        "kind": form,
        "title": screen.title,
        "message": screen.message,
        "buttons": list(screen.buttons),
    }
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, world, screen, boxes)), facts=facts)


def _accent(rng: np.random.Generator, face: Colour) -> Colour:
    while True:
        colour = any_colour(rng)
        if abs(luminance(colour) - luminance(face)) > 0.3:
            return colour


def _dialog(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> int:
    """A title, a message and one to four buttons."""
    left, top, width = place
    message = _message(rng, world)
    lines = wrap(message, style, width - 3 * style.size)
    height = round(style.size * 6.2) + style.leading * len(lines)
    titles = ("Warning", "Error", "Question", "Confirm", "Information", "Update", "Save changes")
    title = pick(rng, titles) if chance(rng, 0.6) else world.texts.product(rng).title()
    y = window(rng, sheet, screen, style, theme, place, title, height) + style.size
    x = left + round(style.size * 1.5)
    for line in lines:
        sheet.text(x, y, line, style)
        y += style.leading
    screen.message = style.shown(message)
    button_row(rng, world, sheet, screen, style, theme, (left, y + style.size // 2, width))
    return top + height


def _alert(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> int:
    """As on telephones: round corners, everything centred, no bar."""
    left, top, width = place
    message = _message(rng, world)
    lines = wrap(message, style, width - 3 * style.size)
    big = replace(style, size=round(style.size * 1.2))
    height = round(style.size * 6.5) + style.leading * len(lines)
    sheet.draw.rounded_rectangle(
        (left, top, left + width, top + height), style.size, fill=theme.face
    )
    title = pick(rng, ("Attention", "Notice", "Allow access?", "Almost done", "Oops", "Reminder"))
    sheet.text(left + (width - big.width(title)) // 2, top + style.size * 0.6, title, big)
    y = top + round(style.size * 2.4)
    for line in lines:
        sheet.text(left + (width - style.width(style.shown(line))) // 2, y, line, style)
        y += style.leading
    screen.title, screen.message = style.shown(title), style.shown(message)
    button_row(rng, world, sheet, screen, style, theme, (left, y + style.size // 2, width))
    return top + height


def _message(rng: np.random.Generator, world: World) -> str:
    name = f"{pick(rng, world.texts.words)}.{pick(rng, ('txt', 'pdf', 'png', 'doc', 'zip'))}"
    if chance(rng, 0.4):
        name = world.texts.product(rng).title()
    if chance(rng, 0.25):
        return world.texts.of_length(rng, 20, 90).capitalize()
    return phrase(rng, pick(rng, MESSAGES), name=name)


def _menu(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> int:
    """Entries below each other, some with shortcuts, one highlighted."""
    left, top, width = place
    names = some(rng, ENTRIES, integer(rng, 3, 9))
    step = round(style.size * 1.9)
    bottom = top + step * len(names) + style.size
    sheet.draw.rectangle((left, top, left + width, bottom), fill=theme.face, outline=theme.text)
    chosen = integer(rng, 0, len(names) - 1) if chance(rng, 0.7) else -1
    for n, name in enumerate(names):
        y = top + style.size // 2 + n * step
        tint = style
        if n == chosen:
            sheet.draw.rectangle(
                (left + 1, y - 2, left + width - 1, y + step - 4), fill=theme.accent
            )
            tint = replace(style, colour=ink(rng, theme.accent, plain=True))
            screen.chosen = style.shown(name)
        box = sheet.text(left + style.size, y, name, tint)
        screen.entries[style.shown(name)] = sheet.mark(f"entry {style.shown(name)}", box)
        if chance(rng, 0.4):
            keys = style.shown(f"Ctrl+{pick(rng, 'ABCDEFGHIKLMNOPQRSTUVWXYZ')}")
            sheet.text(left + width - style.size - style.width(keys), y, keys, tint)
            screen.shortcuts[style.shown(name)] = keys
    return bottom


def _settings(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> int:
    """Options with check boxes or switches."""
    left, top, width = place
    names = some(rng, OPTIONS, integer(rng, 3, 7))
    step = round(style.size * 2.2)
    height = step * len(names) + round(style.size * 3)
    title = pick(rng, ("Settings", "Preferences", "Options", "Control panel"))
    y = window(rng, sheet, screen, style, theme, place, title, height) + style.size // 2
    switches = chance(rng, 0.5)
    for name in names:
        state = chance(rng, 0.5)
        box = (left + style.size, y + 2, left + 2 * style.size, y + style.size + 2)
        if switches:
            box = (
                left + width - 3 * style.size,
                y + 2,
                left + width - style.size,
                y + style.size + 2,
            )
        (switch if switches else check_box)(sheet, style, theme, box, state)
        sheet.text(left + (style.size if switches else round(2.6 * style.size)), y, name, style)
        screen.options[style.shown(name)] = state
        sheet.mark(f"option {style.shown(name)}", (box[0], box[1], box[2] + 1, box[3] + 1))
        y += step
    return top + height


def _panel(
    rng: np.random.Generator,
    world: World,
    sheet: Sheet,
    screen: Screen,
    style: Style,
    theme: Theme,
    place: WidgetPlace,
) -> int:
    """Settings with buttons below."""
    bottom = _settings(rng, world, sheet, screen, style, theme, place)
    left, _, width = place
    lower = bottom + round(style.size * 3)
    sheet.draw.rectangle((left, bottom, left + width, lower), fill=theme.face, outline=theme.text)
    button_row(rng, world, sheet, screen, style, theme, (left, bottom + style.size // 2, width))
    return lower


_FORMS: dict[str, Callable[..., int]] = {
    "dialog": _dialog,
    "alert": _alert,
    "menu": _menu,
    "settings": _settings,
    "panel": _panel,
}


def _asks(
    rng: np.random.Generator, world: World, screen: Screen, boxes: dict[str, PixelBox]
) -> list[Ask]:
    """Everything that the screen answers without doubt, and what is not on it."""
    asks = [ask("screen.kind", phrase(rng, pick(rng, KIND)), _kind(screen.kind))]
    if screen.title:
        asks.append(ask("screen.title", phrase(rng, pick(rng, TITLE)), screen.title))
    if screen.message:
        asks += [ask("screen.message", phrase(rng, pick(rng, MESSAGE)), screen.message)] * 2
    if screen.buttons:
        asks += _button_asks(rng, world, screen, boxes)
    if screen.entries:
        asks.append(ask("screen.entries", phrase(rng, pick(rng, ENTRY)), ", ".join(screen.entries)))
        name = pick(rng, list(screen.entries))
        if f"entry {name}" in boxes:
            question = phrase(rng, "[Where is|Locate|Click] {name}[.|]", name=name)
            spot = Spot(label=name, boxes=(boxes[f"entry {name}"],))
            asks.append(ask("screen.locate", question, (spot,)))
    if screen.chosen:
        asks.append(ask("screen.chosen", phrase(rng, pick(rng, CHOSEN)), screen.chosen))
    for name, keys in some(rng, list(screen.shortcuts.items()), 1):
        asks.append(ask("screen.shortcut", phrase(rng, pick(rng, SHORTCUT), name=name), keys))
    for name, state in some(rng, list(screen.options.items()), 2):
        question = phrase(rng, pick(rng, STATE), name=name)
        shown = (
            ("On" if state else "Off") if "on or off" in question else ("Yes" if state else "No")
        )
        asks.append(ask("screen.state", question, shown))
    if screen.options:
        on = ", ".join(name for name, state in screen.options.items() if state) or "Nothing."
        asks.append(ask("screen.on", phrase(rng, pick(rng, ALL_ON)), on))
    return shuffled(rng, asks)[:6]


def _button_asks(
    rng: np.random.Generator, world: World, screen: Screen, boxes: dict[str, PixelBox]
) -> list[Ask]:
    names = list(screen.buttons)
    name, absent = pick(rng, names), pick(rng, world.style(BUTTONS))
    asks = [
        ask("screen.buttons", phrase(rng, pick(rng, BUTTON)), ", ".join(names)),
        ask("screen.count", phrase(rng, pick(rng, COUNT)), str(len(names))),
        ask(
            "screen.has",
            phrase(rng, pick(rng, HAS), name=absent),
            "Yes" if absent in names else "No",
        ),
    ]
    if f"button {name}" in boxes:
        spot = Spot(label=name, boxes=(boxes[f"button {name}"],))
        asks += [ask("screen.locate", phrase(rng, pick(rng, WHERE), name=name), (spot,))] * 2
    if screen.default:
        asks.append(ask("screen.default", phrase(rng, pick(rng, DEFAULT)), screen.default))
    return asks


def _kind(form: str) -> str:
    names = {"dialog": "A dialog.", "alert": "A dialog.", "menu": "A menu."}
    return names.get(form, "A settings window.")
