"""Receipts, invoices and forms: names of fields with their values, items with prices, totals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import chance, integer, phrase, pick, shuffled, some
from vl2.data.make.paper import any_colour, finish, ink, light_colour
from vl2.data.make.sample import Ask, Made, Spot, Text, ask
from vl2.data.make.sheet import Sheet, Style, fitting
from vl2.data.make.texts import clock, code, date, money, number, phone
from vl2.data.make.world import World
from vl2.geometry import PixelBox

LAYOUTS = {
    "train": ("receipt", "receipt", "invoice", "form", "card"),
    "heldout": ("slip", "bill", "sheet"),
}
FIELD = (
    "What is the {name}?",
    "What's the {name}?",
    "{name}?",
    "[Give|Tell] me the {name}[.|]",
    "Which {name} [is given|stands here]?",
    "[Extract|Read] the {name}.",
)
TOTAL = (
    "How much is [the total|it in total|it altogether]?",
    "What is the total[ amount|]?",
    "Total?",
)
PRICE = (
    "How much is [the|] {name}?",
    "What does [the|] {name} cost?",
    "What is the price of {name}?",
)
ITEMS = ("How many items are [there|listed|on it]?", "[Count|Number of] items[.|?]")
DEAREST = ("Which item [is the most expensive|costs most]?", "What is the most expensive item?")
CHEAPEST = ("Which item [is the cheapest|costs least]?", "What is the cheapest item?")
LIST = ("[List|Name|What are] the items[.|?]", "What was [bought|ordered]?")
KIND = (
    "What kind of document is [this|it]?",
    "What is this?",
    "What [type|sort] of document is shown?",
)
ALL = ("[Extract|List|Give] all fields.", "[Read|Extract] the fields and [their|] values.")
ABSENT = "The {name} is not on the page."
MISSING = (
    *("due date", "fax number", "discount", "customer number", "tax number", "room", "seat"),
    *("signature", "tip", "delivery date", "account number", "passport number", "e-mail"),
)
CASES = (str, str, str.upper, str.capitalize, str.title)


@dataclass(slots=True)
class Paper:
    """A document in the making: its sheet, and every field with its value and the value's box."""

    kind: str
    sheet: Sheet
    style: Style
    y: int
    margin: int
    fields: dict[str, tuple[str, PixelBox]] = field(default_factory=dict)
    items: list[tuple[str, str, PixelBox]] = field(default_factory=list)  # name, price, its box

    @property
    def width(self) -> int:
        """Pixels between the margins."""
        return self.sheet.size[0] - 2 * self.margin

    def line(self, text: str, style: Style | None = None, *, centred: bool = False) -> PixelBox:
        """One line at the left or in the middle; the next one goes below it."""
        style = fitting(text, style or self.style, self.width)
        free = self.width - style.width(style.shown(text))
        box = self.sheet.text(self.margin + (free // 2 if centred else 0), self.y, text, style)
        self.y += style.leading
        return box

    def pair(self, name: str, value: str, style: Style | None = None) -> PixelBox:
        """Something at the left and its value at the right edge; returns the value's box."""
        style = fitting(f"{name}  {value}", style or self.style, self.width)
        self.sheet.text(self.margin, self.y, name, style)
        x = self.margin + self.width - style.width(style.shown(value))
        box = self.sheet.text(x, self.y, value, style)
        self.y += style.leading
        return box

    def put(self, name: str, value: str, box: PixelBox) -> None:
        """Note a field."""
        self.fields[name] = (self.style.shown(value), box)

    def rule(self) -> None:
        """A line across."""
        self.y += self.style.size // 3
        right = self.sheet.size[0] - self.margin
        self.sheet.draw.line((self.margin, self.y, right, self.y), fill=self.style.colour)
        self.y += self.style.size // 2


def make(rng: np.random.Generator, world: World) -> Made:
    """One document on paper of its own height."""
    kind = pick(rng, world.style(LAYOUTS))
    width, size = integer(rng, 300, 760), integer(rng, 14, 24)
    paper = light_colour(rng)
    sheet = Sheet(Image.new("RGB", (width, 1600), paper))
    style = Style(face=world.plain_face(rng), size=size, colour=ink(rng, paper, plain=True))
    page = Paper(
        kind="", sheet=sheet, style=style, y=size, margin=integer(rng, size // 2, 3 * size)
    )
    _LAYOUTS[kind](rng, world, page)
    sheet.image = sheet.image.crop((0, 0, width, min(1600, page.y + size)))
    for name, (_, box) in page.fields.items():
        sheet.mark(name, box)
    image, marks = finish(rng, sheet, strength=0.8)
    moved = {mark.text: mark.box for mark in marks if mark.kind == "thing"}
    values = {name: value for name, (value, _) in page.fields.items()}
    facts = {"kind": page.kind, "fields": values, "items": [i[:2] for i in page.items]}
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, page, values, moved)), facts=facts)


def _goods(rng: np.random.Generator, world: World, page: Paper, count: int) -> float:
    """Items with their prices, and their sum."""
    total = 0.0
    mark = pick(rng, ("", "", "$", " EUR"))
    for name in {world.texts.product(rng): None for _ in range(count)}:
        amount = money(rng, 0.5, 300)
        text = f"{amount:.2f}" if mark != "$" else f"${amount:.2f}"
        box = page.pair(name, text + (mark if mark == " EUR" else ""))
        page.items.append((page.style.shown(name), text + (mark if mark == " EUR" else ""), box))
        total += amount
    return round(total, 2)


def _sums(rng: np.random.Generator, page: Paper, total: float) -> None:
    """Subtotal and tax in some documents, the total in all."""
    mark = pick(rng, ("", "$", "EUR "))
    if chance(rng, 0.5):
        rate = pick(rng, (5, 7, 10, 19, 20))
        tax = round(total * rate / 100, 2)
        for name, amount in (("subtotal", total), ("tax", tax)):
            shown = pick(rng, CASES)(name) + (f" {rate}%" if name == "tax" else "")
            page.put(name, f"{mark}{amount:.2f}", page.pair(shown, f"{mark}{amount:.2f}"))
        total = round(total + tax, 2)
    strong = replace(page.style, size=round(page.style.size * pick(rng, (1.0, 1.2, 1.4))))
    word = pick(rng, ("Total", "TOTAL", "Amount due", "Total:", "Sum"))
    page.put("total", f"{mark}{total:.2f}", page.pair(word, f"{mark}{total:.2f}", strong))


def _receipt(rng: np.random.Generator, world: World, page: Paper) -> None:
    page.kind = "receipt"
    texts, centred = world.texts, chance(rng, 0.7)
    shop = texts.firm(rng)
    big = replace(page.style, size=round(page.style.size * 1.4))
    page.put("shop", shop, page.line(shop, big, centred=centred))
    for name, value in (
        ("street", texts.street(rng)),
        ("city", texts.city(rng)),
        ("phone", phone(rng)),
    ):
        if chance(rng, 0.6):
            page.put(name, value, page.line(value, centred=centred))
    page.rule()
    _stamped(rng, page, (("date", date(rng)), ("time", clock(rng)), ("receipt number", code(rng))))
    _stamped(rng, page, (("cashier", pick(rng, texts.first_names)),))
    page.rule()
    total = _goods(rng, world, page, integer(rng, 1, 8))
    page.rule()
    _sums(rng, page, total)
    if chance(rng, 0.5):
        paid = pick(rng, ("Cash", "Card", "Visa", "Debit card", "Voucher"))
        page.put("payment", paid, page.pair(pick(rng, ("Paid by", "Payment", "Method")), paid))
    if chance(rng, 0.6):
        page.line(pick(rng, ("Thank you!", "Thank you for your visit", "Come again")), centred=True)


def _stamped(rng: np.random.Generator, page: Paper, pairs: tuple[tuple[str, str], ...]) -> None:
    """Some of the fields, each with its name before it."""
    for name, value in pairs:
        if chance(rng, 0.75):
            shown = pick(rng, CASES)(name) + pick(rng, (":", ":", ""))
            if chance(rng, 0.5):
                page.put(name, value, page.pair(shown, value))
            else:
                _beside(page, name, shown, value)


def _beside(page: Paper, name: str, shown: str, value: str) -> None:
    """A field's name and its value behind one space."""
    style = fitting(f"{shown} {value}", page.style, page.width)
    page.sheet.text(page.margin, page.y, shown, style)
    x = page.margin + style.width(style.shown(f"{shown} "))
    page.put(name, value, page.sheet.text(x, page.y, value, style))
    page.y += style.leading


def _invoice(rng: np.random.Generator, world: World, page: Paper) -> None:
    page.kind = "invoice"
    texts = world.texts
    seller, buyer = texts.firm(rng), texts.person(rng)
    page.put(
        "seller", seller, page.line(seller, replace(page.style, size=round(page.style.size * 1.3)))
    )
    page.line(texts.street(rng))
    page.y += page.style.size
    page.line(
        pick(rng, ("INVOICE", "Invoice")), replace(page.style, size=round(page.style.size * 1.7))
    )
    pairs = (("invoice number", code(rng)), ("date", date(rng)), ("due date", date(rng)))
    _stamped(rng, page, (*pairs, ("order number", number(rng, 6)), ("customer", buyer)))
    page.rule()
    total = _goods(rng, world, page, integer(rng, 1, 7))
    page.rule()
    _sums(rng, page, total)
    if chance(rng, 0.6):
        _stamped(rng, page, (("account", f"DE{number(rng, 10)}"), ("reference", code(rng))))


FORM_FIELDS: tuple[tuple[str, Callable[[np.random.Generator, World], str]], ...] = (
    ("name", lambda rng, world: world.texts.person(rng)),
    ("first name", lambda rng, world: pick(rng, world.texts.first_names)),
    ("last name", lambda rng, world: pick(rng, world.texts.last_names)),
    ("date of birth", lambda rng, world: date(rng)),
    ("address", lambda rng, world: world.texts.street(rng)),
    ("city", lambda rng, world: world.texts.city(rng)),
    ("phone", lambda rng, world: phone(rng)),
    ("e-mail", lambda rng, world: world.texts.email(rng)),
    ("company", lambda rng, world: world.texts.firm(rng)),
    ("occupation", lambda rng, world: pick(rng, world.texts.jobs)),
    ("nationality", lambda rng, world: pick(rng, world.texts.places)),
    ("room", lambda rng, world: str(integer(rng, 1, 900))),
    ("policy number", lambda rng, world: code(rng)),
    ("weight", lambda rng, world: f"{integer(rng, 1, 200)} kg"),
    ("height", lambda rng, world: f"{integer(rng, 90, 210)} cm"),
    ("member since", lambda rng, world: str(integer(rng, 1980, 2026))),
    ("department", lambda rng, world: pick(rng, world.texts.nouns).capitalize()),
    ("arrival", lambda rng, world: date(rng)),
)


def _form(rng: np.random.Generator, world: World, page: Paper) -> None:
    page.kind = "form"
    title = pick(
        rng, ("Registration", "Application form", "Patient record", "Visitor form", "Order form")
    )
    page.put(
        "title", title, page.line(title, replace(page.style, size=round(page.style.size * 1.5)))
    )
    page.y += page.style.size // 2
    hand = world.face(rng, hand=True) if chance(rng, 0.2) else page.style.face
    wide = chance(rng, 0.5)
    for name, make_value in some(rng, FORM_FIELDS, integer(rng, 3, 9)):
        value = make_value(rng, world)
        page.sheet.text(
            page.margin, page.y, pick(rng, CASES)(name) + pick(rng, (":", "", ":")), page.style
        )
        if wide:
            page.y += page.style.leading
        _filled(rng, page, name, value, replace(page.style, face=hand), wide=wide)


def _filled(
    rng: np.random.Generator, page: Paper, name: str, value: str, style: Style, *, wide: bool
) -> None:
    """A value on a line or in a box, beside its name or below it."""
    left = page.margin + (4 if wide else round(page.width * 0.42))
    right, bottom = page.margin + page.width, page.y + page.style.leading
    if chance(rng, 0.5):
        page.sheet.draw.rectangle((left - 4, page.y - 2, right, bottom), outline=style.colour)
    else:
        page.sheet.draw.line((left, bottom, right, bottom), fill=style.colour)
    style = fitting(value, style, right - left - 4)
    box = page.sheet.text(left, page.y, value, style)
    page.fields[name] = (style.shown(value), box)
    page.y = bottom + style.size // 2


def _card(rng: np.random.Generator, world: World, page: Paper) -> None:
    """A business card or a name badge."""
    page.kind = "business card"
    texts = world.texts
    for name, value, scale in (
        ("company", texts.firm(rng), 1.0),
        ("name", texts.person(rng), 1.5),
        ("position", pick(rng, texts.jobs), 1.0),
        ("phone", phone(rng), 0.9),
        ("e-mail", texts.email(rng), 0.9),
        ("address", texts.street(rng), 0.9),
    ):
        if scale > 1 or chance(rng, 0.75):
            style = replace(page.style, size=max(12, round(page.style.size * scale)))
            page.put(name, value, page.line(value, style))
            page.y += integer(rng, 0, style.size // 2)


def _slip(rng: np.random.Generator, world: World, page: Paper) -> None:
    """Receipts of the held-out split: name and date beside each other, dots before prices."""
    page.kind = "receipt"
    shop = world.texts.firm(rng)
    page.line("RECEIPT", centred=True)
    page.put("shop", shop, page.line(shop, centred=True))
    _stamped(rng, page, (("receipt number", code(rng)), ("date", date(rng)), ("time", clock(rng))))
    page.y += page.style.size
    total = _goods(rng, world, page, integer(rng, 2, 7))
    page.y += page.style.size // 2
    _sums(rng, page, total)
    _stamped(rng, page, (("cashier", pick(rng, world.texts.first_names)),))


def _bill(rng: np.random.Generator, world: World, page: Paper) -> None:
    """Invoices of the held-out split: a bar of colour, the number first."""
    page.kind = "invoice"
    bar = any_colour(rng)
    page.sheet.draw.rectangle((0, 0, page.sheet.size[0], round(page.style.size * 2.4)), fill=bar)
    title = replace(page.style, size=round(page.style.size * 1.4), colour=ink(rng, bar, plain=True))
    page.line("Invoice", title)
    page.y = round(page.style.size * 3.2)
    pairs = (("invoice number", code(rng)), ("customer", world.texts.person(rng)))
    _stamped(rng, page, (*pairs, ("date", date(rng)), ("due date", date(rng))))
    page.rule()
    _sums(rng, page, _goods(rng, world, page, integer(rng, 2, 6)))
    seller = world.texts.firm(rng)
    page.put("seller", seller, page.line(seller))


def _sheet(rng: np.random.Generator, world: World, page: Paper) -> None:
    """Forms of the held-out split: all names at the left, values in one column."""
    page.kind = "form"
    page.put("title", "Data sheet", page.line("Data sheet", centred=True))
    for name, make_value in some(rng, FORM_FIELDS, integer(rng, 4, 8)):
        _filled(rng, page, name, make_value(rng, world), page.style, wide=False)
        y = page.y - page.style.leading - page.style.size // 2
        page.sheet.text(page.margin, y, f"{name.capitalize()}:", page.style)


_LAYOUTS: dict[str, Callable[[np.random.Generator, World, Paper], None]] = {
    "receipt": _receipt,
    "invoice": _invoice,
    "form": _form,
    "card": _card,
    "slip": _slip,
    "bill": _bill,
    "sheet": _sheet,
}


def _asks(
    rng: np.random.Generator, page: Paper, values: dict[str, str], boxes: dict[str, PixelBox]
) -> list[Ask]:
    """Fields with and without their places, prices, sums, and a field that is not there."""
    asks = [ask("field.kind", phrase(rng, pick(rng, KIND)), _kind(page.kind))]
    for name in some(rng, list(values), 3):
        forms = TOTAL if name == "total" and chance(rng, 0.7) else FIELD
        question = phrase(rng, pick(rng, forms), name=name)
        answer: str | Text = values[name]
        if chance(rng, 0.35) and name in boxes:
            question = f"{question} Show where."
            answer = (Spot(label=values[name], boxes=(boxes[name],)),)
        asks.append(ask("field.value", question, answer))
    absent = pick(rng, [name for name in MISSING if name not in values])
    question = phrase(rng, pick(rng, FIELD), name=absent)
    asks.append(ask("field.absent", question, ABSENT.format(name=absent)))
    if page.items:
        asks += _item_asks(rng, page)
    if chance(rng, 0.25):
        listed = "\n".join(f"{name}: {value}" for name, value in values.items())
        asks.append(ask("field.all", phrase(rng, pick(rng, ALL)), listed))
    return shuffled(rng, asks)[:7]


def _item_asks(rng: np.random.Generator, page: Paper) -> list[Ask]:
    name, price, _ = pick(rng, page.items)
    amounts = [
        float("".join(c for c in price if c.isdigit() or c == ".")) for _, price, _ in page.items
    ]
    dearest, cheapest = (
        page.items[int(np.argmax(amounts))][0],
        page.items[int(np.argmin(amounts))][0],
    )
    names = ", ".join(item[0] for item in page.items)
    return some(
        rng,
        [
            ask("field.price", phrase(rng, pick(rng, PRICE), name=name), price),
            ask("field.items", phrase(rng, pick(rng, ITEMS)), str(len(page.items))),
            ask("field.dearest", phrase(rng, pick(rng, DEAREST)), dearest),
            ask("field.cheapest", phrase(rng, pick(rng, CHEAPEST)), cheapest),
            ask("field.list", phrase(rng, pick(rng, LIST)), names),
        ],
        3,
    )


def _kind(kind: str) -> str:
    return f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}."
