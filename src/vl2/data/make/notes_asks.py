"""What people ask about handwritten notes: reading, items of lists, what is done, who wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vl2.data.make.chance import chance, integer, phrase, pick, some
from vl2.data.make.naming import NUMBERS
from vl2.data.make.reading import different, line_asks, locate, locate_asks, read_asks
from vl2.data.make.sample import Ask, Mark, ask
from vl2.data.make.world import World

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
COUNT = (
    "How many [items|things|entries] are on the list?",
    "[Count|Number of] items[ on the list|].",
    "How many [items|things] does the list have?",
)
NTH = (
    "What is the {nth} [item|thing|entry][ on the list|]?",
    "[Read|Which is] the {nth} [item|entry].",
    "What [stands|comes] {nth}[ on the list|]?",
)
AFTER = ("What comes after {item}[ on the list|]?", "What is below {item}?")
ON = ("Is {item} on the list?", "Does the list [have|say|contain] {item}?")
TITLE = ("What is the title[ of the list|]?", "[What is the list called|Heading of the list]?")
DONE = ("[Which|What] [items|things] are [ticked|done|checked]?", "What is done already?")
OPEN = ("[Which|What] [items|things] are not [ticked|done] yet?", "What is still to do?")
STRUCK = ("[Which|What] [items|things] are crossed out?", "What is struck out?")
STATE = ("Is {item} [done|{word}]?",)
HOW_MANY_DONE = ("How many items are [done|{word}]?",)
TO = ("Who is [it|the note|the letter] [to|for]?", "To whom is it written?", "Who gets [it|this]?")
BY = ("Who [wrote|signed] [it|this]?", "Who is [it|the note] from?")
DATE = ("What is the date?", "[When was it written|Date]?")
PHONE = ("What is the [phone|telephone] number?", "[Number|Tel]?")
KIND = ("What [is this|kind of note is this]?", "What does the picture show?")
DESCRIBE = (
    "Describe [the note|the picture|this image|the image].",
    "What [is in this picture|do you see|is shown]?",
    "Caption this[ image|].",
)
HAND = ("Is [it|this|the text] handwritten or printed?", "Is this handwriting?")
KINDS = {
    "shopping": "shopping list",
    "todo": "to-do list",
    "packing": "packing list",
    "chores": "to-do list",
    "letter": "letter",
    "postcard": "letter",
    "reminder": "note",
    "message": "message",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An entry of a list."""

    text: str
    done: bool | None = None  # None: nothing on the list is ticked or crossed out


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a note holds."""

    form: str
    title: str = ""
    items: tuple[Item, ...] = ()
    boxes: bool = False  # items have squares to tick
    to: str = ""
    by: str = ""
    date: str = ""
    phone: str = ""

    @property
    def kind(self) -> str:
        """What one calls it."""
        return KINDS[self.form]


def note_asks(
    rng: np.random.Generator, world: World, note: Note, lines: Sequence[Mark]
) -> list[Ask]:
    """Everything that the note answers without doubt, and what is not on it."""
    read = read_asks(rng, lines, "hand")
    asks = read + locate_asks(rng, lines, "hand", most=1) + line_asks(rng, lines, "hand")
    asks.append(ask("hand.kind", phrase(rng, pick(rng, KIND)), f"A handwritten {note.kind}."))
    asks.append(ask("hand.describe", phrase(rng, pick(rng, DESCRIBE)), _description(note, lines)))
    if chance(rng, 0.2):
        question = phrase(rng, pick(rng, HAND))
        asks.append(ask("hand.kind", question, "Handwritten" if " or " in question else "Yes"))
    asks += _items(rng, world, note) * 2 if note.items else []
    asks += _marked(rng, note) * 2 if note.items and note.items[0].done is not None else []
    for skill, forms, value in (
        ("hand.title", TITLE, note.title),
        ("hand.to", TO, note.to),
        ("hand.by", BY, note.by),
        ("hand.date", DATE, note.date),
        ("hand.phone", PHONE, note.phone),
    ):
        if value:
            asks.append(ask(skill, phrase(rng, pick(rng, forms)), value))
    missing = pick(rng, world.texts.nouns)
    if chance(rng, 0.4) and all(missing.lower() not in line.text.lower() for line in lines):
        asks.append(locate(rng, "hand", missing, ()))
    return list(dict.fromkeys([read[0], *different(rng, asks, 6)]))


def _items(rng: np.random.Generator, world: World, note: Note) -> list[Ask]:
    """The items of a list by number and by name."""
    texts = [item.text for item in note.items]
    n = integer(rng, 0, len(texts) - 1)
    nth = "last" if n == len(texts) - 1 and chance(rng, 0.5) else ORDINALS[n]
    missing = pick(rng, world.texts.nouns)
    asks = [
        ask("hand.count", phrase(rng, pick(rng, COUNT)), str(len(texts))),
        ask("hand.item", phrase(rng, pick(rng, NTH), nth=nth), texts[n]),
        ask("hand.on", phrase(rng, pick(rng, ON), item=pick(rng, texts)), "Yes"),
    ]
    if all(missing.lower() not in text.lower() for text in texts):
        asks.append(ask("hand.on", phrase(rng, pick(rng, ON), item=missing), "No"))
    if n + 1 < len(texts):
        question = phrase(rng, pick(rng, AFTER), item=texts[n])
        asks.append(ask("hand.after", question, texts[n + 1]))
    return asks


def _marked(rng: np.random.Generator, note: Note) -> list[Ask]:
    """What is ticked or crossed out, and what is not."""
    word, forms = ("ticked", DONE) if note.boxes else ("crossed out", STRUCK)
    done = [item.text for item in note.items if item.done]
    left = [item.text for item in note.items if not item.done]
    [item] = some(rng, note.items, 1)
    answer = "Yes" if item.done else "No"
    return [
        ask("hand.done", phrase(rng, pick(rng, forms)), "\n".join(done) or "Nothing."),
        ask("hand.done", phrase(rng, pick(rng, OPEN)), "\n".join(left) or "Nothing."),
        ask("hand.state", phrase(rng, STATE[0], item=item.text, word=word), answer),
        ask("hand.count", phrase(rng, HOW_MANY_DONE[0], word=word), str(len(done))),
    ]


def _description(note: Note, lines: Sequence[Mark]) -> str:
    if note.items:
        texts = [item.text for item in note.items]
        count = NUMBERS[len(texts)] if len(texts) < len(NUMBERS) else str(len(texts))
        return f"A handwritten {note.kind} with {count} items: {', '.join(texts)}."
    if note.to and note.by:
        return f"A handwritten {note.kind} from {note.by} to {note.to}."
    return f'A handwritten {note.kind} that says "{" ".join(line.text for line in lines)}"'
