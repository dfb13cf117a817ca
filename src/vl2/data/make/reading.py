"""Questions about what is written and where it stands, in the phrasings of people.

The answers of grounded reading are fixed here: each line as its text with its box, in reading
order, one below the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vl2.data.make.chance import chance, integer, phrase, pick, shuffled
from vl2.data.make.sample import Ask, Mark, Spot, Text, ask
from vl2.geometry import PixelBox

READ = (
    "Read the text.",
    "Read [this|it|the text|the words|what is written][.|]",
    "What does [it|this|the image|the picture|the sign|the label] say?",
    "What [is written|does it say|text is] [here|in the image|in the picture|on this]?",
    "What[ is|'s] the text[ in the image| in this picture|]?",
    "[Free OCR.|OCR this.|OCR|Text?|Transcribe the text.|Transcribe this image.|Extract the text.]",
    "[Please r|R]ead [out|] the text [in the image|shown|].",
    "[Can you|Could you] [read|tell me] what [it says|is written here]?",
    "Write down [all|] [the|] text you [see|can read].",
    "[What|Which] [words|text] can you see[ here|]?",
)
READ_PLACED = (
    "Read the text with [its place|places|boxes].",
    "Read the lines with their [boxes|places].",
    "[List|Give] [every|each] line of text [and where it is|with its box].",
    "[List|Give] all lines of text [and where they are|with their boxes].",
    "OCR with [boxes|locations|grounding].",
)
LINES = (
    "Where are the lines of text?",
    "Locate [every|each] line of text.",
    "Find [all|the] lines of text.",
    "[Mark|Show|Locate] all text lines.",
)
NEXT = (
    "Which line [comes|stands|is] [after|below] {place}?",
    "[Read the n|What is the n]ext line after {place}[.|]",
)
AT = ("What [is written|does it say|text is] at {place}?", "Read [the text at |]{place}[.|]")
LOCATE = (
    "Locate {it}[ in the image| in the given image|].",
    "Where is {it}?",
    "Find {it}[ in the picture|].",
    "[Show me w|W]here [does it say|is the text|is the word|it says] {it}[.|?]",
    "{it}",
    "Point [at|to] {it}.",
)
LOCATE_THING = (
    "[Locate|Find|Point at|Show me|Mark] the {it}[ in the image| in the given image|].",
    "Where is the {it}?",
    "[Box|Bounding box of] the {it}.",
    "{it}",
)
ABSENT = ("There is no {name} in the image.",)
NO_MORE = "There is no further line."
NO_TEXT = "There is no text in the image."
LINE_NAME = "line"


def different(rng: np.random.Generator, asks: Sequence[Ask], most: int) -> list[Ask]:
    """At most so many of the asks in random order; one that is there twice is likelier."""
    return list(dict.fromkeys(shuffled(rng, asks)))[:most]


def read_asks(rng: np.random.Generator, lines: Sequence[Mark], skill: str) -> list[Ask]:
    """Everything read, and sometimes with places."""
    text = "\n".join(line.text for line in lines)
    asks = [ask(f"{skill}.read", phrase(rng, pick(rng, READ)), text or NO_TEXT)]
    if lines and chance(rng, 0.4):
        asks.append(ask(f"{skill}.read_placed", phrase(rng, pick(rng, READ_PLACED)), placed(lines)))
    return asks


def placed(lines: Sequence[Mark]) -> Text:
    """Each line with its box, one below the other."""
    parts: list[str | Spot] = []
    for line in lines:
        parts += ["\n"] * bool(parts) + [Spot(label=line.text, boxes=(line.box,))]
    return tuple(parts)


def locate_asks(
    rng: np.random.Generator, marks: Sequence[Mark], skill: str, most: int = 2
) -> list[Ask]:
    """Where one of the marks is, all places of the same text together; sometimes one not there."""
    asks = []
    for _ in range(min(most, len(marks))):
        name = pick(rng, marks).text
        boxes = tuple(mark.box for mark in marks if mark.text == name)
        asks.append(locate(rng, skill, name, boxes))
    return asks


def locate(
    rng: np.random.Generator,
    skill: str,
    name: str,
    boxes: tuple[PixelBox, ...],
    forms: Sequence[str] = LOCATE,
) -> Ask:
    """A request for the places of a name; without boxes the answer says that there is none."""
    form = phrase(rng, pick(rng, forms))
    before, _, after = form.partition("{it}")
    bare = not before and not after
    named: str | Spot = Spot(label=name)
    if not bare and chance(rng, 0.5):
        named = pick(rng, (f'"{name}"', name))
    question = tuple(part for part in (before, named, after) if part)
    if not boxes:
        return ask(f"{skill}.absent", question, phrase(rng, pick(rng, ABSENT), name=name))
    return ask(f"{skill}.locate", question, (Spot(label=name, boxes=boxes),))


def line_asks(rng: np.random.Generator, lines: Sequence[Mark], skill: str) -> list[Ask]:
    """The lines' places, what stands at a place, and which line comes next."""
    if not lines:
        return []
    asks = []
    if len(lines) > 1 and chance(rng, 0.5):
        spot = Spot(label=LINE_NAME, boxes=tuple(line.box for line in lines))
        asks.append(ask(f"{skill}.lines", phrase(rng, pick(rng, LINES)), (spot,)))
    at = integer(rng, 0, len(lines) - 1)
    here = Spot(label="", boxes=(lines[at].box,))
    asks.append(ask(f"{skill}.at", _with_place(rng, AT, here), lines[at].text))
    if len(lines) > 1 and chance(rng, 0.6):
        following: str | Text = NO_MORE
        if at + 1 < len(lines):
            following = (Spot(label=lines[at + 1].text, boxes=(lines[at + 1].box,)),)
        asks.append(ask(f"{skill}.next", _with_place(rng, NEXT, here), following))
    return asks


def _with_place(rng: np.random.Generator, forms: Sequence[str], place: Spot) -> Text:
    before, _, after = phrase(rng, pick(rng, forms)).partition("{place}")
    return tuple(part for part in (before, place, after) if part)
