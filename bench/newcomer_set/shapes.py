"""Shapes and colours: how many, which, where."""

from __future__ import annotations

import math
import random

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.fonts import Fonts
from newcomer_set.sheet import COLOURS, Box, Sheet, names_of

KINDS = ("circle", "square", "triangle", "star", "hexagon", "diamond")
PAINTS = ("red", "blue", "green", "yellow", "purple", "orange", "black")
SIZES = ((600, 600), (800, 500), (500, 400), (1000, 800), (640, 900), (320, 320))


def outline(kind: str, centre: tuple[float, float], reach: float) -> list[tuple[float, float]]:
    """The corners of a shape around a centre."""
    x, y = centre
    if kind == "square":
        half = reach * 0.85
        return [
            (x - half, y - half),
            (x + half, y - half),
            (x + half, y + half),
            (x - half, y + half),
        ]
    corners = {"triangle": 3, "hexagon": 6, "diamond": 4, "star": 10}[kind]
    points: list[tuple[float, float]] = []
    for step in range(corners):
        angle = math.tau * step / corners - math.pi / 2
        far = reach * (0.42 if kind == "star" and step % 2 else 1)
        slim = 0.7 if kind == "diamond" else 1
        points.append((x + far * slim * math.cos(angle), y + far * math.sin(angle)))
    return points


def put(sheet: Sheet, kind: str, centre: tuple[float, float], reach: float, colour: str) -> Box:
    """Draw a shape and return its box."""
    x, y = centre
    if kind == "circle":
        return sheet.oval((x - reach, y - reach, x + reach, y + reach), COLOURS[colour])
    return sheet.shape(outline(kind, centre, reach), COLOURS[colour])


Spot = tuple[str, str, float, float, Box]


def _scattered(sheet: Sheet, rng: random.Random, many: int) -> list[Spot]:
    """Shapes on a grid with some play, so that none touches another."""
    wide, high = sheet.size
    columns = max(2, round(math.sqrt(many * wide / high)))
    rows = math.ceil(many / columns)
    step_x, step_y = wide / columns, high / rows
    spots: list[Spot] = []
    kinds, paints = rng.sample(KINDS, min(4, many)), rng.sample(PAINTS, min(4, many))
    for cell in rng.sample(range(columns * rows), many):
        reach = min(step_x, step_y) * rng.uniform(0.28, 0.4)
        play_x, play_y = step_x / 2 - reach - 3, step_y / 2 - reach - 3
        x = (cell % columns + 0.5) * step_x + rng.uniform(-1, 1) * play_x
        y = (cell // columns + 0.5) * step_y + rng.uniform(-1, 1) * play_y
        kind, paint = rng.choice(kinds), rng.choice(paints)
        spots.append((kind, paint, x, y, put(sheet, kind, (x, y), reach, paint)))
    return spots


def shapes(number: int, rng: random.Random, fonts: Fonts) -> tuple[Sheet, list[Question]]:
    """One shape, a pair, or a handful to a dozen."""
    del fonts  # nothing is printed
    sheet = Sheet(SIZES[number % len(SIZES)], rng.choice(["white", "white", "#f0eee6"]), zoom=3)
    if number % 5 == 0:
        return sheet, _single(number, sheet, rng)
    if number % 5 == 1:
        return sheet, _pair(number, sheet, rng)
    many = rng.randint(3, 6) if number % 5 < 4 else rng.randint(7, 12)
    spots = _scattered(sheet, rng, many)
    kind, paint, *_ = rng.choice(spots)
    same = [spot for spot in spots if spot[0] == kind]
    unseen = next(paint for paint in (*PAINTS, "pink") if paint not in {spot[1] for spot in spots})
    has = number % 2 == 0
    asked = [
        count("How many shapes are there?", many),
        count(f"How many {kind}s can you see?", len(same)),
        where(f"Find every {kind} and draw a box around each.", *(spot[4] for spot in same)),
        count(f"How many {paint} shapes are there?", sum(spot[1] == paint for spot in spots)),
        facts("Which colours do the shapes have?", *sorted({
            "|".join(names_of(spot[1])) for spot in spots
        }), skill="naming"),
        yes_no(f"Is there any {paint if has else unseen} shape in the picture?", has),
        absent(f"Where is the {unseen} shape?"),
        facts("Which kinds of shapes are there?", *sorted({_kind(spot[0]) for spot in spots}),
              skill="naming"),
    ]  # fmt: skip
    turn = number // 5 * 3 + number % 5 - 2
    return sheet, [asked[(turn + step * 3) % len(asked)] for step in range(2 + (number % 3 == 0))]


def _kind(kind: str) -> str:
    more = {"square": ("rectangle", "rectangles"), "diamond": ("rhombus", "rhombuses")}
    return "|".join((kind, f"{kind}s", *more.get(kind, ())))


def _names(kind: str) -> list[str]:
    held = [kind, *(["rhombus"] if kind == "diamond" else [])]
    return [f"{article}{name}" for name in held for article in ("", "a ", "the ")]


def _single(number: int, sheet: Sheet, rng: random.Random) -> list[Question]:
    kind, paint = KINDS[number // 5 % len(KINDS)], PAINTS[number // 5 * 2 % len(PAINTS)]
    wide, high = sheet.size
    box = put(sheet, kind, (wide * rng.uniform(0.4, 0.6), high / 2), min(wide, high) * 0.33, paint)
    told = number // 5 % 4 == 0
    other = KINDS[(number // 5 + 2) % len(KINDS)]
    asked = [
        exact("Which shape is this?", *_names(kind), f"{paint} {kind}", f"a {paint} {kind}",
              f"an {paint} {kind}", skill="naming"),
        exact("What colour is the shape?", *names_of(paint), skill="naming"),
        yes_no(f"Is this a {kind if told else other}?", told, skill="naming"),
        where("Draw a box around the shape.", box),
    ]  # fmt: skip
    turn = number // 5
    return [asked[turn % 2], asked[2 + turn % 2]]


def _pair(number: int, sheet: Sheet, rng: random.Random) -> list[Question]:
    wide, high = sheet.size
    kinds, paints = rng.sample(KINDS, 2), rng.sample(PAINTS, 2)
    beside = number // 5 % 2 == 0
    places = [(wide * 0.27, high * 0.5), (wide * 0.73, high * 0.5)]
    if not beside:
        places = [(wide * 0.5, high * 0.25), (wide * 0.5, high * 0.75)]
    reach = min(wide, high) * 0.2
    scale = [1.0, rng.choice([0.55, 0.6])]
    rng.shuffle(scale)
    boxes = [put(sheet, kinds[at], places[at], reach * scale[at], paints[at]) for at in range(2)]
    large = scale.index(1.0)
    sides = ("left", "right") if beside else ("top", "bottom")
    told = number // 5 % 3 != 1
    other = sides[0] if told else sides[1]
    side = (exact(f"Is the {kinds[1]} on the left or on the right?", "right", "on the right",
                  "the right") if beside else
            exact(f"Is the {kinds[1]} at the top or at the bottom?", "bottom", "at the bottom",
                  "the bottom"))  # fmt: skip
    asked = [
        side,
        yes_no(f"Is the {kinds[0]} {'on the' if beside else 'at the'} {other}?", told),
        exact(f"What colour is the {kinds[1]}?", *names_of(paints[1]), skill="naming"),
        where(f"Where is the {kinds[0]}? Draw a box around it.", boxes[0]),
        exact("Which shape is larger?", *_names(kinds[large]), skill="comparing"),
    ]
    turn = number // 5
    return [asked[turn % 5], asked[(turn + 1) % 5], asked[(turn + 3) % 5]]
