"""What people ask about floor plans: rooms and what is beside them, doors, windows, sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vl2.data.make.chance import chance, phrase, pick, some
from vl2.data.make.floors import FURNITURE, Floor
from vl2.data.make.naming import NUMBERS, one, place_name
from vl2.data.make.reading import LOCATE_THING, different, locate, locate_asks, read_asks
from vl2.data.make.sample import Ask, Mark, ask, union
from vl2.data.make.world import World

COUNT = (
    "How many {names} are there?",
    "[Count|Number of] {names}[.|?]",
    "How many {names} [does the plan have|are on the plan|do you see]?",
)
SIDES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
BESIDE = ("[Which|What] room is {side} {name}?", "What is {side} {name}?")
WHERE = (
    "[In which part of the plan|Where on the plan] is {name}?",
    "What is the position of {name}?",
)
LARGEST = ("[Which|What] [room is|is] the [largest|biggest][ room|]?", "What is the largest room?")
SMALLEST = ("[Which|What] room is the smallest?", "What is the smallest room?")
AREA = ("[What is the area of|How large is|How big is] {name}?", "Area of {name}?")
BETWEEN = (
    "Is there a door between {a} and {b}?",
    "Can I go [directly|straight] from {a} to {b}?",
    "Does a door [lead|go] from {a} to {b}?",
)
ENTRANCE = (
    "Which room has the [entrance|front door]?",
    "Into which room does the front door lead?",
)
THERE = ("Is there {name}?", "Does the plan [have|show] {name}?")
NAMES = ("[Which|What] rooms are there?", "[List|Name] the rooms.")
HAS = ("[Which|What] room [has|contains] a {thing}?", "In which room is the {thing}?")
KIND = ("What [is this|kind of drawing is this|does the picture show]?",)
DESCRIBE = (
    "Describe [the plan|the picture|this image|the image].",
    "What [is in this picture|do you see|is shown]?",
    "Caption this[ image|].",
)


def plan_asks(
    rng: np.random.Generator,
    world: World,
    floor: Floor,
    lines: Sequence[Mark],
) -> list[Ask]:
    """Everything that the plan answers without doubt, and what is not on it."""
    names = [room.name for room in floor.rooms]
    asks = [
        ask("plan.kind", phrase(rng, pick(rng, KIND)), "A floor plan."),
        ask("plan.describe", phrase(rng, pick(rng, DESCRIBE)), _description(floor)),
        ask("plan.names", phrase(rng, pick(rng, NAMES)), ", ".join(names)),
        *locate_asks(rng, lines, "plan", most=1),
    ]
    if len(names) <= 3:
        asks += read_asks(rng, lines, "plan")
    asks += _counts(rng, floor) + _sizes(rng, floor) + _doors(rng, floor)
    for room in some(rng, range(len(names)), 3):
        asks += _about(rng, floor, room)
    missing = pick(rng, world.texts.nouns) if chance(rng, 0.2) else "sauna"
    if all(missing.lower() not in name.lower() for name in names):
        asks.append(ask("plan.there", phrase(rng, pick(rng, THERE), name=one(missing)), "No"))
        asks.append(locate(rng, "plan", missing, (), LOCATE_THING))
    return different(rng, asks, 7)


def said(name: str) -> str:
    """How one calls a room in a sentence; numbered ones have no article."""
    words = name.split()
    if name.isupper() and len(name) < 4:
        return f"the {name}"
    last = words[-1]
    numbered = last.isdigit() or (len(words) > 1 and len(last) == 1)
    return name.lower().replace(last.lower(), last) if numbered else f"the {name.lower()}"


def _about(rng: np.random.Generator, floor: Floor, room: int) -> list[Ask]:
    """One of the rooms: where it is, and what is beside it."""
    here = floor.rooms[room]
    name = said(here.name)
    called = name.removeprefix("the ")
    asks = [
        locate(rng, "plan", called, (here.box,), LOCATE_THING),
        ask("plan.there", phrase(rng, pick(rng, THERE), name=one(called)), "Yes"),
    ]
    x1, y1, x2, y2 = union([other.box for other in floor.rooms])
    inside = (here.box[0] - x1, here.box[1] - y1, here.box[2] - x1, here.box[3] - y1)
    if where := place_name(inside, (x2 - x1, y2 - y1)):
        asks.append(ask("plan.place", phrase(rng, pick(rng, WHERE), name=name), where))
    if here.area:
        asks.append(ask("plan.area", phrase(rng, pick(rng, AREA), name=name), here.area))
    side = pick(rng, list(SIDES))
    beside = floor.beside.get((room, side), ())
    words = pick(rng, SIDES[side])
    question = phrase(rng, pick(rng, BESIDE), side=words, name=name)
    if len(beside) == 1:
        asks += [ask("plan.beside", question, floor.rooms[beside[0]].name)] * 2
    if not beside:
        asks.append(ask("plan.beside", question, f"There is no room {words} {name}."))
    if here.furniture and sum(r.furniture == here.furniture for r in floor.rooms) == 1:
        thing = here.furniture
        asks.append(ask("plan.has", phrase(rng, pick(rng, HAS), thing=thing), here.name))
        asks.append(locate(rng, "plan", thing, (here.furniture_box,), LOCATE_THING))
    return asks


def _counts(rng: np.random.Generator, floor: Floor) -> list[Ask]:
    absent = pick(rng, list(FURNITURE))
    asks = [
        ask("plan.count", phrase(rng, pick(rng, COUNT), names="rooms"), str(len(floor.rooms))),
        ask("plan.count", phrase(rng, pick(rng, COUNT), names="doors"), str(len(floor.doors))),
    ]
    if floor.windows or chance(rng, 0.3):
        question = phrase(rng, pick(rng, COUNT), names="windows")
        asks.append(ask("plan.count", question, str(floor.windows)))
    if all(room.furniture != absent for room in floor.rooms):
        asks.append(ask("plan.there", phrase(rng, pick(rng, THERE), name=one(absent)), "No"))
    return asks


def _sizes(rng: np.random.Generator, floor: Floor) -> list[Ask]:
    """The largest and the smallest room, where they are clearly so."""
    order = sorted(floor.rooms, key=lambda room: room.pixels)
    asks = []
    if order[-1].pixels > 1.25 * order[-2].pixels:
        asks.append(ask("plan.largest", phrase(rng, pick(rng, LARGEST)), order[-1].name))
    if order[1].pixels > 1.25 * order[0].pixels:
        asks.append(ask("plan.smallest", phrase(rng, pick(rng, SMALLEST)), order[0].name))
    return asks


def _doors(rng: np.random.Generator, floor: Floor) -> list[Ask]:
    """Which rooms a door joins, and where one comes in."""
    inner = [door for door in floor.doors if not door.outer]
    entrance = floor.rooms[floor.doors[0].rooms[0]].name
    asks = [ask("plan.entrance", phrase(rng, pick(rng, ENTRANCE)), entrance)]
    pairs = {frozenset(door.rooms) for door in inner}
    if inner and chance(rng, 0.5):
        a, b = pick(rng, inner).rooms
    else:
        a, b = some(rng, range(len(floor.rooms)), 2)
    answer = "Yes" if frozenset((a, b)) in pairs else "No"
    names = {"a": said(floor.rooms[a].name), "b": said(floor.rooms[b].name)}
    asks.append(ask("plan.door", phrase(rng, pick(rng, BETWEEN), **names), answer))
    return asks


def _description(floor: Floor) -> str:
    names = [room.name for room in floor.rooms]
    count = NUMBERS[len(names)] if len(names) < len(NUMBERS) else str(len(names))
    doors = f"{len(floor.doors)} doors" if len(floor.doors) > 1 else "one door"
    return f"A floor plan with {count} rooms: {', '.join(names)}. It has {doors}."
