"""Whole pages: letters, notices, minutes, recipes, manuals, reports."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from newcomer_set.asking import Question, absent, count, exact, facts, read, where, yes_no
from newcomer_set.fonts import Face, Fonts
from newcomer_set.sheet import Sheet

NAMES = ("Ada Winter", "Jonas Falk", "Priya Menon", "Luis Ortega", "Hana Sato", "Piet Molenaar",
         "Ruth Abara", "Emil Novak", "Clara Benning")  # fmt: skip
TOWNS = ("Halden Bay", "Ostby", "Marrow Hill", "Torne", "Fennimore", "Quill Harbour")
DATES = ("4 May", "19 September", "27 January", "11 July", "2 November", "30 March")


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A title, paragraphs (a line that begins with # is a heading), and questions."""

    title: str
    blocks: list[str]
    asked: list[Question]


def _letter(rng: random.Random) -> Page:
    name, town, date = rng.choice(NAMES), rng.choice(TOWNS), rng.choice(DATES)
    days, sum_ = rng.randint(3, 21), rng.randint(40, 290)
    return Page(
        title="Complaint about a broken heater",
        blocks=[
            f"{town}, {date}",
            "Dear Sir or Madam,",
            f"on {date} your firm put a new heater into my flat. It worked for {days} days. Since "
            "then it has been making a noise like a herd of goats, and the rooms stay cold.",
            "I have called your service line four times. Each time I was promised that somebody "
            "would come on the same day. Nobody came.",
            f"I have bought an electric stove for {sum_} crowns and ask you to pay for it. I also "
            "expect that the heater is mended within one week.",
            "Yours faithfully,",
            name,
        ],
        asked=[
            exact("Who wrote the letter?", name),
            facts("What is the letter about?", "heater"),
            facts("How much did the electric stove cost?", str(sum_)),
            facts("How long did the heater work?", f"{days} days"),
            yes_no("Did somebody come to mend the heater?", False),
            absent("What is the phone number in the letter?"),
        ],
    )


def _minutes(rng: random.Random) -> Page:
    chair, writer = rng.sample(NAMES, 2)
    date, present = rng.choice(DATES), rng.randint(7, 38)
    return Page(
        title="Minutes of the Garden Club",
        blocks=[
            f"Date: {date}. Present: {present} members. Chair: {chair}. Writer: {writer}.",
            "# 1. The greenhouse",
            "Two panes were broken by the storm. A glazier has been asked for an offer. Until then "
            "the tomatoes are covered with cloth in the night.",
            "# 2. The summer feast",
            "The feast will be held beside the pond. Every member brings one dish and one chair. "
            "The brass band of the fire brigade plays from five o'clock.",
            "# 3. Slugs",
            "There was a long talk about slugs, without a result. The matter was put off to the "
            "next meeting.",
        ],
        asked=[
            exact("Who was the chair of the meeting?", chair),
            facts("How many members were present?", str(present)),
            count("How many numbered headings are on the page?", 3),
            exact("What is the third heading?", "Slugs", "3. Slugs"),
            yes_no("Was a result found about the slugs?", False),
            absent("On which date is the next meeting?"),
        ],
    )


def _recipe(rng: random.Random) -> Page:
    flour, eggs = rng.choice([250, 300, 350, 400]), rng.randint(2, 5)
    minutes, degrees = rng.choice([35, 40, 45, 50]), rng.choice([170, 180, 190])
    return Page(
        title="Plum cake from a tray",
        blocks=[
            "# You need",
            f"{flour} g flour, 150 g butter, {eggs} eggs, 120 g sugar, one spoon of baking powder, "
            "a pinch of salt, and one kilo of plums.",
            "# The dough",
            "Stir the butter with the sugar until it is white. Add the eggs one by one, then the "
            "flour with the baking powder and the salt. Spread the dough on a tray.",
            "# The fruit",
            "Halve the plums and take out the stones. Lay the halves on the dough in rows, with "
            "the skin below. Dust them with a little cinnamon.",
            "# Baking",
            f"Bake the cake at {degrees} degrees for {minutes} minutes. Let it cool on the tray "
            "and serve it with cream.",
        ],
        asked=[
            facts("How many grams of flour do I need?", str(flour)),
            facts("How long and how hot should the cake be baked?", str(minutes), str(degrees)),
            count("How many eggs are in the recipe?", eggs),
            exact("Which fruit is used?", "plums", "plum"),
            yes_no("Does the recipe use chocolate?", False),
            absent("How much milk do I need for this recipe?"),
        ],
    )


def _advert(rng: random.Random) -> Page:
    town, name, hours = rng.choice(TOWNS), rng.choice(NAMES), rng.choice([18, 24, 30, 36])
    date = rng.choice(DATES)
    return Page(
        title=f"Bus drivers wanted in {town}",
        blocks=[
            f"The bus company of {town} is looking for three drivers from {date} on. We drive "
            "small electric buses on six lines, and we know most of our passengers by name.",
            "# What you bring",
            "You have a licence for buses, you are awake in the morning, and you stay friendly "
            "when it rains.",
            "# What we offer",
            f"You work {hours} hours a week, with two Sundays free in each month. Shoes, coat and "
            "coffee are paid by us. New drivers learn the lines with a colleague for two weeks.",
            f"Write to {name}, Depot Road 5, or come by on any weekday before noon.",
        ],
        asked=[
            exact(
                "For which job is this advert?", "bus driver", "bus drivers", "drivers", "driver"
            ),
            facts("How many hours a week would I work?", str(hours)),
            exact("To whom should I write?", name, f"to {name}"),
            facts("What does the company pay for?", "shoes", "coat", "coffee"),
            absent("What is the monthly pay in this advert?"),
        ],
    )


def _manual(rng: random.Random) -> Page:
    model, litres = f"DV-{rng.randint(110, 980)}", rng.choice([2, 3, 4, 5])
    hours, light = rng.randint(4, 9), rng.choice(["red", "blue", "green"])
    return Page(
        title=f"Humidifier {model}: first steps",
        blocks=[
            "# Before you begin",
            "Put the device on a level table, at least one metre from the wall and from books. "
            "Keep the cable away from water.",
            "# Filling",
            f"Lift the lid and pour in {litres} litres of cold tap water. Do not add oil or "
            "perfume. Close the lid and turn it to the right.",
            "# Switching on",
            f"Press the round button for two seconds. The {light} lamp shines while the device is "
            f"at work. After {hours} hours it switches itself off.",
            "# Care",
            "Empty the tank each evening. Once a week rinse it with vinegar and let it dry.",
        ],
        asked=[
            exact("Which model is described?", model, f"Humidifier {model}", f"the {model}"),
            facts("How much water should I pour in?", str(litres)),
            exact("What colour is the lamp?", light),
            facts("What must not be added to the water?", "oil", "perfume"),
            yes_no("Does it switch itself off?", True),
            absent("What does the device cost according to the page?"),
        ],
    )


def _report(rng: random.Random) -> Page:
    start, end = rng.sample(TOWNS, 2)
    days, km = rng.randint(3, 9), rng.randint(60, 340)
    return Page(
        title=f"On foot from {start} to {end}",
        blocks=[
            f"We were four friends, two tents and one pan. In {days} days we walked {km} "
            "kilometres along the old salt road, and only once did we lose our way.",
            "On the first evening a farmer let us sleep in his barn. He wanted no money, but he "
            "asked each of us for a song. His dog howled along with all of them.",
            "The path over the pass was still white with snow. Lena slid down the last slope on "
            "the lid of the pan, and from then on she did it wherever she could.",
            f"In {end} we ate fried fish at the harbour and took the train home. It needed two "
            "hours for the whole way.",
        ],
        asked=[
            facts("Where did the walk begin and where did it end?", start, end),
            facts("How many kilometres did they walk?", str(km)),
            facts("What did the farmer ask for?", "song"),
            count("How many friends went on the walk?", 4),
            yes_no("Did they walk home, too?", False),
            absent("What was the name of the dog?"),
        ],
    )


def _notice(rng: random.Random) -> Page:
    date, clock = rng.choice(DATES), f"{rng.randint(7, 11)}:{rng.choice(['15', '30', '45'])}"
    phone = f"555 0{rng.randint(100, 199)}"
    return Page(
        title="Water will be turned off",
        blocks=[
            "To all who live in this house",
            f"On {date} the old pipes in the cellar are replaced. There will be no water from "
            f"{clock} until about four in the afternoon.",
            "Please fill a few bottles on the evening before. Close all taps, so that nothing "
            "runs over when the water comes back. It may look brown for some minutes; let it run "
            "until it is clear.",
            "The lift works as usual. The washing room stays locked on that day.",
            f"If you have questions, call the caretaker at {phone}. Thank you for your patience.",
        ],
        asked=[
            facts("When is the water turned off? Give day and hour.", date, clock),
            facts("What is the phone number of the caretaker?", phone),
            yes_no("Does the lift work on that day?", True),
            facts("Where are the old pipes?", "cellar"),
            absent("What does the repair cost according to the notice?"),
        ],
    )


MAKERS: tuple[Callable[[random.Random], Page], ...] = (
    _letter, _minutes, _recipe, _advert, _manual, _report, _notice,
)  # fmt: skip
SIZES = ((900, 1200), (1000, 1414), (800, 1100), (1100, 1460), (1300, 1000))


def page(number: int, rng: random.Random, fonts: Fonts) -> tuple[Sheet, list[Question]]:
    """A page with a title, headings and paragraphs."""
    held = MAKERS[number % len(MAKERS)](rng)
    face = fonts.pick(rng, "sans", "serif", "serif")
    sheet = Sheet(SIZES[number % len(SIZES)], rng.choice(["white", "white", "#fcf8ee"]))
    wide, high = sheet.size
    edge, size = wide * 0.09, 30.0
    while _height(sheet, held, face, size, wide - 2 * edge) > high - 2 * edge:
        size -= 1
    large = sheet.fitting(held.title, face, size * 1.6, wide - 2 * edge, bold=True)
    title = sheet.text((edge, edge), held.title, face, large, bold=True)
    y = edge + size * 3
    for block in held.blocks:
        head = block.startswith("# ")
        for words in sheet.wrapped(block.removeprefix("# "), face, size, wide - 2 * edge):
            sheet.text((edge, y), words, face, size, bold=head, fill="#111111")
            y += size * 1.35
        y += size * (0.15 if head else 0.6)
    asked = rng.sample(held.asked, 2)
    if number % 4 == 0:
        told = [block.removeprefix("# ") for block in held.blocks]
        asked.insert(0, read("Please read the whole page.", " ".join([held.title, *told])))
    elif number % 4 == 1:
        asked.insert(0, read("What is the title of the page?", held.title))
    elif number % 8 == 2:
        asked.append(where("Where is the title? Draw a box around it.", title))
    return sheet, asked


def _height(sheet: Sheet, held: Page, face: Face, size: float, room: float) -> float:
    lines = sum(
        len(sheet.wrapped(block.removeprefix("# "), face, size, room)) for block in held.blocks
    )
    return size * (3 + lines * 1.35 + len(held.blocks) * 0.6)
