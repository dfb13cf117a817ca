"""Tables of a few rows, drawn with lines, stripes or white space."""

from __future__ import annotations

import random

from newcomer_set.asking import Question, absent, count, exact, facts, where, yes_no
from newcomer_set.asking import number as a_number
from newcomer_set.fonts import Fonts
from newcomer_set.sheet import Sheet

THEMES = (
    ("Boat trips", ("Boat", "Seats", "Price", "Leaves at"),
     ("Heron", "Dolphin", "Marina", "Old Anna", "Swift", "Calypso", "Tern")),
    ("Sports day", ("Pupil", "Jump (cm)", "Run (s)", "Team"),
     ("Amir", "Bella", "Conrad", "Dilek", "Erik", "Fay", "Gustav", "Helga")),
    ("Rooms to let", ("Room", "Beds", "Price", "Floor"),
     ("Lake", "Garden", "Tower", "Attic", "Orchard", "Cellar")),
    ("Weather this week", ("Day", "High", "Low", "Sky"),
     ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")),
    ("Stock", ("Article", "In stock", "Ordered", "Shelf"),
     ("Hammers", "Nails", "Saws", "Ladders", "Paint", "Brushes", "Gloves", "Tape")),
    ("Staff list", ("Name", "Age", "Years here", "Town"),
     ("Lena Roth", "Paul Kerr", "Sofia Lind", "Tariq Aziz", "Uma Patel", "Victor Hale")),
    ("Train times", ("To", "Platform", "Minutes", "Leaves at"),
     ("Ostby", "Halden", "Torne", "Quill", "Fennimore", "Marrow", "Perrin")),
    ("Cafe menu", ("Dish", "Small", "Large", "Served"),
     ("Lentil soup", "Pancakes", "Fish pie", "Green salad", "Dumplings", "Rice bowl")),
)  # fmt: skip
PLAIN = {
    "Seats": (8, 60), "Price": (20, 140), "Jump (cm)": (240, 420), "Run (s)": (12, 19),
    "Beds": (1, 5), "Floor": (1, 6), "High": (14, 29), "Low": (2, 12), "In stock": (5, 250),
    "Ordered": (0, 90), "Age": (21, 64), "Years here": (1, 20), "Platform": (1, 9),
    "Minutes": (9, 95), "Small": (4, 8), "Large": (9, 15),
}  # fmt: skip
WORDS = {
    "Team": ("Red", "Blue", "Green"), "Sky": ("sunny", "cloudy", "rain", "fog"),
    "Shelf": ("A1", "A2", "B1", "B2", "C3"), "Town": ("Ostby", "Torne", "Halden"),
    "Served": ("all day", "at noon", "evenings"),
}  # fmt: skip


def _cells(number: int, rng: random.Random) -> tuple[str, tuple[str, ...], list[list[str]]]:
    title, heads, names = THEMES[number % len(THEMES)]
    many = rng.randint(4, len(names) - 1)
    chosen = list(names[:many]) if heads[0] == "Day" else rng.sample(names, many)
    columns = [chosen]
    for head in heads[1:]:
        if head in PLAIN:
            low, high = PLAIN[head]
            span = range(low, high + 1)
            free = rng.sample(span, many) if len(span) >= many else rng.choices(span, k=many)
            columns.append([str(value) for value in free])
        elif head in WORDS:
            columns.append([rng.choice(WORDS[head]) for _ in range(many)])
        else:
            hours = rng.sample(range(6, 22), many)
            columns.append([f"{hour}:{rng.choice(['05', '20', '40', '55'])}" for hour in hours])
    return title, heads, [list(row) for row in zip(*columns, strict=True)]


def table(number: int, rng: random.Random, fonts: Fonts) -> tuple[Sheet, list[Question]]:
    """A table with a title, three or four columns and four to seven rows."""
    title, heads, rows = _cells(number, rng)
    face = fonts.pick(rng, "sans", "sans", "serif", "mono")
    sheet = Sheet(rng.choice([(900, 560), (1100, 640), (760, 560), (1300, 720), (640, 800)]))
    wide, high = sheet.size
    tall = min(70.0, (high - 150) / (len(rows) + 1))
    room, style = (wide - 80) / len(heads), number % 3
    size = min(
        sheet.fitting(words, face, min(tall * 0.5, wide / 30), room - 24, bold=True)
        for row in [heads, *rows]
        for words in row
    )
    sheet.text((40, 40), title, face, size * 1.3, bold=True)
    top = 110
    boxes: list[list[tuple[int, int, int, int]]] = []
    for line, row in enumerate([list(heads), *rows]):
        y = top + line * tall
        if style == 1 and (line % 2 or not line):
            sheet.rect((40, y, wide - 40, y + tall), "#e9eff5" if line else "#c9d8e8")
        if style == 2:
            sheet.line((40, y, wide - 40, y), "#999999", 2 if line == 1 else 1)
        boxes.append([])
        for column, words in enumerate(row):
            x = 40 + column * room
            if style == 0:
                sheet.rect((x, y, x + room, y + tall), None, "#444444")
            boxes[-1].append(sheet.text((x + 12, y + tall / 2), words, face, size,
                                        bold=not line, anchor="lm"))  # fmt: skip
    return sheet, _asked(number, rng, heads, rows, boxes)


def _asked(
    number: int, rng: random.Random, heads: tuple[str, ...], rows: list[list[str]], boxes: list
) -> list[Question]:
    at = rng.randrange(len(rows))
    row, column = rows[at], rng.choice([1, 2])
    head, values = heads[column], [float(held[column]) for held in rows]
    names = [held[0] for held in rows]
    first, second = rng.sample(range(len(rows)), 2)
    if values[first] == values[second]:
        first = max(range(len(rows)), key=lambda line: values[line])
        second = min(range(len(rows)), key=lambda line: values[line])
    if (values[first] > values[second]) != (number % 2 == 0):
        first, second = second, first
    top, low = max(values), min(values)
    best = [name for name, value in zip(names, values, strict=True) if value == top]
    least = [name for name, value in zip(names, values, strict=True) if value == low]
    lacking = rng.choice([
        name for name in THEMES[number % len(THEMES)][2] if name not in names
    ])  # fmt: skip
    who = {"To": "Which town", "Name": "Who", "Pupil": "Who"}.get(
        heads[0], f"Which {heads[0].lower()}"
    )
    asked = [
        a_number(f"In the row \"{row[0]}\", what is the value under \"{head}\"?",
                 float(row[column])),
        exact(f"{who} has the highest value under \"{head}\"?", *best, skill="comparing"),
        yes_no(f"Is the value under \"{head}\" higher for {names[first]} than for {names[second]}?",
               values[first] > values[second], skill="comparing"),
        exact(f"What is under \"{heads[3]}\" for {row[0]}?", row[3]),
        count("How many rows does the table have, without the head?", len(rows)),
        facts(f"List everything in the column \"{heads[0]}\".", *names),
        where(f"Where does the table say \"{row[0]}\"? Draw a box around it.",
              boxes[at + 1][0]),
        absent(f"What does the table say about \"{lacking}\"?"),
        exact(f"{who} has the lowest value under \"{head}\"?", *least, skill="comparing"),
        exact("What is the heading of the last column?", heads[-1]),
    ]  # fmt: skip
    many = 1 + number % 2 + (number % 3 > 0)
    chosen = [asked[(number * 3 + step) % len(asked)] for step in range(many)]
    return [*chosen, absent(f'Which row of the table is about "{lacking}"?')][
        : 3 if many < 2 else many
    ]
