"""Receipts and invoices, and forms filled in by hand."""

from __future__ import annotations

import random

from newcomer_set.asking import (
    Question,
    absent,
    count,
    exact,
    facts,
    where,
    yes_no,
)  # fmt: skip
from newcomer_set.asking import (
    number as a_number,
)
from newcomer_set.fonts import Face, Fonts
from newcomer_set.sheet import Sheet, around

Drawn = tuple[Sheet, list[Question]]

GOODS = (
    ("Rye bread", 3.4), ("Oat milk", 2.15), ("Apples 1 kg", 2.9), ("Blue cheese", 5.25),
    ("Tea, mint", 4.1), ("Soap", 1.95), ("Light bulb", 6.5), ("Candles", 7.8), ("Postcard", 1.2),
    ("Honey", 8.45), ("Pencils", 3.6), ("Garden gloves", 9.9), ("Batteries", 5.75),
    ("Tomatoes", 3.15), ("Rope 10 m", 12.3), ("Sponge", 0.95), ("Noodles", 1.65),
    ("Paint, red", 14.2),
)  # fmt: skip
WORK = (
    ("Repair of the roof", 480), ("Painting, 2 rooms", 650), ("New window", 390),
    ("Travel costs", 45), ("Cleaning", 120), ("Removal of rubble", 175), ("Electric sockets", 210),
    ("Garden wall", 830), ("Design of a logo", 560), ("Translation", 240),
)  # fmt: skip
SHOPS = (
    "Corner Shop Amsel", "Gull & Sons", "The Green Crate", "Bell Street Market", "Mira's Kiosk",
    "Hardware Tolle", "Little Pantry", "Harbour Store", "Nine Lamps", "Fox Grocery",
)  # fmt: skip
FIRMS = (
    "Brandt Building Ltd", "Studio Pelikan", "Ortega & Daughters", "Northgate Works",
    "Falk Interiors", "Menon Services",
)  # fmt: skip
PEOPLE = (
    "Greta Lund", "Omar Haddad", "Vera Klein", "Tom Aldous", "Ines Duarte", "Kofi Mensah",
    "Ella Strand", "Marek Zielny", "Nora Quist", "Ben Carrow",
)  # fmt: skip
MONTHS = ("January", "March", "April", "June", "August", "October", "December")


def receipt(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """A till receipt, or for every third number an invoice."""
    return _invoice(number, rng, fonts) if number % 3 == 2 else _till(number, rng, fonts)


def _till(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    face, shop = fonts.pick(rng, "mono", "mono", "sans"), rng.choice(SHOPS)
    goods = rng.sample(GOODS, rng.randint(3, 7))
    total = round(sum(price for _, price in goods), 2)
    day, month = f"{rng.randint(1, 28):02d}", f"{rng.randint(1, 12):02d}"
    clock, card = f"{rng.randint(8, 19)}:{rng.randint(10, 59)}", number % 2 == 0
    wide = rng.choice([420, 520, 600])
    size = wide / 20
    sheet = Sheet((wide, int(size * 1.7 * (len(goods) + 12))), rng.choice(["white", "#fafaf5"]))
    sheet.text(
        (wide / 2, size * 1.6),
        shop,
        face,
        sheet.fitting(shop, face, size * 1.5, wide * 0.9, bold=True),
        bold=True,
        anchor="mm",
    )
    sheet.text((wide / 2, size * 3.6), "12 Mill Lane", face, size, anchor="mm")
    sheet.text((size, size * 5), f"{day}.{month}.2026", face, size)
    sheet.text((wide - size, size * 5), clock, face, size, anchor="ra")
    y, prices = size * 7.4, {}
    for name, price in goods:
        sheet.text((size, y), name, face, size)
        prices[name] = sheet.text((wide - size, y), f"{price:.2f}", face, size, anchor="ra")
        y += size * 1.7
    sheet.line((size, y + size * 0.3, wide - size, y + size * 0.3), width=2)
    left = sheet.text((size, y + size), "TOTAL", face, size * 1.3, bold=True)
    right = sheet.text(
        (wide - size, y + size), f"{total:.2f}", face, size * 1.3, bold=True, anchor="ra"
    )
    sheet.text((size, y + size * 3.4), "Paid by card" if card else "Paid in cash", face, size)
    sheet.text((wide / 2, y + size * 6), "Thank you!", face, size, anchor="mm")
    name, price = rng.choice(goods)
    lacking = rng.choice([other for other in GOODS if other not in goods])[0]
    asked = [
        a_number(rng.choice(["What is the total?", "How much was paid in all?"]), total),
        exact("What is the name of the shop?", shop),
        a_number(f"What does the item \"{name}\" cost?", price),
        count("How many different items were bought?", len(goods)),
        facts("When was this bought? Give the date and the time.", f"{day}.{month}.2026", clock),
        yes_no("Was it paid by card?", card),
        where("Where is the total? Put a box around the whole line.", around(left, right)),
        absent(f"What does the item \"{lacking}\" cost on this receipt?"),
        exact("Which item is the most expensive?", max(goods, key=lambda good: good[1])[0],
              skill="comparing"),
    ]  # fmt: skip
    return sheet, _chosen(asked, number, 3)


def _invoice(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    face, firm, person = fonts.pick(rng, "sans", "serif"), rng.choice(FIRMS), rng.choice(PEOPLE)
    work = rng.sample(WORK, rng.randint(2, 4))
    net = sum(price for _, price in work)
    tax = round(net * 0.2, 2)
    code, due = f"R-{rng.randint(1000, 9999)}", f"{rng.randint(1, 28)} {rng.choice(MONTHS)} 2027"
    sheet = Sheet(rng.choice([(900, 1100), (1000, 1300), (1240, 1000)]))
    wide, _ = sheet.size
    size, edge, y = 26, wide * 0.08, 70.0
    sheet.text((edge, y), firm, face, 40, bold=True)
    head = sheet.text((wide - edge, y), "INVOICE", face, 40, fill="#345", anchor="ra")
    for row, words in enumerate((f"Bill to: {person}", f"Invoice number: {code}", f"Due: {due}")):
        sheet.text((edge, y + 100 + row * 40), words, face, size)
    y += 260
    sheet.rect((edge, y, wide - edge, y + 48), "#dde6ee")
    sheet.text((edge + 10, y + 24), "Description", face, size, bold=True, anchor="lm")
    sheet.text((wide - edge - 10, y + 24), "Amount", face, size, bold=True, anchor="rm")
    rows = [*work, ("Subtotal", net), ("Tax 20 %", tax), ("Amount due", net + tax)]
    line = head
    for row, (name, price) in enumerate(rows):
        y += 52 if row else 64
        bold = name == "Amount due"
        if row == len(work):
            sheet.line((edge, y - 4, wide - edge, y - 4), "#666666", 2)
            y += 8
        left = sheet.text((edge + 10, y), name, face, size, bold=bold)
        right = sheet.text(
            (wide - edge - 10, y), f"{price:,.2f}", face, size, bold=bold, anchor="ra"
        )
        line = around(left, right)
    name, price = rng.choice(work)
    asked = [
        a_number("What is the amount due?", net + tax),
        exact("What is the invoice number?", code),
        exact("Who has to pay this invoice?", person),
        yes_no(f"Is the invoice from {firm if number % 2 else FIRMS[FIRMS.index(firm) - 1]}?",
               number % 2 == 1),
        facts("By when must it be paid?", due),
        a_number(f"How much is charged for \"{name}\"?", price),
        where("Mark the line with the amount due.", line),
        absent("What is the bank account number on this invoice?"),
        exact("Which company sent the invoice?", firm),
    ]  # fmt: skip
    return sheet, _chosen(asked, number, 2)


def _chosen(asked: list[Question], number: int, many: int) -> list[Question]:
    """Some of the questions; over the numbers each has its turn."""
    return [asked[(number * 2 + step * 4) % len(asked)] for step in range(many)]


FORMS = (
    ("Library card", ("Name", "Street", "Town", "Born on"), ("Adult", "Child", "Student")),
    ("Swimming course", ("Name", "Age", "Phone", "Course day"), ("Beginner", "Advanced")),
    ("Lost property", ("Item", "Colour", "Found in", "Your name"), ("Collect", "Send by post")),
    ("Hotel check-in", ("Guest", "Room", "Nights", "Car plate"), ("Breakfast", "Late checkout")),
    ("Bicycle hire", ("Name", "Phone", "From", "Until"), ("Helmet", "Lock", "Basket")),
    ("Visitor pass", ("Visitor", "Company", "Host", "Date"), ("Parking", "Lunch")),
)  # fmt: skip
TOWNS = ("Ostby", "Torne", "Marrow Hill", "Halden Bay", "Fennimore")


def _value(label: str, rng: random.Random) -> str:
    date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
    held = {
        "Street": f"{rng.choice(['Elm Road', 'Pier Street', 'Well Lane'])} {rng.randint(2, 98)}",
        "Town": rng.choice(TOWNS), "Born on": f"{date} {rng.randint(1950, 2015)}",
        "Age": str(rng.randint(6, 79)), "Phone": f"555 0{rng.randint(100, 199)}",
        "Course day": rng.choice(["Monday", "Thursday", "Saturday"]),
        "Item": rng.choice(["umbrella", "left glove", "trumpet", "school bag"]),
        "Colour": rng.choice(["black", "dark blue", "yellow"]),
        "Found in": rng.choice(["bus 27", "the museum", "the park"]),
        "Room": str(rng.randint(101, 460)), "Nights": str(rng.randint(1, 9)),
        "Car plate": f"KV {rng.randint(100, 999)}", "From": f"{date}", "Until": f"{date}, 6 pm",
        "Company": rng.choice(FIRMS), "Date": f"{date} 2026",
    }  # fmt: skip
    return held.get(label, rng.choice(PEOPLE))


def form(number: int, rng: random.Random, fonts: Fonts) -> Drawn:
    """A printed form with values in another hand; one field of every second form is blank."""
    title, labels, boxes = FORMS[number % len(FORMS)]
    face, hand = fonts.pick(rng, "sans", "serif"), fonts.pick(rng, "hand", "capitals")
    sheet = Sheet(rng.choice([(800, 760), (900, 1000), (1100, 760), (700, 800)]))
    wide, ink = sheet.size[0], rng.choice(["#1b2f8a", "#202020", "#0c4a8c"])
    sheet.rect((20, 20, wide - 20, sheet.size[1] - 20), None, "#444444", width=2)
    head = sheet.text((50, 50), title, face, 40, bold=True)
    blank = rng.choice(labels) if number % 2 else ""
    values = {label: "" if label == blank else _value(label, rng) for label in labels}
    spots, left = {}, wide * 0.32
    for row, label in enumerate(labels):
        y = 140 + row * 84
        sheet.text((50, y + 30), label, face, 26, anchor="lm")
        spots[label] = sheet.rect((left, y, wide - 50, y + 60), "#f4f6f8", "#888888", width=2)
        if values[label]:
            size = sheet.fitting(values[label], hand, 36, wide - 80 - left)
            sheet.text((left + 16, y + 30), values[label], hand, size, fill=ink, anchor="lm")
    ticked = [rng.random() < 0.5 for _ in boxes]
    ticked[number % len(boxes)] = number % 4 < 2
    for row, label in enumerate(boxes):
        _tick(sheet, (50, 490 + row * 50), label, face, ink if ticked[row] else "")
    asked = _form_asked(number, rng, values, spots, blank)
    which = boxes[number % len(boxes)]
    more = yes_no(f'Is the box "{which}" ticked?', number % 4 < 2)
    if number % 5 == 0:
        more = exact("What kind of form is this?", title, skill="naming")
    elif number % 5 == 3:
        more = count("How many boxes are ticked?", sum(ticked))
    elif number % 10 == 6:
        more = where("Where is the title of the form? Draw a box around it.", head)
    return sheet, [*asked, more]


def _form_asked(
    number: int, rng: random.Random, values: dict[str, str], spots: dict, blank: str
) -> list[Question]:
    full = [label for label, value in values.items() if value]
    first, second = rng.sample(full, 2)
    asked = [exact(f'What is written in the field "{first}"?', values[first])]
    if number % 3 == 0:
        asked.append(where(f'Mark the input field next to "{second}".', spots[second]))
    elif blank and number % 4 == 1:
        asked.append(absent(f'What did the person write in the field "{blank}"?'))
    elif blank:
        asked.append(exact("Which field is empty?", blank))
    else:
        asked.append(exact(f'What is the entry for "{second}"?', values[second]))
    return asked


def _tick(sheet: Sheet, at: tuple[float, float], label: str, face: Face, ink: str) -> None:
    x, y = at
    sheet.rect((x, y, x + 30, y + 30), "white", "#333333", width=2)
    if ink:
        sheet.line((x + 5, y + 16, x + 12, y + 24, x + 28, y + 2), ink, 4)
    sheet.text((x + 46, y + 15), label, face, 24, anchor="lm")
