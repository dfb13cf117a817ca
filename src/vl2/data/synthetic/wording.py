"""The plain English of synthetic questions and answers: phrasings, plurals, lists, boxes."""

from collections.abc import Iterable, Sequence

import numpy as np

from vl2.data.synthetic.chance import chance, pick
from vl2.data.synthetic.scene import SceneObject, Size
from vl2.geometry import PixelBox

PHRASINGS: dict[str, tuple[str, ...]] = {
    # the first phrasing of each line is used half of the time
    "read": (
        "Read the text.",
        "What does it say?",
        "What is written here?",
        "What text is in the picture?",
        "Which text do you see?",
        "Please read what is written.",
    ),
    "locate": ("Locate the {}.", "Find the {}.", "Show me the {}.", "Detect the {}."),
    "official locate": ("Locate <|ref|>the {}<|/ref|> in the given image.",),
    "count": (
        "How many {} are there?",
        "Count the {}.",
        "How many {} do you see?",
        "What is the number of {}?",
    ),
    "colour": ("What colour is the {}?", "Which colour is the {}?", "Name the colour of the {}."),
    "shape": (
        "What shape is {}?",
        "Which shape is {}?",
        "What is the {} shape?",
        "Name the {} shape.",
    ),
    "position": (
        "Where is the {}?",
        "In which part of the picture is the {}?",
        "What is the position of the {}?",
    ),
    "reverse position": ("What is {}?", "Which shape is {}?"),
    "list colours": ("Name the colour of each shape.", "What colour is each shape?"),
    "list shapes": ("Name the shape of each colour.", "List the shapes by colour."),
    "list places": ("Where is each shape?", "Name the position of each shape."),
    "list boxes": ("Locate each shape.", "Find all shapes."),
    "relation": ("Is the {} {} the {}?",),
    "caption": (
        "Describe the picture.",
        "What is in the picture?",
        "What do you see?",
        "Describe this image.",
    ),
}

NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def phrased(rng: np.random.Generator, kind: str, *names: str) -> str:
    """A question of the kind about `names`; the main phrasing half of the time."""
    phrasings = PHRASINGS[kind]
    phrasing = phrasings[0] if chance(rng, 0.5) else pick(rng, phrasings)
    return phrasing.format(*names)


def plural(shape: str) -> str:
    """More than one of a shape."""
    return shape + "es" if shape.endswith("s") else shape + "s"


def some(number: int, name: str) -> str:
    """A number of things: "a red circle", "an orange star", "two squares"."""
    if number == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return f"{NUMBERS[number]} {plural(name)}"


def listed(parts: Sequence[str]) -> str:
    """The parts joined as in "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def grounded(label: str, boxes: Iterable[PixelBox], size: Size) -> str:
    """The label with its boxes in the released form, edges scaled to 0..999, top left first."""
    ordered = sorted(boxes, key=lambda box: (box[1], box[0]))
    scaled = [
        [round(edge / length * 999) for edge, length in zip(box, (*size, *size), strict=True)]
        for box in ordered
    ]
    return f"<|ref|>{label}<|/ref|><|det|>{scaled}<|/det|>"


def by_name(items: Sequence[SceneObject]) -> list[tuple[str, list[SceneObject]]]:
    """The objects grouped by name, the groups from left to right by their first object."""
    groups: dict[str, list[SceneObject]] = {}
    for item in sorted(items, key=lambda item: item.centre):
        groups.setdefault(item.name, []).append(item)
    return list(groups.items())
