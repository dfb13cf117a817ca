"""Simple objects, drawn from ovals, boxes and polygons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.fonts import Fonts
from newcomer_set.shapes import outline
from newcomer_set.sheet import COLOURS, Box, Sheet, around, names_of

GLASS = "#dff1ff"
Pen = Callable[[Sheet, float, float, float, str], Box]
"""Draws an object of a colour around (x, y), at most `s` to each side; returns its box."""


def _house(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    walls = sheet.rect((x - s * 0.7, y - s * 0.1, x + s * 0.7, y + s * 0.9), paint)
    roof = sheet.shape([(x - s * 0.9, y - s * 0.1), (x, y - s * 0.85), (x + s * 0.9, y - s * 0.1)],
                       "#6b3a2e")  # fmt: skip
    sheet.rect((x - s * 0.15, y + s * 0.4, x + s * 0.15, y + s * 0.9), "#3b2a1e")
    for side in (-0.45, 0.45):
        sheet.rect((x + s * (side - 0.13), y + s * 0.1, x + s * (side + 0.13), y + s * 0.36),
                   GLASS, "#333333", width=2)  # fmt: skip
    return around(walls, roof)


def _tree(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    trunk = sheet.rect((x - s * 0.12, y + s * 0.2, x + s * 0.12, y + s * 0.95), "#7a4a21")
    crowns = [sheet.oval((x + s * (dx - 0.42), y + s * (dy - 0.42), x + s * (dx + 0.42),
                          y + s * (dy + 0.42)), paint)
              for dx, dy in ((-0.3, -0.05), (0.3, -0.05), (0, -0.48))]  # fmt: skip
    return around(trunk, *crowns)


def _car(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    body = sheet.rect(
        (x - s * 0.95, y - s * 0.05, x + s * 0.95, y + s * 0.4), paint, radius=s * 0.1
    )
    cab = sheet.shape([(x - s * 0.55, y), (x - s * 0.35, y - s * 0.42), (x + s * 0.3, y - s * 0.42),
                       (x + s * 0.6, y)], paint)  # fmt: skip
    sheet.shape([(x - s * 0.42, y - s * 0.04), (x - s * 0.29, y - s * 0.34),
                 (x - s * 0.05, y - s * 0.34), (x - s * 0.05, y - s * 0.04)], GLASS)  # fmt: skip
    sheet.shape([(x + s * 0.05, y - s * 0.04), (x + s * 0.05, y - s * 0.34),
                 (x + s * 0.26, y - s * 0.34), (x + s * 0.46, y - s * 0.04)], GLASS)  # fmt: skip
    wheels = []
    for side in (-0.5, 0.5):
        spot = (x + s * (side - 0.2), y + s * 0.2, x + s * (side + 0.2), y + s * 0.6)
        wheels.append(sheet.oval(spot, "#1a1a1a"))
        sheet.oval((x + s * (side - 0.08), y + s * 0.32, x + s * (side + 0.08), y + s * 0.48),
                   "#c9c9c9")  # fmt: skip
    return around(body, cab, *wheels)


def _sun(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    ends: list[tuple[float, float, float, float]] = []
    for step in range(12):
        angle = math.tau * step / 12
        far = (x + s * 0.95 * math.cos(angle), y + s * 0.95 * math.sin(angle))
        near = (x + s * 0.62 * math.cos(angle), y + s * 0.62 * math.sin(angle))
        sheet.line((*near, *far), paint, s * 0.09)
        ends.append((*far, *far))
    sheet.oval((x - s * 0.5, y - s * 0.5, x + s * 0.5, y + s * 0.5), paint)
    return around(*ends)


def _cup(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    handle = (x + s * 0.25, y - s * 0.25, x + s * 0.85, y + s * 0.35)
    sheet.arc(handle, -100, 100, paint, s * 0.13)
    cup = sheet.shape([(x - s * 0.65, y - s * 0.5), (x + s * 0.55, y - s * 0.5),
                       (x + s * 0.4, y + s * 0.6), (x - s * 0.5, y + s * 0.6)], paint)  # fmt: skip
    top = sheet.oval((x - s * 0.65, y - s * 0.62, x + s * 0.55, y - s * 0.38), "#4a2d18", paint, 3)
    return around(handle, cup, top)


def _flower(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    stem = sheet.rect((x - s * 0.05, y, x + s * 0.05, y + s * 0.95), "#2f7d32")
    leaf = sheet.oval((x, y + s * 0.45, x + s * 0.4, y + s * 0.65), "#2f7d32")
    petals = []
    for step in range(6):
        angle = math.tau * step / 6
        px, py = x + s * 0.36 * math.cos(angle), y - s * 0.35 + s * 0.36 * math.sin(angle)
        petals.append(
            sheet.oval((px - s * 0.24, py - s * 0.24, px + s * 0.24, py + s * 0.24), paint)
        )
    sheet.oval((x - s * 0.22, y - s * 0.57, x + s * 0.22, y - s * 0.13), "#f7c313", "#c98f0a", 2)
    return around(stem, leaf, *petals)


def _star(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    return sheet.shape(outline("star", (x, y), s * 0.95), paint)


def _heart(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    points = []
    for step in range(60):
        t = math.tau * step / 60
        dx = 16 * math.sin(t) ** 3
        dy = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x + dx * s / 18, y - dy * s / 18))
    return sheet.shape(points, paint)


def _umbrella(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    sheet.line((x, y - s * 0.8, x, y + s * 0.75), "#4a4a4a", s * 0.07)
    hook = (x - s * 0.3, y + s * 0.6, x + s * 0.035, y + s * 0.9)
    sheet.arc(hook, 0, 180, "#4a4a4a", s * 0.07)
    dome = (x - s * 0.9, y - s * 0.7, x + s * 0.9, y + s * 0.9)
    sheet.pen.pieslice([round(v * sheet.zoom) for v in dome], 180, 360, paint)
    for cell in range(3):
        left = x - s * 0.9 + cell * s * 0.6
        sheet.oval((left, y - s * 0.03, left + s * 0.6, y + s * 0.23), paint)
    return around((dome[0], y - s * 0.8, dome[2], y), hook)


def _fish(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    fins = [(x + s * 0.4, y), (x + s * 0.95, y - s * 0.42), (x + s * 0.95, y + s * 0.42)]
    tail = sheet.shape(fins, paint)
    body = sheet.oval((x - s * 0.9, y - s * 0.45, x + s * 0.6, y + s * 0.45), paint)
    sheet.oval((x - s * 0.65, y - s * 0.2, x - s * 0.45, y), "white")
    sheet.oval((x - s * 0.59, y - s * 0.14, x - s * 0.51, y - s * 0.06), "black")
    sheet.arc((x - s * 0.6, y - s * 0.4, x - s * 0.1, y + s * 0.4), -60, 60, "#333333", s * 0.03)
    return around(tail, body)


def _boat(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    hull = sheet.shape([(x - s * 0.9, y + s * 0.35), (x + s * 0.9, y + s * 0.35),
                        (x + s * 0.55, y + s * 0.8), (x - s * 0.55, y + s * 0.8)],
                       paint)  # fmt: skip
    sheet.rect((x - s * 0.04, y - s * 0.9, x + s * 0.04, y + s * 0.35), "#5b4a3a")
    sail = sheet.shape([(x + s * 0.08, y - s * 0.85), (x + s * 0.75, y + s * 0.2),
                        (x + s * 0.08, y + s * 0.2)], "white", "#555555")  # fmt: skip
    return around(hull, sail, (x - s * 0.04, y - s * 0.9, x, y))


def _balloon(sheet: Sheet, x: float, y: float, s: float, paint: str) -> Box:
    ball = sheet.oval((x - s * 0.5, y - s * 0.9, x + s * 0.5, y + s * 0.3), paint)
    sheet.shape([(x, y + s * 0.26), (x - s * 0.1, y + s * 0.4), (x + s * 0.1, y + s * 0.4)], paint)
    sheet.line((x, y + s * 0.4, x + s * 0.1, y + s * 0.65, x - s * 0.05, y + s * 0.9), "#444444", 3)
    return around(ball, (x - 3, y, x + s * 0.1, y + s * 0.9))


THINGS: dict[str, tuple[Pen, tuple[str, ...], tuple[str, ...]]] = {
    "house": (_house, ("yellow", "pink", "blue"), ("home", "cottage")),
    "tree": (_tree, ("green",), ()),
    "car": (_car, ("red", "blue", "green"), ("automobile",)),
    "sun": (_sun, ("yellow", "orange"), ()),
    "cup": (_cup, ("blue", "red", "green"), ("mug", "coffee cup", "tea cup", "teacup")),
    "flower": (_flower, ("red", "pink", "purple"), ()),
    "star": (_star, ("yellow", "red", "blue"), ()),
    "heart": (_heart, ("red", "pink"), ()),
    "umbrella": (_umbrella, ("purple", "red", "green"), ()),
    "fish": (_fish, ("orange", "blue"), ()),
    "boat": (_boat, ("brown", "red"), ("sailboat", "sailing boat", "ship")),
    "balloon": (_balloon, ("red", "blue", "orange"), ()),
}
"""Name -> how it is drawn, its colours, its other names."""


def objects(number: int, rng: random.Random, fonts: Fonts) -> tuple[Sheet, list[Question]]:
    """One object, or for every second number three to five of them."""
    del fonts  # nothing is printed
    sheet = Sheet(rng.choice([(500, 500), (640, 480), (900, 600), (360, 360)]),
                  rng.choice(["white", "white", "#eaf4fb"]), zoom=3)  # fmt: skip
    return sheet, (_several if number % 2 else _alone)(number, sheet, rng)


def _names(name: str) -> list[str]:
    held = (name, *THINGS[name][2])
    return [*held, *(_a(word) for word in held), f"the {name}"]


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _alone(number: int, sheet: Sheet, rng: random.Random) -> list[Question]:
    name = list(THINGS)[number // 2 % len(THINGS)]
    pen, paints, _ = THINGS[name]
    paint = rng.choice(paints)
    wide, high = sheet.size
    box = pen(sheet, wide / 2, high / 2, min(wide, high) * 0.4, COLOURS[paint])
    told = number % 4 == 0
    other = list(THINGS)[(number // 2 + 3) % len(THINGS)]
    asked = [
        yes_no(f"Is this a picture of {_a(name if told else other)}?", told, skill="naming"),
        exact(f"What colour is the {name}?", *names_of(paint), skill="naming"),
        where(f"Draw a box around the {name}.", box),
    ]
    coloured = f"{paint} {name}"
    named = exact("What is this?", *_names(name), coloured, _a(coloured), skill="naming")
    turn = number // 2
    return [named, asked[turn % 3]] if turn % 4 else [asked[turn // 4 % 2], asked[2]]


def _several(number: int, sheet: Sheet, rng: random.Random) -> list[Question]:
    wide, high = sheet.size
    many = rng.randint(3, 5)
    chosen = rng.sample(list(THINGS), many - 1)
    chosen.insert(rng.randrange(many), chosen[0])  # one of them is there twice
    columns, rows = (3, 2) if wide > high else (2, 3)
    spots, reach = [], min(wide / columns, high / rows) * 0.42
    for name, cell in zip(chosen, rng.sample(range(6), many), strict=True):
        x, y = (cell % columns + 0.5) * wide / columns, (cell // columns + 0.5) * high / rows
        paint = rng.choice(THINGS[name][1])
        spots.append((name, paint, x, y, THINGS[name][0](sheet, x, y, reach, COLOURS[paint])))
    double = max(chosen, key=chosen.count)
    single = next(spot for spot in spots if chosen.count(spot[0]) == 1)
    lacking = [name for name in THINGS if name not in chosen]
    turn = number // 2
    has = turn % 4 < 2
    shown = rng.choice(chosen) if has else rng.choice(lacking)
    asked = [
        count("How many things are in the picture?", many),
        facts("What can you see in the picture?", *sorted({_told(name) for name in chosen}),
              skill="naming"),
        where(f"Where is the {single[0]}? Draw a box around it.", single[4]),
        yes_no(f"Is there {_a(shown)} in the picture?", has),
        count(f"How many times do you see the {double}?", chosen.count(double)),
        exact(f"What colour is the {single[0]}?", *names_of(single[1]), skill="naming"),
        absent(f"Where in the picture is the {rng.choice(lacking)}?"),
        where(f"Draw a box around each {double}.",
              *(spot[4] for spot in spots if spot[0] == double)),
    ]  # fmt: skip
    return [asked[turn % 8], asked[(turn + 3) % 8], asked[3 if turn % 2 else 6]]


def _told(name: str) -> str:
    return "|".join((name, name if name == "fish" else f"{name}s", *THINGS[name][2]))
