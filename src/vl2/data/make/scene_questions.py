"""Questions about landscapes, patterns and empty pictures, and their true answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vl2.data.make.chance import chance, phrase, pick, shuffled, some
from vl2.data.make.drawings import Drawings, Thing
from vl2.data.make.naming import capitalised, joined, place_name
from vl2.data.make.reading import LOCATE_THING, locate
from vl2.data.make.sample import Ask, ask
from vl2.data.make.scenery import Scenery
from vl2.data.make.shapes import WHERE
from vl2.data.make.thing_questions import (
    BACK,
    COUNT,
    DESCRIBE,
    SEE,
    THERE,
    WHAT,
    Put,
    absent_asks,
    general_asks,
    many_of,
    numbered,
    one_of,
    whereabouts,
)

PARTS = {
    # what can be counted on a landscape, with the kin in the table of drawings
    "sun": "sun",
    "moon": "moon",
    "cloud": "cloud",
    "tree": "tree",
    "house": "building",
    "boat": "boat",
    "fence": "fence",
}
STUFF = {
    "stars": "stars",
    "mountains": "mountains",
    "hills": "hills",
    "sea": "the sea",
    "road": "a road",
    "grass": "grass",
    "sand": "sand",
    "snow": "snow",
    "rain": "rain",
}
"""What cannot be counted, as it stands in a list."""
NEAR = {"hills": "mountains", "mountains": "hills", "rain": "snow"}
"""What is so near that nobody asks for it: hills where there are mountains."""
TIME = ("Is it day or night?", "[At what time|When] is this, [day or night|by day or by night]?")
DAYS = {"day": "Day", "night": "Night", "rain": "Day"}
SKY = (
    "What [colour|color] is the sky?",
    "Which [colour|color] does the sky have?",
    "[Colour|Color] of the sky?",
)
GROUND = ("What [colour|color] is the ground?", "Which [colour|color] is the ground?")
RAIN = ("Is it raining?", "Does it rain[ here| in the picture|]?")
PLURAL = ("stars", "mountains", "hills")
KIND = (
    "What kind of picture is this?",
    "What [does the picture|does this image] show?",
    "What is this?",
)


def part(name: str) -> Thing:
    """A countable part of a landscape as a thing, to be asked for as things are."""
    return Thing(name=name, group="scenery", kin=PARTS[name], many="", drawings=())


def scene_asks(
    rng: np.random.Generator,
    scenery: Scenery,
    puts: Sequence[Put],
    size: tuple[int, int],
    material: Drawings,
) -> list[Ask]:
    """What is there, one question, and up to six others."""
    items = [*numbered(puts), *(STUFF[name] for name in scenery.stuff)]
    listing = joined(items) if items else "a landscape"
    first = ask("scene.name", phrase(rng, pick(rng, WHAT)), f"{capitalised(listing)}.")
    asks = [*absent_asks(rng, puts, material), *general_asks(rng, puts, total=False)]
    asks += _stuff(rng, scenery, puts)
    asks.append(ask("scene.sky", phrase(rng, pick(rng, SKY)), scenery.sky))
    if scenery.time == "night" or (scenery.time != "sunset" and chance(rng, 0.4)):
        asks.append(ask("scene.time", phrase(rng, pick(rng, TIME)), DAYS[scenery.time]))
    if scenery.ground_colour and "sea" not in scenery.stuff and "road" not in scenery.stuff:
        asks.append(ask("scene.ground", phrase(rng, pick(rng, GROUND)), scenery.ground_colour))
    if chance(rng, 0.6):
        asks.append(_described(rng, scenery, puts, size))
    if chance(rng, 0.3):
        asks.append(ask("scene.kind", phrase(rng, KIND[0]), "A landscape."))
    for put in some(rng, list({put.name: put for put in puts}.values()), 2):
        asks += _about(rng, put, puts, size)
    asks = [replace(each, skill=each.skill.replace("thing.", "scene.")) for each in asks]
    return shuffled(rng, [first, *shuffled(rng, asks)[:6]])


def _described(
    rng: np.random.Generator, scenery: Scenery, puts: Sequence[Put], size: tuple[int, int]
) -> Ask:
    """The time of day, what is where, and the colour of the sky."""
    places = whereabouts(puts, size)
    when = {"day": "by day", "night": "at night", "sunset": "at sunset", "rain": "in the rain"}
    sentences = [f"A landscape {when[scenery.time]}"]
    if puts:
        listing = joined(numbered(puts, places))
        sentences.append(capitalised(listing))
    if stuff := [STUFF[name] for name in scenery.stuff if name != "rain"]:
        listing = joined(stuff)
        sentences.append(capitalised(listing))
    sentences.append(f"The sky is {scenery.sky}")
    return ask("scene.describe", phrase(rng, pick(rng, DESCRIBE)), f"{'. '.join(sentences)}.")


def _stuff(rng: np.random.Generator, scenery: Scenery, puts: Sequence[Put]) -> list[Ask]:
    """Whether there is something that one does not count, or a part, that others have."""
    asks = []
    there = some(rng, [name for name in scenery.stuff if name != "rain"], 1)
    near = {NEAR.get(name) for name in scenery.stuff}
    missing = [n for n in STUFF if n not in (*scenery.stuff, *near, "rain")]
    if scenery.ground == "snow" or "mountains" in scenery.stuff:
        missing = [name for name in missing if name != "snow"]  # there may be some on the peaks
    for name, answer in (*((n, "Yes") for n in there), (pick(rng, missing), "No")):
        noun = STUFF[name]
        forms = SEE if name in PLURAL else (*SEE, "Is there {a}[ in the picture|]?")
        asks.append(ask("scene.there", phrase(rng, pick(rng, forms), a=noun), answer))
    if "rain" in scenery.stuff or chance(rng, 0.1):
        answer = "Yes" if "rain" in scenery.stuff else "No"
        asks.append(ask("scene.there", phrase(rng, pick(rng, RAIN)), answer))
    absent = [name for name in PARTS if all(put.name != name for put in puts)]
    kin = {put.thing.kin for put in puts if put.thing}
    if absent := [name for name in absent if PARTS[name] not in kin]:
        name = pick(rng, absent)
        if chance(rng, 0.4):  # there is another question whose answer is no
            asked = phrase(rng, pick(rng, THERE), a=one_of(part(name)))
            asks.append(ask("scene.there", asked, "No"))
        asks.append(locate(rng, "scene", name, (), LOCATE_THING))
    return asks


def _about(
    rng: np.random.Generator, put: Put, puts: Sequence[Put], size: tuple[int, int]
) -> list[Ask]:
    """One of the parts: where it is and how many there are."""
    thing = put.thing
    assert thing is not None
    same = [other for other in puts if other.name == put.name]
    asks = [
        locate(rng, "scene", put.name, tuple(p.box for p in same), LOCATE_THING),
        ask("scene.there", phrase(rng, pick(rng, THERE), a=one_of(thing)), "Yes"),
    ]
    if len(same) <= 5 and (len(same) > 1 or chance(rng, 0.35)):
        count = phrase(rng, pick(rng, COUNT), names=many_of(thing))
        asks.append(ask("scene.count", count, str(len(same))))
    if len(same) == 1 and (place := place_name(put.box, size)):
        asks.append(ask("scene.place", phrase(rng, pick(rng, WHERE), name=put.name), place))
    return asks


def pattern_asks(rng: np.random.Generator, what: str, colour: str, material: Drawings) -> list[Ask]:
    """A picture of nothing: what one sees, its colour, and what is not there.

    Args:
        rng: decides which questions come.
        what: the picture in words, such as "blue and white stripes" or "an empty picture".
        colour: of the background; "" where nobody could say.
        material: the names of things that are not there.
    """
    text = f"{capitalised(what)}."
    asks = [*absent_asks(rng, (), material), *general_asks(rng, (), total=False)]
    if colour:
        asks += [ask("scene.background", phrase(rng, pick(rng, BACK)), colour)] * 2
    asks.append(ask("scene.describe", phrase(rng, pick(rng, DESCRIBE)), text))
    asks = [replace(each, skill=each.skill.replace("thing.", "scene.")) for each in asks]
    first = ask("scene.name", phrase(rng, pick(rng, (*WHAT[:2], *KIND[1:]))), text)
    return shuffled(rng, [first, *shuffled(rng, list(dict.fromkeys(asks)))[:5]])
