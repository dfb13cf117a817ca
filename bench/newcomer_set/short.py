"""Pictures of one word in big letters, and of one line of print."""

from __future__ import annotations

import random

from newcomer_set.asking import Question, absent, count, exact, facts, read, where, yes_no
from newcomer_set.fonts import Fonts
from newcomer_set.sheet import COLOURS, Sheet, names_of

Drawn = tuple[Sheet, list[Question]]

WORDS = (
    "LANTERN", "Harvest", "OPEN", "puddle", "Monday", "BAKERY", "quartz", "Thunder", "EXIT",
    "Marmalade", "seven", "HELLO", "Willow", "JUNCTION", "biscuit", "Nadia", "RECYCLE", "oxygen",
    "Velvet", "SALE", "umbrella", "Kestrel", "FRAGILE", "Tobias", "zigzag",
)  # fmt: skip
OTHERS = (
    "LADDER", "Holiday", "CLOSED", "paddle", "Sunday", "BREWERY", "quarter", "Whisper", "ENTRY",
    "Mandarin", "eleven", "GOODBYE", "Window", "FUNCTION", "basket", "Nora", "REPLACE", "hydrogen",
    "Ribbon", "SOLD", "parasol", "Sparrow", "FRAGRANT", "Thomas", "zipper",
)  # fmt: skip
INKS = (
    ("black", "white"), ("red", "white"), ("white", "blue"), ("yellow", "black"),
    ("green", "white"), ("blue", "yellow"), ("white", "red"), ("black", "orange"),
    ("purple", "white"), ("white", "green"), ("black", "pink"),
)  # fmt: skip
SIZES = ((640, 400), (800, 300), (500, 500), (1200, 600), (400, 300), (900, 1200))
SAYING = (
    "What does it say?", "Which word is this?", "Read the word.", "What is written here?",
    "What word is in the picture?",
)  # fmt: skip


def word(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """One word, in a plain colour on another."""
    text, (ink, paper) = WORDS[number], INKS[number % len(INKS)]
    face = fonts.pick(rng, "sans", "serif", "sign", "mono")
    sheet = Sheet(SIZES[number % len(SIZES)], COLOURS[paper])
    wide, high = sheet.size
    size = sheet.fitting(text, face, high * 0.5, wide * rng.uniform(0.55, 0.85), bold=True)
    at = (wide / 2, high * rng.uniform(0.4, 0.6))
    box = sheet.text(at, text, face, size, fill=COLOURS[ink], bold=True, anchor="mm")
    asked = [exact(SAYING[number % len(SAYING)], text, skill="reading")]
    told = number % 10 == 0
    more = (
        lambda: yes_no(f"Does it say {text if told else OTHERS[number]}?", told),
        lambda: count("How many letters does the word have?", len(text)),
        lambda: exact("What colour are the letters?", *names_of(ink), skill="naming"),
        lambda: where("Draw a box around the word.", box),
        lambda: exact("What is the colour of the background?", *names_of(paper), skill="naming"),
    )
    asked.append(more[number % 5]())
    if number % 4 == 3:
        asked.append(exact("What is the first letter of the word?", text[0]))
    if number % 4 == 1:
        asked.append(absent("Which number is in the picture?"))
    if number % 6 == 2:
        small = text == text.lower()
        asked.append(yes_no("Is the word written in capital letters only?", text == text.upper()))
        if small:
            asked[-1] = yes_no("Are all the letters small letters?", True)
    return sheet, asked


LINES: tuple[tuple[str, Question | None], ...] = (
    ("The ferry to Halden leaves at 7:45 every morning.",
     facts("When does the ferry leave?", "7:45")),
    ("Please wipe your boots before you come in.", exact("What should you wipe?", "your boots",
     "boots", "Your boots before you come in")),
    ("Two kilos of ripe pears cost 6.80 today.", absent("What do the apples cost?")),
    ("Marta keeps eleven hens behind the old mill.", facts("How many hens does Marta keep?",
     "eleven|11")),
    ("Room 214 is closed for painting until Friday.", exact("Which room is closed?", "Room 214",
     "214")),
    ("Nobody had seen the grey cat since Sunday.", yes_no("Is the cat black?", False)),
    ("Turn left at the bridge, then walk 300 metres.", yes_no("Should you turn left at the bridge?",
     True)),
    ("Our soup of the day is leek and potato.", facts("What is in the soup?", "leek", "potato")),
    ("Order number 58-2093 was shipped on 14 March.", exact("What is the order number?", "58-2093",
     "Order number 58-2093")),
    ("The choir sings in the town hall on Thursdays.", exact("On which day does the choir sing?",
     "Thursday", "Thursdays", "on Thursdays")),
    ("Batteries are not included in this box.", yes_no("Are batteries included?", False)),
    ("Call Bruno at 555 0147 if the lift is stuck.", facts("Whom should you call?", "Bruno")),
    ("A warm wind came down from the hills at dusk.", absent("Which person is named in the line?")),
    ("Keep this bottle out of the reach of children.",
     absent("Which phone number is printed here?")),
    ("Ticket price: 12.50 for adults, 7.00 for children.",
     facts("What does a ticket for children cost?", "7.00|7")),
    ("The winner of the pie contest was Olga Brandt.", facts("Who won the pie contest?",
     "Olga Brandt")),
    ("Best before the end of August 2027.", facts("Until when is it good?", "August 2027")),
    ("Dogs must be kept on a lead in this park.", yes_no("May dogs run free in this park?", False)),
    ("He painted the fence green and the gate white.", exact("What colour is the gate?", "white")),
    ("Flight KV 391 is delayed by forty minutes.", exact("Which flight is delayed?", "KV 391",
     "Flight KV 391", "KV391")),
    ("Mix the flour, the sugar and a pinch of salt.", facts("What do you mix?", "flour", "sugar",
     "salt")),
    ("The museum shop sells postcards and old maps.", yes_no("Does the museum shop sell maps?",
     True)),
    ("Platform 3: next train to Ostby in 6 minutes.", exact("Where does the next train go?",
     "Ostby", "to Ostby")),
    ("My sister plays the cello, and I play the drums.", exact("What does the sister play?",
     "the cello", "cello", "She plays the cello")),
    ("It rained for nine days without a break.", absent("Which town does the sentence name?")),
)  # fmt: skip
READING = (
    "Read this line.", "What does the text say?", "Type out the sentence for me.",
    "Please read the text.", "What is written in the picture?",
)  # fmt: skip
STRIPS = ((900, 160), (1200, 200), (700, 300), (1600, 240), (1000, 400), (640, 120))


def line(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """One line of print on white or tinted paper."""
    text, more = LINES[number]
    face = fonts.pick(rng, "sans", "serif", "mono", "hand")
    dark = number % 7 == 3
    sheet = Sheet(STRIPS[number % len(STRIPS)], "#1c2733" if dark else rng.choice(
        ["white", "#fbf6e6", "#eef3f8"]))  # fmt: skip
    wide, high = sheet.size
    size = sheet.fitting(text, face, high * 0.4, wide * rng.uniform(0.78, 0.92))
    fill = "#f2f2f2" if dark else rng.choice(["black", "#222244", "#33261a"])
    sheet.text((wide * 0.03 + 4, high / 2), text, face, size, fill=fill, anchor="lm")
    asked = [read(READING[number % len(READING)], text)]
    if more:
        asked.append(more)
    if number % 5 == 2:
        asked.append(count("How many words are there?", len(text.split())))
    return sheet, asked
