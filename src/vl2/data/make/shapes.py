"""Shapes in plain colours, for naming, counting, colours, places and relations; arrows; no text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.make.chance import between, chance, integer, phrase, pick, shuffled, some
from vl2.data.make.naming import COLOURS, capitalised, listed, place_name, plural, shade
from vl2.data.make.paper import finish, ground
from vl2.data.make.reading import LOCATE_THING, locate
from vl2.data.make.sample import Ask, Made, ask
from vl2.data.make.sheet import Colour, Sheet
from vl2.data.make.world import World
from vl2.geometry import PixelBox

SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring", "arrow"),
    *("rectangle", "ellipse", "pentagon", "hexagon", "crescent"),
)
WAYS = {"right": 0, "down": 90, "left": 180, "up": 270}
COLOUR = (
    "What [colour|color] is the {shape}?",
    "Which [colour|color] does the {shape} have?",
    "[Colour|Color] of the {shape}?",
)
SHAPE = (
    "What shape is {colour}?",
    "What [is|shape is] the {colour} [one|object|thing]?",
    "Which shape is {colour}?",
)
COUNT = (
    "How many {names} are there?",
    "[Count|Number of] {names}[.|?]",
    "How many {names} [do you see|are in the picture|can you see]?",
)
WHERE = (
    "[In which part of the picture|Where in the picture] is the {name}?",
    "What is the position of the {name}?",
)
RELATION = (
    "Is the {a} [left of|to the left of] the {b}?",
    "Is the {a} above the {b}?",
    "Is the {a} below the {b}?",
    "Is the {a} [right of|to the right of] the {b}?",
)
THERE = (
    "Is there a {name}?",
    "[Do you see|Can you see] a {name}?",
    "Does the picture [show|contain] a {name}?",
)
DESCRIBE = (
    "What is in this picture?",
    "Describe [the picture|this image|the image|what you see].",
    "What [do you see|is shown]?",
    "Caption this[ image|].",
)
POINTS = (
    "[Which way|Where|In which direction] does the [{colour} |]arrow point?",
    "What direction is the arrow[ pointing|]?",
)
BIGGEST = ("[Which|What] shape is [the|] [largest|biggest]?", "What is the largest [shape|object]?")
TEXT = ("What does it say?", "Read the text.", "Is there [any|] text [in the picture|]?")
PERSON = ("Is there a person in the picture?", "How many people are there?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape on the picture."""

    shape: str
    colour: str
    box: PixelBox
    way: str = ""  # of an arrow

    @property
    def name(self) -> str:
        """What one calls it."""
        return f"{self.colour} {self.shape}"


def make(rng: np.random.Generator, world: World) -> Made:
    """No to eight shapes on a ground that none of them melts into."""
    size = (integer(rng, 160, 800), integer(rng, 160, 700))
    sheet = Sheet(ground(rng, world, size))
    count = pick(rng, (1, 2, 2, 3, 3, 4, 5, 6, 8)) if chance(rng, 0.96) else 0
    few = some(rng, SHAPES, 2) if chance(rng, 0.35) else list(SHAPES)  # for counting
    shapes: list[Shape] = []
    for _ in range(count):
        if (shape := _put(rng, sheet, shapes, few)) is not None:
            shapes.append(shape)
    for shape in shapes:
        sheet.mark(shape.name, shape.box)
    image, marks = finish(rng, sheet)
    boxes = [mark.box for mark in marks if mark.kind == "thing"]
    found = [
        Shape(shape=s.shape, colour=s.colour, box=box, way=s.way)
        for s, box in zip(shapes, boxes, strict=True)
    ]
    facts = {"shapes": [(s.colour, s.shape) for s in found]}
    return Made(image=image, marks=marks, asks=tuple(_asks(rng, found, image.size)), facts=facts)


def _put(
    rng: np.random.Generator, sheet: Sheet, others: Sequence[Shape], few: Sequence[str]
) -> Shape | None:
    """Draw one shape where it touches no other; None where there is no room."""
    width, height = sheet.size
    for _ in range(30):
        side = round(min(width, height) * between(rng, 0.12, 0.42))
        x, y = integer(rng, 2, max(3, width - side - 2)), integer(rng, 2, max(3, height - side - 2))
        whole = (x, y, x + side, y + side)
        if whole[2] > width - 2 or whole[3] > height - 2:
            continue
        if any(touch(whole, other.box) for other in others):
            continue
        name, colour = named_colour(rng, sheet.image, whole)
        shape, way = pick(rng, few), pick(rng, list(WAYS))
        mask = draw_shape(shape, side, WAYS[way] if shape == "arrow" else between(rng, -12, 12))
        sheet.image.paste(colour, (x, y), mask)
        box = mask.getbbox()
        assert box is not None
        placed = (x + box[0], y + box[1], x + box[2], y + box[3])
        return Shape(shape=shape, colour=name, box=placed, way=way if shape == "arrow" else "")
    return None


def touch(one: PixelBox, two: PixelBox, gap: int = 4) -> bool:
    """Whether two boxes overlap or lie closer than `gap` pixels."""
    across = one[0] < two[2] + gap and two[0] < one[2] + gap
    return across and one[1] < two[3] + gap and two[1] < one[3] + gap


def named_colour(rng: np.random.Generator, image: Image.Image, box: PixelBox) -> tuple[str, Colour]:
    """A named colour that differs from what is behind it."""
    behind = np.asarray(image.crop(box).resize((6, 6)), np.float32).reshape(-1, 3)
    while True:
        name = pick(rng, list(COLOURS))
        colour = shade(rng, name)
        if np.abs(behind - np.array(colour)).sum(1).min() > 110:
            return name, colour


def draw_shape(shape: str, side: int, turn: float) -> Image.Image:
    """The mask of a shape, `side` pixels square, turned clockwise by `turn` degrees."""
    big = 4 * side
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    middle, radius = big / 2, big * 0.46

    def polygon(points: Sequence[tuple[float, float]]) -> None:
        turned = math.radians(turn)
        draw.polygon(
            [
                (
                    middle + radius * (px * math.cos(turned) - py * math.sin(turned)),
                    middle + radius * (px * math.sin(turned) + py * math.cos(turned)),
                )
                for px, py in points
            ],
            fill=255,
        )

    def round_box(scale: float, tall: float = 1.0) -> tuple[float, float, float, float]:
        wide, high = radius * scale, radius * scale * tall
        return middle - wide, middle - high, middle + wide, middle + high

    if shape in ("circle", "ring", "crescent"):
        draw.ellipse(round_box(1.0), fill=255)
        if shape == "ring":
            draw.ellipse(round_box(0.55), fill=0)
        if shape == "crescent":
            x1, y1, x2, y2 = round_box(0.85)
            draw.ellipse((x1 + radius * 0.5, y1, x2 + radius * 0.5, y2), fill=0)
    elif shape == "ellipse":
        draw.ellipse(round_box(1.0, 0.55), fill=255)
    elif shape == "heart":
        _heart(draw, middle, radius)
    else:
        polygon(_corners(shape))
    return mask.resize((side, side), Image.Resampling.BOX)


def _heart(draw: ImageDraw.ImageDraw, middle: float, radius: float) -> None:
    steps = [math.tau * n / 60 for n in range(60)]
    points = [
        (
            middle + radius * 0.95 * math.sin(t) ** 3,
            middle
            - radius
            * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            / 17,
        )
        for t in steps
    ]
    draw.polygon(points, fill=255)


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners in units of the radius around the middle, y downward."""
    if shape == "star":
        sides = [(1.0 if n % 2 == 0 else 0.42, math.pi * n / 5 - math.pi / 2) for n in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for r, a in sides]
    regular = {"triangle": 3, "pentagon": 5, "hexagon": 6}
    if shape in regular:
        n = regular[shape]
        return [
            (math.cos(math.tau * k / n - math.pi / 2), math.sin(math.tau * k / n - math.pi / 2))
            for k in range(n)
        ]
    return {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "rectangle": [(-0.95, -0.5), (0.95, -0.5), (0.95, 0.5), (-0.95, 0.5)],
        "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
        "arrow": [
            (-1, -0.22),
            (0.2, -0.22),
            (0.2, -0.6),
            (1, 0),
            (0.2, 0.6),
            (0.2, 0.22),
            (-1, 0.22),
        ],
        "cross": [
            *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)),
            *((0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
        ],
    }[shape]


def _asks(rng: np.random.Generator, shapes: Sequence[Shape], size: tuple[int, int]) -> list[Ask]:
    """What the shapes answer without doubt, and what is not there."""
    missing = f"{pick(rng, list(COLOURS))} {pick(rng, SHAPES)}"
    missing = missing if all(s.name != missing for s in shapes) else "unicorn"
    asks = [
        ask("shape.there", phrase(rng, pick(rng, THERE), name=missing), "No"),
        _no_text(rng),
        locate(rng, "shape", missing, (), LOCATE_THING),
    ]
    asks += (
        [
            ask(
                "shape.person",
                question := phrase(rng, pick(rng, PERSON)),
                "0" if "many" in question else "No",
            )
        ]
        if chance(rng, 0.2)
        else []
    )
    if not shapes:
        return [
            *asks[:2],
            ask("shape.describe", phrase(rng, pick(rng, DESCRIBE)), "An empty picture."),
        ]
    names = Counter(s.name for s in shapes)
    forms, colours = Counter(s.shape for s in shapes), Counter(s.colour for s in shapes)
    description = f"{listed([s.name for s in shapes])}."
    asks.append(
        ask(
            "shape.describe",
            phrase(rng, pick(rng, DESCRIBE)),
            capitalised(description),
        )
    )
    asks += _counts(rng, shapes, forms, colours)
    for shape in some(rng, shapes, 2):
        asks += _about(rng, shape, shapes, size)
    arrows = [s for s in shapes if s.way]
    if len(arrows) == 1:
        asks += [
            ask(
                "shape.points",
                phrase(rng, pick(rng, POINTS), colour=arrows[0].colour),
                arrows[0].way,
            )
        ] * 2
    asks += _relations(rng, [s for s in shapes if names[s.name] == 1])
    return shuffled(rng, asks)[:7]


def _about(
    rng: np.random.Generator, shape: Shape, shapes: Sequence[Shape], size: tuple[int, int]
) -> list[Ask]:
    """One of the shapes: where it is, and what is true of it alone."""
    forms, colours = Counter(s.shape for s in shapes), Counter(s.colour for s in shapes)
    names = Counter(s.name for s in shapes)
    asks: list[Ask] = []
    same = tuple(s.box for s in shapes if s.name == shape.name)
    asks.append(locate(rng, "shape", shape.name, same, LOCATE_THING))
    asks.append(ask("shape.there", phrase(rng, pick(rng, THERE), name=shape.name), "Yes"))
    if forms[shape.shape] == 1:
        asks.append(
            ask("shape.colour", phrase(rng, pick(rng, COLOUR), shape=shape.shape), shape.colour)
        )
    if colours[shape.colour] == 1:
        asks.append(
            ask("shape.name", phrase(rng, pick(rng, SHAPE), colour=shape.colour), shape.shape)
        )
    if names[shape.name] == 1 and (where := place_name(shape.box, size)):
        asks.append(ask("shape.place", phrase(rng, pick(rng, WHERE), name=shape.name), where))
    return asks


def _no_text(rng: np.random.Generator) -> Ask:
    question = phrase(rng, pick(rng, TEXT))
    return ask(
        "shape.no_text", question, "No" if "there" in question else "There is no text in the image."
    )


def _counts(
    rng: np.random.Generator, shapes: Sequence[Shape], forms: Counter[str], colours: Counter[str]
) -> list[Ask]:
    form, colour = pick(rng, list(forms)), pick(rng, list(colours))
    asks = [
        ask("shape.count", phrase(rng, pick(rng, COUNT), names=plural(form)), str(forms[form])),
        ask("shape.count", phrase(rng, pick(rng, COUNT), names="shapes"), str(len(shapes))),
        ask(
            "shape.count",
            phrase(rng, pick(rng, COUNT), names=f"{colour} shapes"),
            str(colours[colour]),
        ),
    ]
    areas = sorted(shapes, key=_area)
    if len(shapes) > 1 and _area(areas[-1]) > 1.4 * _area(areas[-2]):
        asks.append(ask("shape.biggest", phrase(rng, pick(rng, BIGGEST)), areas[-1].name))
    return asks


def _area(shape: Shape) -> int:
    return (shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1])


def _relations(rng: np.random.Generator, unique: Sequence[Shape]) -> list[Ask]:
    """Left, right, above and below, where there is no doubt."""
    if len(unique) < 2:
        return []
    a, b = some(rng, unique, 2)
    form = pick(rng, RELATION)
    k = 0 if "left" in form or "right" in form else 1
    apart = (b.box[k] + b.box[k + 2] - a.box[k] - a.box[k + 2]) / 2
    if abs(apart) < 30:
        return []
    before = "left" in form or "above" in form
    answer = "Yes" if (apart > 0) == before else "No"
    return [ask("shape.relation", phrase(rng, form, a=a.name, b=b.name), answer)]
