"""What people ask about signs: what they say, their colours and places, arrows, prices, names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vl2.data.make.chance import chance, phrase, pick, some
from vl2.data.make.naming import COLOURS, capitalised, listed, plural
from vl2.data.make.reading import LOCATE_THING, different, locate, locate_asks, read_asks
from vl2.data.make.sample import Ask, Mark, ask
from vl2.data.make.words import short_text
from vl2.data.make.world import World
from vl2.geometry import PixelBox

SAY = (
    "What does the {name} say?",
    "What [is written|does it say|is] on the {name}?",
    "Read the {name}[.|]",
    "[What is the t|T]ext [of|on] the {name}[.|]",
)
COLOUR = (
    "What [colour|color] is the {name}?",
    "Which [colour|color] does the {name} have?",
    "[Colour|Color] of the {name}?",
)
INK = ("What [colour|color] [is the text|are the letters] on the {name}?",)
COUNT = (
    "How many {names} are there?",
    "[Count|Number of] {names}[.|?]",
    "How many {names} [do you see|are in the picture|can you see]?",
)
SAYS = (
    'Is there a {noun} that says "{text}"?',
    'Does [a|any|the] {noun} say "{text}"?',
)
POINTS = (
    "[Which way|Where|In which direction] does the arrow point?",
    "What direction is the arrow[ pointing|]?",
)
WITH_ARROW = ("Which sign has an arrow?", "What does the sign with the arrow say?")
SYMBOL = ("[What|Which] [symbol|shape] is on the {name}?", "What is drawn on the {name}?")
PRICE = (
    "[How much is it|What is the price|What does it cost|Price]?",
    "How much [does|is] {product}[ cost|]?",
    "What is the price of {product}?",
)
PRODUCT = ("What [costs|is sold for] {price}?",)
NAME = ("What is the name[ on the tag|]?", "Whose name [tag|badge] is [this|it]?", "Name?")
TITLE = ("What is the title[ of the book|]?", "[What is the book|Book] called?", "Title?")
AUTHOR = ("Who [wrote|is the author of] [the book|this book]?", "[Name the a|A]uthor?")
HEADING = (
    "What is the [title|heading][ of the poster|]?",
    "[Read|What is] the [heading|headline].",
)
DESCRIBE = (
    "What is in this picture?",
    "Describe [the picture|this image|the image|what you see].",
    "What [do you see|is shown]?",
    "Caption this[ image|].",
)
NO_ARROW = "There is no arrow in the image."
LEFT_RIGHT = ("left", "right")
THREE = ("left", "middle", "right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """One sign on the picture."""

    noun: str
    colour: str
    ink: str  # the colour of its letters
    texts: str  # "saying", "short", "notice", "price", "name" or "book"
    parts: tuple[tuple[str, ...], ...] = ()  # its texts from top to bottom, each in rows
    title_first: bool = True  # of a book
    arrow: str = ""  # where it points
    symbol: str = ""
    at: int = 0  # its mark
    box: PixelBox = (0, 0, 0, 0)

    @property
    def name(self) -> str:
        """What one calls it."""
        return f"{self.colour} {self.noun}"

    @property
    def lines(self) -> tuple[str, ...]:
        """All that stands on it."""
        return tuple(row for part in self.parts for row in part)

    @property
    def said(self) -> str:
        """All that stands on it in one line."""
        return " ".join(self.lines)

    def part(self, which: int) -> str:
        """One of its texts in one line."""
        return " ".join(self.parts[which])


def sign_asks(
    rng: np.random.Generator,
    world: World,
    signs: Sequence[Sign],
    marks: Sequence[Mark],
    columns: int,
) -> list[Ask]:
    """Everything that the signs answer without doubt, and what is not there."""
    lines = [mark for mark in marks if mark.kind == "line"]
    asks = read_asks(rng, lines, "sign") + locate_asks(rng, lines, "sign", most=1)
    asks.append(ask("sign.describe", phrase(rng, pick(rng, DESCRIBE)), _description(signs)))
    asks += _counts(rng, signs) + _missing(rng, world, signs) + _arrows(rng, signs)
    for sign in some(rng, signs, 3):
        asks += _about(rng, sign, signs)
    if len(signs) == columns and columns in (2, 3):
        n = int(rng.integers(columns))
        which = (LEFT_RIGHT if columns == 2 else THREE)[n]
        name = f"{which} {signs[n].noun if _alike(signs) else 'one'}"
        asks.append(ask("sign.read", phrase(rng, pick(rng, SAY), name=name), _rows(signs[n])))
    return different(rng, asks, 7)


def _about(rng: np.random.Generator, sign: Sign, signs: Sequence[Sign]) -> list[Ask]:
    """One of the signs by the names that it alone has."""
    names = _names(sign, signs)
    asks = []
    if names:
        name = pick(rng, names)
        asks.append(ask("sign.read", phrase(rng, pick(rng, SAY), name=name), _rows(sign)))
    by_text = [name for name in names if not name.startswith(sign.colour)]
    if by_text:
        name = pick(rng, by_text)
        asks.append(ask("sign.colour", phrase(rng, pick(rng, COLOUR), name=name), sign.colour))
        if sign.lines:
            asks.append(ask("sign.ink", phrase(rng, pick(rng, INK), name=name), sign.ink))
        if sign.symbol:
            asks.append(ask("sign.symbol", phrase(rng, pick(rng, SYMBOL), name=name), sign.symbol))
    name = pick(rng, (sign.noun, sign.name))
    same = tuple(s.box for s in signs if name in (s.noun, s.name))
    asks.append(locate(rng, "sign", name, same, LOCATE_THING))
    if sign.lines and len(sign.said) <= 24:
        said = f"{sign.noun} that says {sign.said}"
        same = tuple(s.box for s in signs if (s.noun, s.said) == (sign.noun, sign.said))
        asks.append(locate(rng, "sign", said, same, LOCATE_THING))
        asks.append(
            ask("sign.there", phrase(rng, pick(rng, SAYS), noun=sign.noun, text=sign.said), "Yes")
        )
    if len(signs) == 1:
        asks += _parts(rng, sign) * 5
    return asks


def _names(sign: Sign, signs: Sequence[Sign]) -> list[str]:
    """What one may call a sign so that no other is meant."""
    names = []
    if sum(s.noun == sign.noun for s in signs) == 1:
        names.append(sign.noun)
    if sum(s.name == sign.name for s in signs) == 1:
        names.append(sign.name)
    return names


def _parts(rng: np.random.Generator, sign: Sign) -> list[Ask]:
    """A price, a name, a title: what stands on this sort of sign."""
    if sign.texts == "notice" and sign.parts:
        return [ask("sign.heading", phrase(rng, pick(rng, HEADING)), sign.part(0))]
    if sign.texts == "price" and len(sign.parts) == 2:
        first = any(char.isdigit() for char in sign.part(0))
        cost, product = (sign.part(0), sign.part(1)) if first else (sign.part(1), sign.part(0))
        return [
            ask("sign.price", phrase(rng, pick(rng, PRICE), product=product), cost),
            ask("sign.product", phrase(rng, pick(rng, PRODUCT), price=cost), product),
        ]
    if sign.texts == "name" and len(sign.parts) >= 2:
        return [ask("sign.name", phrase(rng, pick(rng, NAME)), sign.part(1))]
    if sign.texts == "book" and len(sign.parts) == 2:
        title, author = sign.parts if sign.title_first else sign.parts[::-1]
        return [
            ask("sign.title", phrase(rng, pick(rng, TITLE)), " ".join(title)),
            ask("sign.author", phrase(rng, pick(rng, AUTHOR)), " ".join(author)),
        ]
    return []


def _arrows(rng: np.random.Generator, signs: Sequence[Sign]) -> list[Ask]:
    """Where the only arrow points, and which sign has it."""
    arrows = [sign for sign in signs if sign.arrow]
    if not arrows:
        return [ask("sign.points", phrase(rng, POINTS[0]), NO_ARROW)] if chance(rng, 0.15) else []
    if len(arrows) > 1:
        return [ask("sign.count", phrase(rng, COUNT[0], names="arrows"), str(len(arrows)))]
    asks = [ask("sign.points", phrase(rng, pick(rng, POINTS)), arrows[0].arrow)] * 2
    if len(signs) > 1 and arrows[0].lines:
        asks.append(ask("sign.which", phrase(rng, pick(rng, WITH_ARROW)), _rows(arrows[0])))
    return asks


def _counts(rng: np.random.Generator, signs: Sequence[Sign]) -> list[Ask]:
    nouns = Counter(sign.noun for sign in signs)
    noun = pick(rng, list(nouns))
    if noun == "sign" and len(nouns) > 1:  # some would count the others, too
        return []
    return [ask("sign.count", phrase(rng, pick(rng, COUNT), names=plural(noun)), str(nouns[noun]))]


def _missing(rng: np.random.Generator, world: World, signs: Sequence[Sign]) -> list[Ask]:
    """A colour that no sign has, and words that none says."""
    noun = pick(rng, signs).noun
    name = f"{pick(rng, list(COLOURS))} {noun}"
    asks = []
    if all(sign.name != name for sign in signs):
        asks.append(locate(rng, "sign", name, (), LOCATE_THING))
    text = short_text(rng, world)
    if all(text.lower() not in sign.said.lower() for sign in signs):
        question = phrase(rng, pick(rng, SAYS), noun=noun, text=text)
        asks.append(ask("sign.there", question, "No"))
    return asks


def _alike(signs: Sequence[Sign]) -> bool:
    return len({sign.noun for sign in signs}) == 1


def _rows(sign: Sign) -> str:
    return "\n".join(sign.lines) or "Nothing."


def _description(signs: Sequence[Sign]) -> str:
    """Each sign with its colour and what it says; the arrow and the symbol, too."""
    parts = []
    for sign in signs:
        extra = f" and has an arrow pointing {sign.arrow}" if sign.arrow else ""
        extra = f" and has a {sign.symbol}" if sign.symbol else extra
        said = f' that says "{sign.said}"' if sign.lines else ""
        parts.append(f"{listed([sign.name])}{said}{extra}")
    text = f"{'; '.join(parts)}."
    return capitalised(text)
