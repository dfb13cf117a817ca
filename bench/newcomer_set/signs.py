"""Arrows, road signs, door signs and labels on goods."""

from __future__ import annotations

import math
import random

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.asking import number as a_number
from newcomer_set.fonts import Fonts
from newcomer_set.shapes import outline
from newcomer_set.sheet import COLOURS, Box, Sheet, names_of

Drawn = tuple[Sheet, list[Question]]

TURNS = {"right": 0, "down": 90, "left": 180, "up": 270}
WAYS = {
    "right": ("right", "to the right", "it points right", "rightwards"),
    "left": ("left", "to the left", "it points left", "leftwards"),
    "up": ("up", "upwards", "upward", "to the top", "it points up"),
    "down": ("down", "downwards", "downward", "to the bottom", "it points down"),
}


def sign(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """An arrow, a signpost, a road sign, a door sign or a label in turn."""
    makers = (_arrow, _road, _door, _post, _label)
    return makers[number % 5](number // 5, rng, fonts)


def _pointer(sheet: Sheet, centre: tuple[float, float], reach: float, way: str, colour: str) -> Box:
    turn = math.radians(TURNS[way])
    corners = [(-1, -0.28), (0.1, -0.28), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.28), (-1, 0.28)]
    points = [
        (centre[0] + reach * (x * math.cos(turn) - y * math.sin(turn)),
         centre[1] + reach * (x * math.sin(turn) + y * math.cos(turn)))
        for x, y in corners
    ]  # fmt: skip
    return sheet.shape(points, colour)


def _arrow(turn: int, rng: random.Random, fonts: Fonts) -> Drawn:
    del fonts  # nothing is printed
    size = rng.choice([(500, 500), (640, 420), (800, 600)])
    sheet = Sheet(size, rng.choice(["white", "#eef2e6"]), zoom=3)
    wide, high = sheet.size
    way, colour = (
        ("left", "up", "right", "down", "left")[turn],
        rng.choice(["black", "red", "blue"]),
    )
    reach = min(wide, high) * 0.32
    box = _pointer(sheet, (wide / 2, high / 2), reach, way, COLOURS[colour])
    asked = [
        exact("Which way does the arrow point?", *WAYS[way], skill="naming"),
        exact("What colour is the arrow?", *names_of(colour), skill="naming"),
        yes_no("Does the arrow point to the left?", way == "left"),
        where("Mark the arrow with a box.", box),
    ]
    return sheet, [asked[0], asked[1 + turn % 3], absent("Which word is on the arrow?")][
        : 3 - turn % 2
    ]


def _road(turn: int, rng: random.Random, fonts: Fonts) -> Drawn:
    face = fonts.pick(rng, "sign")
    sky = ("#9fc6e8", "#cfd8d0", "#b9d3ec", "#d9d4c4", "#a9cbe0")[turn]
    sheet = Sheet((500 + 60 * turn, 560), sky, zoom=3)
    x, y, reach = sheet.size[0] / 2, 220.0, 160.0
    sheet.rect((x - 9, y, x + 9, 560), "#6d6d6d")
    round_ = (x - reach, y - reach, x + reach, y + reach)
    if turn in (0, 3):  # a limit
        limit = 30 if turn == 0 else 80
        sheet.oval(round_, "white", COLOURS["red"], 32)
        sheet.text((x, y), str(limit), face, 130, bold=True, anchor="mm")
        return sheet, [
            a_number("What is the speed limit on this sign?", limit),
            exact("What colour is the ring around the number?", "red", skill="naming"),
            yes_no("Is the speed limit 80?", limit == 80),
        ][: 2 + turn // 3]
    if turn == 1:
        corners = [(x + reach * math.cos(a), y + reach * math.sin(a))
                   for a in (math.tau * (step + 0.5) / 8 for step in range(8))]  # fmt: skip
        box = sheet.shape(corners, COLOURS["red"])
        sheet.text((x, y), "STOP", face, 96, fill="white", bold=True, anchor="mm")
        return sheet, [exact("What does the sign say?", "STOP", skill="reading"),
                       count("How many corners does the red sign have?", 8),
                       where("Draw a box around the red sign, without its post.", box)]  # fmt: skip
    if turn == 2:
        sheet.oval(round_, COLOURS["red"])
        sheet.rect((x - 110, y - 26, x + 110, y + 26), "white")
        return sheet, [exact("What colour is the bar on the sign?", "white", skill="naming"),
                       yes_no("May a car enter the street at this sign?", False),
                       absent("Which words are printed on this sign?")]  # fmt: skip
    sheet.shape(outline("triangle", (x, y + 40), 200), COLOURS["red"])
    sheet.shape(outline("triangle", (x, y + 40), 140), "white")
    sheet.text((x, y + 30), "!", face, 150, bold=True, anchor="mm")
    return sheet, [exact("Which shape does the sign have?", "triangle", "a triangle", "triangular",
                         skill="naming"),
                   exact("Which mark is printed inside the sign?", "!", "exclamation mark",
                         "an exclamation mark", "exclamation point", "an exclamation point",
                         skill="naming")]  # fmt: skip


DOORS = (
    ("PUSH", "#ffffff", "#1d3f8f"), ("Staff only", "#ffffff", "#8f1d1d"),
    ("NO PARKING", "#c01818", "#ffffff"), ("Quiet please", "#1c1c1c", "#f3e9c8"),
    ("WET PAINT", "#111111", "#f7d313"),
)  # fmt: skip


def _door(turn: int, rng: random.Random, fonts: Fonts) -> Drawn:
    words, ink, paper = DOORS[turn]
    face = fonts.pick(rng, "sign", "sans")
    sheet = Sheet(rng.choice([(700, 480), (900, 600), (600, 720)]), "#b7a78f", zoom=2)
    wide, high = sheet.size
    plate = sheet.rect((wide * 0.14, high * 0.25, wide * 0.86, high * 0.75), paper, "#444444",
                       width=4, radius=18)  # fmt: skip
    size = sheet.fitting(words, face, high * 0.2, wide * 0.6, bold=True)
    box = sheet.text((wide / 2, high / 2), words, face, size, fill=ink, bold=True, anchor="mm")
    asked: tuple[Question, ...] = (
        exact("Should I push or pull this door?", "push"),
        yes_no("May guests go in here?", False),
        yes_no("Am I allowed to park here?", False),
        where("Where are the words? Draw a box around them.", box),
        where("Draw a box around the yellow sign.", plate),
    )
    more = [absent("Which phone number is on the sign?")] if turn % 2 else []
    return sheet, [exact("What does the sign say?", words, skill="reading"), asked[turn], *more]


POSTS = (
    (("Beach", "left", 2), ("Harbour", "right", 5)),
    (("Museum", "right", 1), ("Castle", "right", 3), ("Station", "left", 4)),
    (("Lake", "left", 7), ("Mill", "right", 2), ("Cave", "left", 9)),
    (("Toilets", "right", 0), ("Tickets", "left", 0)),
    (("Gate A", "left", 0), ("Gate B", "right", 0), ("Exit", "left", 0)),
)  # fmt: skip


def _post(turn: int, rng: random.Random, fonts: Fonts) -> Drawn:
    held, face = POSTS[turn], fonts.pick(rng, "sign", "sans")
    sheet = Sheet((760, 620), ("#bcd8ee", "#d6e4c8")[turn % 2], zoom=2)
    paint = ("#2b6b3f", "#1d3f8f", "#6b4423", "#333333", "#1d3f8f")[turn]
    sheet.rect((368, 40, 392, 620), "#5b4a3a")
    for row, (name, way, far) in enumerate(held):
        y, side = 70 + row * 150, 1 if way == "right" else -1
        edges = [(380 - side * 200, y), (380 + side * 200, y), (380 + side * 270, y + 55),
                 (380 + side * 200, y + 110), (380 - side * 200, y + 110)]  # fmt: skip
        sheet.shape(edges, paint)
        words = f"{name}  {far} km" if far else name
        size = sheet.fitting(words, face, 52, 350, bold=True)
        sheet.text((380, y + 55), words, face, size, fill="white", bold=True, anchor="mm")
    first, second = held[0], held[1]
    told = turn % 2 == 0
    asked = [
        exact(f"In which direction is \"{first[0]}\"?", *WAYS[first[1]]),
        yes_no(f"Do I go {second[1] if told else first[1]} for \"{second[0]}\"?",
               told or first[1] == second[1]),
    ]  # fmt: skip
    if turn % 2 == 0:
        asked.insert(0, absent("In which direction is the airport?"))
    elif first[2]:
        asked.append(facts(f'How far is it to "{second[0]}"?', str(second[2])))
    else:
        asked.append(count("How many arms does the signpost have?", len(held)))
    return sheet, asked


LABELS = (
    ("Apricot jam", "340 g", "Sun Hill Farm", "7 May 2028"),
    ("Olive oil", "500 ml", "Casa Verdi", "12 June 2027"),
    ("Cough syrup", "150 ml", "Arnsen Labs", "1 March 2028"),
    ("Green tea", "80 g", "Lotus House", "30 August 2027"),
    ("Wood glue", "250 ml", "Stickwell", "15 April 2029"),
)  # fmt: skip


def _label(turn: int, rng: random.Random, fonts: Fonts) -> Drawn:
    name, much, maker, until = LABELS[turn]
    face, plain = fonts.pick(rng, "serif", "sign"), fonts.pick(rng, "sans")
    sheet = Sheet(rng.choice([(560, 700), (700, 560), (480, 480)]), "#c8b79c", zoom=2)
    wide, high = sheet.size
    ink = ("#8a3b12", "#3d5b1e", "#1b3c70", "#215e3c", "#5c3a16")[turn]
    sheet.rect((wide * 0.1, high * 0.1, wide * 0.9, high * 0.9), "#fffaf0", ink, width=6, radius=20)
    size = sheet.fitting(name, face, high * 0.13, wide * 0.66, bold=True)
    head = sheet.text((wide / 2, high * 0.3), name, face, size, fill=ink, bold=True, anchor="mm")
    rows = (maker, f"Contents: {much}", f"Best before {until}")
    for row, words in enumerate(rows):
        fit = sheet.fitting(words, plain, high * 0.05, wide * 0.68)
        sheet.text((wide / 2, high * (0.5 + row * 0.12)), words, plain, fit, anchor="mm")
    asked = [
        exact("What is in this package?", name, name.split()[-1]),
        facts("How much is in it?", "|".join((much, much.replace(" ", "")))),
        exact("Who made this product?", maker),
        facts("Until when can it be used?", until),
        absent("What is the price on this label?"),
        where("Draw a box around the name of the product.", head),
    ]
    return sheet, [asked[turn % 6], asked[(turn + 2) % 6], asked[(turn + 4) % 6]]
