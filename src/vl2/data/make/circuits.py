"""Circuit diagrams: a loop of wires with batteries, resistors, lamps and other parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, phrase, pick, some
from vl2.data.make.naming import listed, plural
from vl2.data.make.paper import finish, ink, light_colour
from vl2.data.make.pen import Pen, Point, ellipse
from vl2.data.make.reading import LOCATE_THING, different, locate, locate_asks
from vl2.data.make.sample import Ask, Made, ask
from vl2.data.make.sheet import Sheet, Style
from vl2.data.make.world import World
from vl2.geometry import PixelBox

LOOKS = {"train": ("zigzag", "zigzag", "wobbly"), "heldout": ("box", "sketch")}
LETTERS = {
    "resistor": "R",
    "capacitor": "C",
    "battery": "B",
    "lamp": "L",
    "switch": "S",
    "diode": "D",
    "fuse": "F",
    "motor": "M",
}
COUNT = (
    "How many {names} are there?",
    "[Count|Number of] {names}[.|?]",
    "How many {names} [does the circuit have|do you see]?",
)
VALUE = (
    "What is the value of {name}?",
    "What [value|rating] does {name} have?",
    "{name}?",
)
WHICH = "[Which|What] part [has|is] {value}?"
TYPE = ("What [kind of part|kind of component|] is {name}?", "What does {name} stand for?")
THERE = ("Is there a {noun}[ in the circuit|]?", "Does the circuit [have|contain] a {noun}?")
OPEN_OR_CLOSED = "[Is the switch open or closed|Open or closed switch]?"
STATE = "Is the switch {state}?"
LARGER = "Which [resistor is|is] larger, {a} or {b}?"
KIND = ("What [is this|kind of drawing is this|does the picture show]?",)
DESCRIBE = (
    "Describe [the circuit|the picture|this image|the image].",
    "What [is in this picture|do you see|is shown]?",
    "Caption this[ image|].",
)
OHMS = (10, 22, 47, 68, 100, 150, 220, 330, 470, 560, 680, 820)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the circuit with its label and value."""

    noun: str
    label: str
    value: str = ""
    size: float = 0.0  # what the value says, for comparing resistors
    closed: bool = True  # of a switch
    box: PixelBox = (0, 0, 0, 0)


PartPlace = tuple[Point, bool]
"""The middle of a part and whether its wire runs across."""


def make(rng: np.random.Generator, world: World) -> Made:
    """Two to seven parts on a loop, or on a loop with a branch."""
    size = integer(rng, 13, 22)
    across, branch = integer(rng, 1, 3), chance(rng, 0.4)
    width, height = (4 + 6 * across) * size, integer(rng, 11, 16) * size
    margin = integer(rng, 4, 7) * size
    paper = light_colour(rng) if chance(rng, 0.85) else (30, 32, 40)
    sheet = Sheet(Image.new("RGB", (width + 2 * margin, height + 2 * margin), paper))
    style = Style(face=world.plain_face(rng), size=size, colour=ink(rng, paper, plain=True))
    frame = (margin, margin, margin + width, margin + height)
    places, wires = _layout(rng, frame, across, branch)
    parts = _parts(rng, style, len(places))
    look = pick(rng, world.style(LOOKS))
    wobble = between(rng, 0.8, 1.8) if look in ("wobbly", "sketch") else 0.0
    pen = Pen(rng, sheet, width=integer(rng, 1, 3), wobble=wobble, strokes=1 + (look == "sketch"))
    for wire in wires:
        pen.line(wire)
    found = [
        draw_part(pen, part, place, look, 2.0 * size)
        for part, place in zip(parts, places, strict=True)
    ]
    pen.lift(style.colour)
    for part, (middle, lying) in zip(found, places, strict=True):
        sheet.mark(f"{part.noun} {part.label}", part.box)
        _label(sheet, part, middle, lying, style)
    image, marks = finish(rng, sheet, strength=0.8)
    boxes = [mark.box for mark in marks if mark.kind == "thing"]
    found = [replace(part, box=box) for part, box in zip(found, boxes, strict=True)]
    facts = {"form": "circuit", "parts": [(p.noun, p.label, p.value) for p in found]}
    asks = circuit_asks(rng, found)
    asks += locate_asks(rng, [mark for mark in marks if mark.kind == "line"], "circuit", most=1)
    return Made(image=image, marks=marks, asks=tuple(different(rng, asks, 7)), facts=facts)


def _layout(
    rng: np.random.Generator, frame: PixelBox, across: int, branch: bool
) -> tuple[list[PartPlace], list[list[Point]]]:
    """Places of the parts, the source first, and the wires, which parts interrupt."""
    x1, y1, x2, y2 = frame
    wires: list[list[Point]] = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]]
    places: list[PartPlace] = [((x1, (y1 + y2) / 2), False)]
    steps = [x1 + (x2 - x1) * (n + 0.5) / across for n in range(across)]
    places += [((x, y1), True) for x in steps]
    if chance(rng, 0.6):
        places.append(((x2, (y1 + y2) / 2), False))
    if across > 1 and branch:
        x = (steps[0] + steps[1]) / 2
        wires.append([(x, y1), (x, y2)])
        places.append(((x, (y1 + y2) / 2), False))
    elif chance(rng, 0.5):
        places += [((x, y2), True) for x in some(rng, steps, integer(rng, 1, across))]
    return places, wires


def _parts(rng: np.random.Generator, style: Style, count: int) -> list[Part]:
    """A battery and others; resistors are the most frequent."""
    nouns = ["battery"]
    usual = ("resistor", "resistor", "resistor", "lamp", "lamp", "capacitor", "diode", "motor")
    while len(nouns) < count:
        noun = pick(rng, (*usual, "switch", "fuse"))
        if noun not in ("switch", "fuse", "motor") or noun not in nouns:
            nouns.append(noun)
    seen: Counter[str] = Counter()
    parts: list[Part] = []
    valued = chance(rng, 0.8)
    for noun in nouns:
        seen[noun] += 1
        value, size = _value(rng, noun) if valued else ("", 0.0)
        same = value.replace(" ", "")
        taken = any(p.value.replace(" ", "") == same or 0 < p.size == size for p in parts)
        label = f"{LETTERS[noun]}{seen[noun]}"
        value, size = ("", 0.0) if taken else (value, size)
        closed = chance(rng, 0.5)
        parts.append(Part(noun=noun, label=label, value=value, size=size, closed=closed))
    return parts


def _value(rng: np.random.Generator, noun: str) -> tuple[str, float]:
    """What is written beside a part, and what it is in units."""
    if noun == "battery":
        volts = pick(rng, ("1.5", "3", "4.5", "5", "9", "12", "24"))
        return f"{volts}{pick(rng, ('V', ' V'))}", float(volts)
    if noun == "resistor":
        ohms = pick(rng, OHMS)
        if chance(rng, 0.5):
            return f"{ohms / 100:g}k", ohms * 10.0
        return f"{ohms}{pick(rng, ('', ' ohm', 'R'))}", float(ohms)
    if noun == "capacitor":
        return f"{pick(rng, OHMS)}{pick(rng, ('uF', 'nF', 'pF', ' uF'))}", 0.0
    if noun in ("lamp", "motor"):
        return f"{pick(rng, (3, 6, 9, 12, 24))}{pick(rng, ('V', 'W', ' V'))}", 0.0
    if noun == "fuse":
        return f"{pick(rng, (1, 2, 3, 5, 10))}A", 0.0
    return "", 0.0


def draw_part(pen: Pen, part: Part, place: PartPlace, look: str, half: float) -> Part:
    """Draw a part on its wire; `half` is half of its length."""
    (x, y), lying = place
    wipe = half * (0.28 if part.noun in ("battery", "capacitor") else 1.0)

    def turned(points: Sequence[Point]) -> list[Point]:
        scaled = [(half * a, half * b) for a, b in points]
        return [(x + a, y + b) if lying else (x - b, y + a) for a, b in scaled]

    corners = turned([(-wipe / half, -0.1), (wipe / half, 0.1)])
    box = [
        round(2 * v)
        for v in (*map(min, zip(*corners, strict=True)), *map(max, zip(*corners, strict=True)))
    ]
    pen.draw.rectangle(box, fill=0)  # the wire ends at the part
    closed, open_, reach = _symbol(part, look)
    for path in open_:
        pen.line(turned(path))
    for path in closed:
        pen.closed(turned(path))
    return replace(part, box=_around(turned([reach[:2], reach[2:]])))


def _around(points: Sequence[Point]) -> PixelBox:
    xs, ys = zip(*points, strict=True)
    return round(min(xs)), round(min(ys)), round(max(xs)), round(max(ys))


Paths = list[list[Point]]
Reach = tuple[float, float, float, float]
Symbol = tuple[Paths, Paths, Reach]
"""Closed and open lines in half lengths along and across the wire, and how far they reach."""


def _resistor(part: Part, look: str) -> Symbol:
    if look in ("box", "sketch"):
        return [[(-1, -0.36), (1, -0.36), (1, 0.36), (-1, 0.36)]], [], (-1, -0.36, 1, 0.36)
    teeth = [(-0.84 + 0.28 * n, 0.4 * (-1) ** n) for n in range(7)]
    return [], [[(-1, 0), *teeth, (1, 0)]], (-1, -0.4, 1, 0.4)


def _capacitor(part: Part, look: str) -> Symbol:
    return [], [[(-0.2, -0.6), (-0.2, 0.6)], [(0.2, -0.6), (0.2, 0.6)]], (-0.24, -0.62, 0.24, 0.62)


def _battery(part: Part, look: str) -> Symbol:
    return (
        [],
        [[(-0.22, -0.7), (-0.22, 0.7)], [(0.22, -0.34), (0.22, 0.34)]],
        (-0.26, -0.72, 0.26, 0.72),
    )


def _lamp(part: Part, look: str) -> Symbol:
    r = 0.7
    cross: Paths = [
        [(-r * 0.7, -r * 0.7), (r * 0.7, r * 0.7)],
        [(-r * 0.7, r * 0.7), (r * 0.7, -r * 0.7)],
    ]
    return [ellipse((0, 0), (r, r))], [*cross, [(-1, 0), (-r, 0)], [(r, 0), (1, 0)]], (-r, -r, r, r)


def _switch(part: Part, look: str) -> Symbol:
    lever = [(-0.75, 0.0), (0.75, 0.0 if part.closed else -0.62)]
    dots = [ellipse((-0.8, 0), (0.07, 0.07), 10), ellipse((0.8, 0), (0.07, 0.07), 10)]
    return (
        dots,
        [lever, [(-1, 0), (-0.87, 0)], [(0.87, 0), (1, 0)]],
        (-0.88, -0.08 if part.closed else -0.64, 0.88, 0.08),
    )


def _diode(part: Part, look: str) -> Symbol:
    wings: Paths = [[(-0.45, -0.5), (0.4, 0), (-0.45, 0.5)]]
    bar: Paths = [[(0.4, -0.5), (0.4, 0.5)], [(-1, 0), (-0.45, 0)], [(0.4, 0), (1, 0)]]
    return wings, bar, (-0.48, -0.52, 0.42, 0.52)


def _fuse(part: Part, look: str) -> Symbol:
    return (
        [[(-0.8, -0.26), (0.8, -0.26), (0.8, 0.26), (-0.8, 0.26)]],
        [[(-1, 0), (1, 0)]],
        (-0.8, -0.28, 0.8, 0.28),
    )


def _motor(part: Part, look: str) -> Symbol:
    r = 0.7
    letter: Paths = [[(-0.26, 0.32), (-0.26, -0.32), (0, 0.12), (0.26, -0.32), (0.26, 0.32)]]
    return (
        [ellipse((0, 0), (r, r))],
        [[(-1, 0), (-r, 0)], [(r, 0), (1, 0)], *letter],
        (-r, -r, r, r),
    )


_SYMBOLS: dict[str, Callable[[Part, str], Symbol]] = {
    "resistor": _resistor,
    "capacitor": _capacitor,
    "battery": _battery,
    "lamp": _lamp,
    "switch": _switch,
    "diode": _diode,
    "fuse": _fuse,
    "motor": _motor,
}


def _symbol(part: Part, look: str) -> Symbol:
    return _SYMBOLS[part.noun](part, look)


def _label(sheet: Sheet, part: Part, middle: Point, lying: bool, style: Style) -> None:
    """The label above and the value below a lying part, both at the right of a standing one."""
    x, y = middle
    gap = (part.box[3] - part.box[1]) / 2 if lying else (part.box[2] - part.box[0]) / 2
    if lying:
        sheet.text(x - style.width(part.label) / 2, y - gap - 1.45 * style.size, part.label, style)
        if part.value:
            sheet.text(
                x - style.width(part.value) / 2, y + gap + 0.2 * style.size, part.value, style
            )
        return
    left, top = x + gap + 0.5 * style.size, y - (1.3 if part.value else 0.65) * style.size
    sheet.text(left, top, part.label, style)
    if part.value:
        sheet.text(left, top + style.leading, part.value, style)


def circuit_asks(rng: np.random.Generator, parts: Sequence[Part]) -> list[Ask]:
    """Values, kinds, counts and places of parts, and what is not there."""
    nouns = Counter(part.noun for part in parts)
    noun, absent = pick(rng, list(nouns)), [n for n in LETTERS if n not in nouns]
    described = f"A circuit with {listed([part.noun for part in parts])}."
    asks = [
        ask("circuit.kind", phrase(rng, pick(rng, KIND)), "A circuit diagram."),
        ask("circuit.describe", phrase(rng, pick(rng, DESCRIBE)), described),
        ask("circuit.count", phrase(rng, pick(rng, COUNT), names=plural(noun)), str(nouns[noun])),
        ask("circuit.there", phrase(rng, pick(rng, THERE), noun=noun), "Yes"),
    ]
    for part in some(rng, parts, 3):
        asks += _about(rng, part, parts)
    for part in parts:
        if part.noun == "switch":
            state = "open" if chance(rng, 0.5) else "closed"
            right = "Yes" if (state == "closed") == part.closed else "No"
            shown = "Closed" if part.closed else "Open"
            asks.append(ask("circuit.state", phrase(rng, OPEN_OR_CLOSED), shown))
            asks.append(ask("circuit.state", phrase(rng, STATE, state=state), right))
    resistors = [part for part in parts if part.size and part.noun == "resistor"]
    if len(resistors) > 1:
        a, b = some(rng, resistors, 2)
        larger = a if a.size > b.size else b
        question = phrase(rng, LARGER, a=a.label, b=b.label)
        asks.append(ask("circuit.larger", question, larger.label))
    if absent:
        missing = pick(rng, absent)
        asks.append(ask("circuit.there", phrase(rng, pick(rng, THERE), noun=missing), "No"))
        asks.append(ask("circuit.count", phrase(rng, pick(rng, COUNT), names=plural(missing)), "0"))
        asks.append(locate(rng, "circuit", missing, (), LOCATE_THING))
    return asks


def _about(rng: np.random.Generator, part: Part, parts: Sequence[Part]) -> list[Ask]:
    """One of the parts by its label."""
    name = f"{part.noun} {part.label}"
    same = tuple(p.box for p in parts if p.noun == part.noun)
    asks = [
        locate(rng, "circuit", name, (part.box,), LOCATE_THING),
        locate(rng, "circuit", part.noun, same, LOCATE_THING),
        ask("circuit.type", phrase(rng, pick(rng, TYPE), name=part.label), f"A {part.noun}."),
    ]
    if part.value:
        asks += [
            ask("circuit.value", phrase(rng, pick(rng, VALUE), name=part.label), part.value)
        ] * 2
        question = phrase(rng, WHICH, value=part.value)
        asks.append(ask("circuit.which", question, part.label))
    return asks
