"""Dialogs, settings, sign-in forms and messages on screens."""

from __future__ import annotations

import random

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.fonts import Fonts
from newcomer_set.sheet import Box, Sheet

Drawn = tuple[Sheet, list[Question]]

DIALOGS = (
    ("Save changes?", "The file notes.txt has been changed. Save it before you close?",
     ("Save", "Discard", "Cancel"), exact("Which file was changed?", "notes.txt")),
    ("Delete folder", "The folder Summer holds 48 photos. It cannot be brought back.",
     ("Delete", "Keep"), count("How many photos are in the folder?", 48)),
    ("Update ready", "Version 6.2 of Paperbird can be installed now. It takes 5 minutes.",
     ("Install", "Later"), facts("Which version can be installed?", "6.2")),
    ("No connection", "The printer in room 3 does not answer. Check the cable.",
     ("Try again", "Cancel", "Help"), facts("Which device does not answer?", "printer")),
    ("Battery low", "Only 9 % is left. Connect your charger.",
     ("OK", "Save power"), count("How many percent of the battery are left?", 9)),
    ("Send report?", "Heron has stopped. May we send a report to its makers?",
     ("Send", "Do not send"), exact("Which program has stopped?", "Heron")),
    ("Password expired", "Your password is older than 90 days. Choose a new one today.",
     ("Change now", "Sign out"), facts("How old is the password?", "90 days")),
    ("Copying files", "File 17 of 240 is being copied to drive E.",
     ("Pause", "Stop"), count("How many files are copied in all?", 240)),
)  # fmt: skip
SWITCHES = (
    ("Sound", ("Ringtone", "Vibration", "Keyboard clicks", "Silent at night", "Alarm")),
    ("Privacy", ("Location", "Camera", "Microphone", "Contacts", "Usage reports")),
    ("Display", ("Dark mode", "Auto brightness", "Large text", "Night light", "Always on")),
    ("Network", ("Wi-Fi", "Bluetooth", "Flight mode", "Hotspot", "Mobile data")),
)  # fmt: skip
MENUS = ("File", "Edit", "View", "Insert", "Format", "Tools", "Help")
ENTRIES = ("New", "Open", "Save", "Print", "Export", "Rename", "Close", "Share", "Undo")
APPS = ("Paperbird", "Heron Mail", "Tidewater", "Notebox", "Lumen Desk")


def screen(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """A dialog, a page of switches, a sign-in form or a window with a menu."""
    return (_dialog, _settings, _dialog, _signing, _window)[number % 5](number, rng, fonts)


def _button(sheet: Sheet, box: tuple[float, float, float, float], words: str, look: tuple) -> Box:
    face, size, fill, ink = look
    sheet.rect(box, fill, "#888888", radius=6)
    sheet.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), words, face, size, fill=ink,
               anchor="mm")  # fmt: skip
    return round(box[0]), round(box[1]), round(box[2]), round(box[3])


def _dialog(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    title, message, buttons, more = DIALOGS[(number // 5 * 2 + number % 5 // 2) % len(DIALOGS)]
    face = fonts.pick(rng, "sans")
    sheet = Sheet(rng.choice([(900, 600), (1200, 800), (700, 440), (1280, 720)]),
                  rng.choice(["#5b7c99", "#3d5a4c", "#c9cfd6", "#80708f"]))  # fmt: skip
    wide, high = sheet.size
    size = max(17.0, wide / 46)
    lines = sheet.wrapped(message, face, size, size * 22)
    room, tall = size * 25, size * (8.5 + 1.5 * len(lines))
    left, top = (wide - room) * rng.uniform(0.3, 0.7), (high - tall) / 2
    sheet.rect((left, top, left + room, top + tall), "#fafafa", "#555555", radius=10)
    sheet.text((left + size * 1.5, top + size * 2), title, face, size * 1.3, bold=True, anchor="lm")
    for row, words in enumerate(lines):
        sheet.text((left + size * 1.5, top + size * (3.6 + row * 1.5)), words, face, size)
    x, boxes = left + room - size * 1.2, {}
    for place, name in enumerate(buttons):
        broad = sheet.width(name, face, size) + size * 2
        look = (face, size, "#2867c6", "white") if not place else (face, size, "#e6e6e6", "black")
        spot = (x - broad, top + tall - size * 3.4, x, top + tall - size)
        boxes[name] = _button(sheet, spot, name, look)
        x -= broad + size * 0.7
    wanted, has = rng.choice(buttons), number % 2 == 0
    asked = [
        where(f"Where do I click for \"{wanted}\"? Draw a box around the button.", boxes[wanted]),
        more,
        facts("Which buttons are there?", *buttons),
        exact("What is the title of this message?", title, skill="reading"),
        yes_no(f"Is there a button \"{buttons[1] if has else 'Print'}\"?", has),
        count("How many buttons do you see?", len(buttons)),
        exact("Which button is blue?", buttons[0]),
        absent("What does the check box in this dialog say?"),
    ]  # fmt: skip
    turn = number // 5 * 2 + number % 5 // 2
    return sheet, [asked[(turn + step * 3) % len(asked)] for step in range(2 + (number % 3 == 0))]


def _settings(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    title, names = SWITCHES[number // 5 % len(SWITCHES)]
    face, dark = fonts.pick(rng, "sans"), number // 5 % 2 == 1
    sheet = Sheet(rng.choice([(480, 860), (540, 960), (900, 700)]),
                  "#1d2126" if dark else "#f1f3f6", zoom=2)  # fmt: skip
    wide, ink = sheet.size[0], "#f0f0f0" if dark else "#1a1a1a"
    clock = f"{rng.randint(7, 20)}:{rng.randint(10, 59)}"
    sheet.text((24, 30), clock, face, 20, fill=ink, anchor="lm")
    sheet.text((wide - 24, 30), f"{rng.randint(12, 99)} %", face, 20, fill=ink, anchor="rm")
    sheet.text((30, 100), title, face, 38, fill=ink, bold=True, anchor="lm")
    state = {name: rng.random() < 0.5 for name in names}
    wanted = names[number % len(names)]
    state[wanted] = number // 5 % 2 == 0
    boxes = {}
    for row, name in enumerate(names):
        y = 180 + row * 90
        sheet.rect((20, y - 40, wide - 20, y + 40), "#2b3138" if dark else "white", radius=12)
        sheet.text((44, y), name, face, 26, fill=ink, anchor="lm")
        x = wide - 120
        paint = "#2e9e4f" if state[name] else "#9a9a9a"
        boxes[name] = sheet.rect((x, y - 18, x + 72, y + 18), paint, radius=18)
        knob = x + 52 if state[name] else x + 20
        sheet.oval((knob - 15, y - 15, knob + 15, y + 15), "white")
    asked = [
        yes_no(f'Is "{wanted}" switched on?', state[wanted]),
        count("How many switches are turned on?", sum(state.values())),
        where(f'Mark the switch next to "{wanted}".', boxes[wanted]),
        exact("What is the heading of this screen?", title, skill="reading"),
        exact("What time does the screen show?", clock),
        absent("Which volume in percent is set for the radio on this screen?"),
    ]
    turn = number // 5
    return sheet, [asked[0], asked[1 + turn % 5], asked[1 + (turn + 2) % 5]]


def _signing(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    app, face = APPS[number // 5 % len(APPS)], fonts.pick(rng, "sans")
    sheet = Sheet(rng.choice([(800, 700), (1024, 768), (500, 800)]), "#eceff3")
    wide, high = sheet.size
    left, right, top = wide / 2 - 200, wide / 2 + 200, high / 2 - 280
    sheet.rect((left - 30, top, right + 30, top + 540), "white", "#c5c9cf", radius=14)
    head = f"Sign in to {app}"
    sheet.text((wide / 2, top + 60), head, face, 32, bold=True, anchor="mm")
    user = rng.choice(["greta.lund", "kofi_m", "marek77", "nora.quist"])
    fields = {}
    for row, (name, value) in enumerate((("User name", user), ("Password", "********"))):
        y = top + 120 + row * 110
        sheet.text((left, y), name, face, 20, fill="#555555")
        fields[name] = sheet.rect((left, y + 30, right, y + 78), "white", "#8a9099", width=2)
        sheet.text((left + 14, y + 54), value, face, 22, anchor="lm")
    ticked = number // 5 % 2 == 0
    sheet.rect((left, top + 346, left + 24, top + 370), "white", "#444444", width=2)
    if ticked:
        sheet.line((left + 4, top + 358, left + 10, top + 365, left + 21, top + 350), "#1a56c4", 4)
    sheet.text((left + 36, top + 358), "Stay signed in", face, 20, anchor="lm")
    button = _button(sheet, (left, top + 400, right, top + 456), "Sign in",
                     (face, 24, "#1a56c4", "white"))  # fmt: skip
    sheet.text(
        (wide / 2, top + 496), "Forgot your password?", face, 18, fill="#1a56c4", anchor="mm"
    )
    asked = [
        exact("Which user name is entered?", user),
        yes_no('Is the box "Stay signed in" ticked?', ticked),
        where("Where is the button for signing in? Draw a box around it.", button),
        where("Mark the field for the password.", fields["Password"]),
        exact("For which program or site is this sign-in?", app),
        absent("Which e-mail address is shown on this screen?"),
    ]
    turn = number // 5
    return sheet, [asked[turn % 6], asked[(turn + 1) % 6], asked[(turn + 4) % 6]]


def _window(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    app, face = APPS[number % len(APPS)], fonts.pick(rng, "sans")
    sheet = Sheet(rng.choice([(1100, 700), (1280, 800), (960, 640)]), "#f7f7f7")
    wide, high = sheet.size
    file = rng.choice(["budget.ods", "letter to Ben.odt", "garden.png", "song list.txt"])
    sheet.rect((0, 0, wide, 44), "#2f3b4a")
    sheet.text((wide / 2, 22), f"{file} - {app}", face, 20, fill="white", anchor="mm")
    sheet.rect((0, 44, wide, 84), "#e3e3e3")
    menus, x, spots = MENUS[: rng.randint(4, 7)], 20.0, {}
    for name in menus:
        broad = sheet.width(name, face, 20)
        spots[name] = (x, sheet.text((x, 64), name, face, 20, anchor="lm"))
        x += broad + 36
    opened = rng.choice(menus[:3])
    held, left = rng.sample(ENTRIES, rng.randint(4, 6)), spots[opened][0] - 10
    sheet.rect((left, 84, left + 230, 100 + 42 * len(held)), "white", "#777777")
    chosen, boxes = rng.choice(held), {}
    for row, name in enumerate(held):
        y = 92 + row * 42
        boxes[name] = (round(left + 2), y, round(left + 228), y + 42)
        if name == chosen:
            sheet.rect(boxes[name], "#2d6cdf")
        sheet.text((left + 18, y + 21), name, face, 20, anchor="lm",
                   fill="white" if name == chosen else "black")  # fmt: skip
    sheet.rect((0, high - 34, wide, high), "#e3e3e3")
    words = f"{rng.randint(120, 980)} words"
    sheet.text((16, high - 17), words, face, 17, anchor="lm")
    has = number // 5 % 4 < 2
    lacking = next(name for name in ENTRIES if name not in held)
    asked = [
        facts("Which entries does the open menu have?", *held),
        exact("Which entry of the menu is highlighted?", chosen),
        exact("Which file is open?", file),
        where(f'Draw a box around the menu entry "{rng.choice([chosen])}".', boxes[chosen]),
        count("How many entries does the open menu have?", len(held)),
        yes_no(f'Does the open menu have an entry "{held[0] if has else lacking}"?', has),
    ]
    turn = number // 5
    last = asked[5] if turn % 2 else absent("Which web address does this window show?")
    return sheet, [asked[turn % 6], asked[(turn + 2) % 6], last]
