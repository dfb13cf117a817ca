"""Charts with bars, lines and slices."""

from __future__ import annotations

import random

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.asking import number as a_number
from newcomer_set.fonts import Face, Fonts
from newcomer_set.sheet import Box, Sheet

THEMES = (
    ("Ice cream sold per day", ("Vanilla", "Lemon", "Mango", "Nut", "Mint", "Cherry"), "Plum"),
    ("Visitors of the zoo", ("April", "May", "June", "July", "August", "September"), "January"),
    ("Books read by the class", ("Anna", "Boris", "Chloe", "David", "Emma", "Felix"), "Zoe"),
    ("Rain in millimetres", ("Ostby", "Torne", "Halden", "Quill", "Perrin"), "London"),
    ("How we come to work", ("Bus", "Bicycle", "Car", "On foot", "Train"), "Boat"),
    ("Votes for a pet", ("Dog", "Cat", "Rabbit", "Parrot", "Turtle"), "Horse"),
    ("Phone calls per hour", ("8 am", "10 am", "noon", "2 pm", "4 pm", "6 pm"), "midnight"),
    ("Trees in the park", ("Oak", "Birch", "Maple", "Lime", "Ash"), "Palm"),
    ("Cups of coffee", ("Mon", "Tue", "Wed", "Thu", "Fri"), "Sun"),
)  # fmt: skip
PAINTS = ("#3b6fb6", "#d9822b", "#4c9f50", "#b23a48", "#7d5ba6", "#2a9d8f")
SIZES = ((800, 600), (640, 480), (1000, 620), (700, 700), (1200, 700), (560, 420))
Drawn = tuple[Sheet, list[Question]]


def chart(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """Bars, a line or a pie in turn."""
    title, names, lacking = THEMES[(number + number // 9) % len(THEMES)]
    names = names[: rng.randint(4, len(names))]
    face = fonts.pick(rng, "sans", "sans", "serif")
    sheet = Sheet(SIZES[number % len(SIZES)], rng.choice(["white", "#fbfbf8"]), zoom=2)
    wide = sheet.size[0]
    size = wide / 36
    large = sheet.fitting(title, face, size * 1.6, wide - 60, bold=True)
    head = sheet.text((wide / 2, size * 1.9), title, face, large, bold=True, anchor="mm")
    maker = (_bars, _lines, _pie)[number % 3]
    asked = maker(number, rng, (sheet, face, size), list(names))
    asked += [
        exact("What is the title of the chart?", title, skill="reading"),
        absent(f"What is the value for {lacking} in this chart?"),
        where("Draw a box around the title of the chart.", head),
        facts("Which names or labels are shown in the chart? List all.", *names),
    ]
    turn = number // 3
    many = 2 + number % 2
    return sheet, [asked[(turn * 2 + step * 3) % len(asked)] for step in range(many)]


def _axes(paper: tuple[Sheet, Face, float], top: int) -> tuple[float, float, float, float]:
    """Gridlines with numbers up to `top`; the box that the chart fills."""
    sheet, face, size = paper
    wide, high = sheet.size
    left, upper, right, lower = wide * 0.1, size * 4, wide - 30, high - size * 3
    for step in range(6):
        y = lower - (lower - upper) * step / 5
        sheet.line((left, y, right, y), "#555555" if step == 0 else "#d5d5d5", 1)
        sheet.text((left - 8, y), str(top * step // 5), face, size * 0.85, anchor="rm")
    return left, upper, right, lower


def _spread(rng: random.Random, many: int) -> tuple[list[int], int]:
    """Values that lie well apart, and the top of their axis."""
    unit = rng.choice([1, 2, 5, 10])
    return [value * unit for value in rng.sample(range(8, 100, 6), many)], 100 * unit


def _bars(
    number: int, rng: random.Random, paper: tuple[Sheet, Face, float], names: list[str]
) -> list[Question]:
    sheet, face, size = paper
    values, top = _spread(rng, len(names))
    left, upper, right, lower = _axes(paper, top)
    room, told = (right - left) / len(names), number % 2 == 0
    paint, boxes = rng.choice(PAINTS), list[Box]()
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = left + room * (at + 0.2), lower - (lower - upper) * value / top
        boxes.append(sheet.rect((x, y, x + room * 0.6, lower), paint))
        fit = sheet.fitting(name, face, size, room * 0.95)
        sheet.text((x + room * 0.3, lower + size), name, face, fit, anchor="mm")
        if told:
            sheet.text((x + room * 0.3, y - size * 0.7), str(value), face, size * 0.9, anchor="mm")
    best = values.index(max(values))
    asked = _compared(number, rng, names, values, 0 if told else top)
    return [*asked, where(f"Mark the bar of {names[best]}.", boxes[best]),
            count("How many bars are there?", len(names))]  # fmt: skip


def _lines(
    number: int, rng: random.Random, paper: tuple[Sheet, Face, float], names: list[str]
) -> list[Question]:
    sheet, face, size = paper
    values, top = _spread(rng, len(names))
    if number % 2:
        values = sorted(values, reverse=number % 4 == 3)
    left, upper, right, lower = _axes(paper, top)
    room, paint, flat = (right - left) / len(names), rng.choice(PAINTS), list[float]()
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = left + room * (at + 0.5), lower - (lower - upper) * value / top
        flat += [x, y]
        sheet.oval((x - 6, y - 6, x + 6, y + 6), paint)
        fit = sheet.fitting(name, face, size, room * 0.95)
        sheet.text((x, lower + size), name, face, fit, anchor="mm")
    sheet.line(flat, paint, 3)
    asked = _compared(number, rng, names, values, top)
    if number % 2:
        falls = number % 4 == 3
        asked.append(exact("Does the line go up or down from left to right?",
                           *(("down", "it goes down") if falls else ("up", "it goes up")),
                           skill="comparing"))  # fmt: skip
    return [*asked, count("How many points does the line have?", len(names))]


def _pie(
    number: int, rng: random.Random, paper: tuple[Sheet, Face, float], names: list[str]
) -> list[Question]:
    sheet, face, size = paper
    wide, high = sheet.size
    shares = _shares(rng, len(names))
    span = min(wide * 0.52, high - size * 5.5)
    box = (size * 1.5, size * 4, size * 1.5 + span, size * 4 + span)
    start = -90.0
    for at, (name, share) in enumerate(zip(names, shares, strict=True)):
        sheet.slice(box, start, start + share * 3.6, PAINTS[at])
        start += share * 3.6
        x, y = size * 3 + span, size * 5 + at * size * 2.2
        sheet.rect((x, y, x + size, y + size), PAINTS[at])
        sheet.text((x + size * 1.6, y + size / 2), f"{name} {share} %", face, size, anchor="lm")
    half = max(shares) > 50
    asked = _compared(number, rng, names, shares, 0)
    return [
        *asked,
        count("How many slices does the pie have?", len(names)),
        yes_no("Does one slice take more than half of the pie?", half, skill="comparing"),
    ]


def _shares(rng: random.Random, many: int) -> list[int]:
    """Different whole shares that make 100."""
    while True:
        cuts = sorted(rng.sample(range(4, 97, 2), many - 1))
        shares = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(shares) >= 4 and len(set(shares)) == many:
            return shares


def _compared(
    number: int, rng: random.Random, names: list[str], values: list[int], top: int
) -> list[Question]:
    """Questions that each chart has; with `top`, values are read off an axis that ends there."""
    first, second = rng.sample(range(len(names)), 2)
    if (values[first] > values[second]) != (number // 3 % 2 == 0):
        first, second = second, first
    best, least = names[values.index(max(values))], names[values.index(min(values))]
    return [
        exact("Which one is the highest?" if number % 3 else "Which bar is the tallest?", best,
              skill="comparing") if number % 3 < 2 else
        exact("Which slice is the largest?", best, skill="comparing"),
        a_number(f"What is the value for {names[first]}?" if not top else
                 f"About how much is the value for {names[first]}?", values[first],
                 round(max(0.1, 0.03 * top / values[first]), 3) if top else 0.0),
        yes_no(f"Is the value for {names[first]} larger than the value for {names[second]}?",
               values[first] > values[second], skill="comparing"),
        exact("What is the label of the smallest value?", least, skill="comparing"),
    ]  # fmt: skip
