"""Questions about named things and their true answers, in the phrasings of people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vl2.data.make.chance import chance, integer, phrase, pick, shuffled, some
from vl2.data.make.drawings import Drawings, Thing
from vl2.data.make.naming import NUMBERS, capitalised, joined, one, place_name, plural
from vl2.data.make.reading import LOCATE_THING, NO_TEXT, locate
from vl2.data.make.sample import Ask, ask
from vl2.data.make.shapes import PERSON, RELATION, TEXT, WHERE
from vl2.geometry import PixelBox

UNKNOWN = "I do not know."
SOMETHING = "something that I do not know"
LETTERED = frozenset(
    (
        *("newspaper", "taxi", "keyboard", "ruler", "clock", "watch", "radio", "die", "bottle"),
        *("mobile phone", "telephone", "battery", "envelope", "shield", "truck", "bus", "shirt"),
        *("ambulance", "police car", "fire truck", "cap", "fries", "book", "trophy", "robot"),
        *("gift", "thermometer", "computer", "laptop", "medal", "candy", "soccer ball"),
    )
)
"""Things that may bear letters: nobody is asked to read them, and they are not mirrored."""
ALMOST_PERSONS = frozenset(("hand", "eye", "ear", "nose", "mouth", "motorcycle", "tractor"))
ALMOST_ANIMALS = ("toy", "figure", "person")
WHAT = (
    "What is in this picture?",
    "What [do you see|is shown|can be seen][ here| in the picture|]?",
    "What [things|objects] are [there|in the picture]?",
    "[Name|List] [everything|what] you see.",
    "Caption this[ image|].",
)
WHAT_IS = (
    "What is this?",
    "[What|Which] [object|thing] is [this|it|shown]?",
    "What is in this picture?",
    "What [do you see|is shown]?",
    "Name [this|it|the object|this thing].",
    "[What's this|What is that]?",
)
WHAT_ANIMAL = ("[What|Which] animal is [this|it|shown]?", "Name the animal.")
DESCRIBE = (
    "Describe [the picture|this image|the image|what you see][.| in detail.| briefly.]",
    "[Give|Write] a [short |]description[ of the picture|].",
    "Tell me what is where[ in the picture|].",
)
SEE = ("[Do you see|Can you see] {a}?", "Does the picture [show|contain] {a}?")
THERE = (
    *SEE,
    "Is {a} in the picture?",
    "Is there {a}?",
    "Is there {a} in [the picture|this image|it]?",
)
COUNT = (
    "How many {names} are there?",
    "[Count the {names}.|Number of {names}?]",
    "How many {names} [do you see|are in the picture|can you see]?",
)
COLOUR = (
    "What [colour|color] is the {name}?",
    "Which [colour|color] does the {name} have?",
    "[Colour|Color] of the {name}?",
)
BACK = (
    "What [colour|color] is the background?",
    "Which [colour|color] does the background have?",
    "What is the background [colour|color]?",
)
SIDES_OF = {
    "What is [left of|to the left of] the {name}?": (-1, 0),
    "What is [right of|to the right of] the {name}?": (1, 0),
    "What [is|stands] above the {name}?": (0, -1),
    "What is [below|under] the {name}?": (0, 1),
}
NEXT_TO = ("What is next to the {name}?", "What is [near|beside|nearest to] the {name}?")
ANIMAL = ("Is there an animal?", "[Do you see|Can you see] an animal?", "Are there [any|] animals?")
AT = {"left": "on the left", "right": "on the right", "centre": "in the centre"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """A thing on the picture; one without a name is not to be named."""

    thing: Thing | None
    box: PixelBox
    colour: str = ""

    @property
    def name(self) -> str:
        """What one calls it."""
        return self.thing.name if self.thing else "thing"


def thing_asks(
    rng: np.random.Generator,
    puts: Sequence[Put],
    size: tuple[int, int],
    colour: str,
    material: Drawings,
) -> list[Ask]:
    """One question about what is there, and up to six others."""
    first = ask("thing.name", phrase(rng, pick(rng, WHAT)), sentence(puts))
    if len(puts) == 1 and chance(rng, 0.75):
        animal = puts[0].thing is not None and puts[0].thing.group == "animal"
        forms = WHAT_ANIMAL if animal and chance(rng, 0.3) else WHAT_IS
        first = ask("thing.name", phrase(rng, pick(rng, forms)), sentence(puts))
    if first.answer == (UNKNOWN,):
        first = replace(first, skill="thing.unknown")
    asks = [*absent_asks(rng, puts, material), *general_asks(rng, puts)]
    if chance(rng, 0.5):
        asks.append(_described(rng, puts, size, colour))
    if colour and puts:
        asks.append(ask("thing.background", phrase(rng, pick(rng, BACK)), colour))
    known = {put.name: put for put in puts if put.thing is not None}
    for put in some(rng, list(known.values()), 2):
        asks += _about(rng, put, puts, size)
    asks = [each for each in shuffled(rng, asks) if each.question != first.question]
    return shuffled(rng, [first, *asks[:6]])


def many_of(thing: Thing) -> str:
    """What several of it are called."""
    return thing.name if thing.many == "-" else thing.many or plural(thing.name)


def one_of(thing: Thing) -> str:
    """Its name with an article, where it has one."""
    return thing.name if thing.many == "-" else one(thing.name)


def numbered(puts: Sequence[Put], places: dict[str, str] | None = None) -> list[str]:
    """Each name once with its number: "a dog", "two cats"; single ones with their places."""
    parts = []
    for name, count in Counter(put.name for put in puts).items():
        thing = next(put.thing for put in puts if put.name == name)
        at = (places or {}).get(name, "")
        if thing is None:
            parts.append(SOMETHING + at)
        else:
            parts.append(one_of(thing) + at if count == 1 else f"{NUMBERS[count]} {many_of(thing)}")
    return parts


def sentence(puts: Sequence[Put]) -> str:
    """What is there, as an answer."""
    if len(puts) == 1 and puts[0].thing is None:
        return UNKNOWN
    text = joined(numbered(puts)) if puts else "an empty picture"
    return f"{capitalised(text)}."


def whereabouts(puts: Sequence[Put], size: tuple[int, int]) -> dict[str, str]:
    """Where a thing is that is there once, as words to follow its name."""
    counts = Counter(put.name for put in puts)
    found = {}
    for put in puts:
        if counts[put.name] == 1 and (place := place_name(put.box, size)):
            found[put.name] = f" {AT.get(place, f'at the {place}')}"
    return found


def _described(
    rng: np.random.Generator, puts: Sequence[Put], size: tuple[int, int], colour: str
) -> Ask:
    """What is where, and the background."""
    places = whereabouts(puts, size)
    text = joined(numbered(puts, places)) if puts else "an empty picture"
    text = f"{capitalised(text)}."
    if colour:
        text += f" The background is {colour}."
    return ask("thing.describe", phrase(rng, pick(rng, DESCRIBE)), text)


def absent_asks(rng: np.random.Generator, puts: Sequence[Put], material: Drawings) -> list[Ask]:
    """Things that are not there: half of them like one that is there."""
    kin = {put.thing.kin for put in puts if put.thing}
    known = [put.thing for put in puts if put.thing in material.things]
    missing = None
    while missing is None or missing.kin in kin or missing.many == "-":
        missing = pick(rng, material.things)
        if known and chance(rng, 0.5):
            near = material.things.index(pick(rng, known)) + integer(rng, -12, 12)
            missing = material.things[near % len(material.things)]
    asks = [
        ask("thing.there", phrase(rng, pick(rng, THERE), a=one(missing.name)), "No"),
        locate(rng, "thing", missing.name, (), LOCATE_THING),
    ]
    if chance(rng, 0.3):
        asks.append(ask("thing.count", phrase(rng, pick(rng, COUNT), names=many_of(missing)), "0"))
    return asks


def general_asks(rng: np.random.Generator, puts: Sequence[Put], *, total: bool = True) -> list[Ask]:
    """Text, persons, animals and how many things there are."""
    asks = []
    groups = [put.thing.group if put.thing else "unknown" for put in puts]
    if all(put.name not in LETTERED for put in puts) and "unknown" not in groups:
        question = phrase(rng, pick(rng, TEXT))
        asks.append(ask("thing.no_text", question, "No" if "there" in question else NO_TEXT))
    almost = (
        "figure" in groups or "unknown" in groups or any(put.name in ALMOST_PERSONS for put in puts)
    )
    if chance(rng, 0.35 if "person" not in groups else 1) and not almost:
        asks.append(_how_many(rng, PERSON, "person", groups.count("person")))
    if chance(rng, 0.35) and not any(g in ("unknown", *ALMOST_ANIMALS) for g in groups):
        asks.append(_how_many(rng, (*ANIMAL, *COUNT), "animal", groups.count("animal")))
    if total and puts and chance(rng, 0.4):
        question = phrase(rng, pick(rng, COUNT), names=pick(rng, ("things", "objects")))
        asks.append(ask("thing.count", question, str(len(puts))))
    return asks


def _how_many(rng: np.random.Generator, forms: Sequence[str], group: str, count: int) -> Ask:
    """Whether there is something of a group, or how much of it, as the form asks."""
    form = pick(rng, forms if count <= 5 else [form for form in forms if form not in COUNT])
    if form in COUNT or "many" in form:
        return ask("thing.count", phrase(rng, form, names=plural(group)), str(count))
    return ask(f"thing.{group}", phrase(rng, form), "Yes" if count else "No")


def _about(
    rng: np.random.Generator, put: Put, puts: Sequence[Put], size: tuple[int, int]
) -> list[Ask]:
    """One of the things: where it is, how many there are, and what is true of it alone."""
    thing = put.thing
    assert thing is not None
    same = [other for other in puts if other.name == put.name]
    counted = thing.many != "-"  # else "Where is the glasses?" would be wrong
    places = LOCATE_THING if counted else [form for form in LOCATE_THING if "Where" not in form]
    asks = [
        locate(rng, "thing", put.name, tuple(p.box for p in same), places),
        ask(
            "thing.there", phrase(rng, pick(rng, THERE if counted else SEE), a=one_of(thing)), "Yes"
        ),
    ]
    if counted and (len(same) > 1 or chance(rng, 0.35)):
        count = phrase(rng, pick(rng, COUNT), names=many_of(thing))
        asks.append(ask("thing.count", count, str(len(same))))
    if len(same) > 1:
        return asks
    if put.colour:
        form = pick(rng, COLOUR if counted else COLOUR[-1:])
        asks.append(ask("thing.colour", phrase(rng, form, name=put.name), put.colour))
    if place := place_name(put.box, size):
        form = pick(rng, WHERE if counted else WHERE[-1:])
        asks.append(ask("thing.place", phrase(rng, form, name=put.name), place))
    others = [other for other in puts if other is not put]
    if others:
        asks += _beside(rng, put, others)
        asks += _relation(rng, put, others) if counted else []
    return asks


def _beside(rng: np.random.Generator, put: Put, others: Sequence[Put]) -> list[Ask]:
    """What is left, right, above, below or nearest, where there is no doubt."""
    asks = []
    for form, way in shuffled(rng, list(SIDES_OF.items())):
        along = [_along(put.box, other.box, way) for other in others]
        if None not in along and any(along):
            there = [other for other, yes in zip(others, along, strict=True) if yes]
            answer = sentence(there)
            asks.append(ask("thing.beside", phrase(rng, form, name=put.name), answer))
            break
    gaps = sorted((_gap(put.box, other.box), k) for k, other in enumerate(others))
    if len(gaps) == 1 or gaps[0][0] < 0.5 * gaps[1][0]:
        nearest = sentence([others[gaps[0][1]]])
        asks.append(ask("thing.beside", phrase(rng, pick(rng, NEXT_TO), name=put.name), nearest))
    return asks


def _along(box: PixelBox, other: PixelBox, way: tuple[int, int]) -> bool | None:
    """Whether the other lies that way: within 35 degrees, not beyond 55; None between."""
    dx, dy = (((other[k] + other[k + 2]) - (box[k] + box[k + 2])) / 2 for k in (0, 1))
    ahead, aside = dx * way[0] + dy * way[1], abs(dx * way[1]) + abs(dy * way[0])
    if ahead <= 0 or aside > 1.43 * ahead:
        return False
    return True if aside < 0.7 * ahead else None


def _gap(box: PixelBox, other: PixelBox) -> float:
    across = max(other[0] - box[2], box[0] - other[2], 0)
    down = max(other[1] - box[3], box[1] - other[3], 0)
    return float(np.hypot(across, down))


def _relation(rng: np.random.Generator, put: Put, others: Sequence[Put]) -> list[Ask]:
    """Whether the thing lies left of, right of, above or below another single one."""
    names = Counter(other.name for other in others)
    single = [other for other in others if other.thing and names[other.name] == 1]
    if not single:
        return []
    other, form = pick(rng, single), pick(rng, RELATION)
    k = 0 if "left" in form or "right" in form else 1
    apart = (other.box[k] + other.box[k + 2] - put.box[k] - put.box[k + 2]) / 2
    if abs(apart) < 30:
        return []
    answer = "Yes" if (apart > 0) == ("left" in form or "above" in form) else "No"
    return [ask("thing.relation", phrase(rng, form, a=put.name, b=other.name), answer)]
