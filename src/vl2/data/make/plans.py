"""Floor plans: rooms with names, doors, windows and some furniture; and circuit diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vl2.data.make import circuits
from vl2.data.make.chance import between, chance, integer, pick, shuffled, some
from vl2.data.make.floors import (
    FURNITURE,
    Door,
    Floor,
    Room,
    neighbours,
    outer_walls,
    split_rooms,
    walls_between,
)
from vl2.data.make.paper import finish, light_colour
from vl2.data.make.pen import Pen, Point, ellipse
from vl2.data.make.plans_asks import plan_asks
from vl2.data.make.sample import Made
from vl2.data.make.sheet import Colour, Sheet, Style, fitting
from vl2.data.make.world import World
from vl2.geometry import PixelBox

LOOKS = {"train": ("solid", "solid", "tinted"), "heldout": ("double", "blueprint")}
NAMES = {
    "train": (
        *("Kitchen", "Bathroom", "Bedroom", "Living room", "Hall", "Office", "Toilet", "Garage"),
        *("Bedroom 1", "Bedroom 2", "Store", "Balcony", "Utility", "WC", "Room 1", "Room 2"),
    ),
    "heldout": (
        *("Kitchen", "Bathroom", "Bedroom", "Dining room", "Study", "Nursery", "Lobby", "Workshop"),
        *("Guest room", "Closet", "Library", "Laundry", "Bath", "Lounge", "Room A", "Room B"),
    ),
}
SIZES = {
    "bed": (2.6, 2.0),
    "table": (2.2, 2.2),
    "sofa": (3.0, 1.3),
    "stove": (1.7, 1.7),
    "bath": (2.6, 1.3),
}
"""Widths and heights of furniture in font sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The colours and the thickness of a plan."""

    wall: int  # pixels
    line: Colour
    floor: Colour
    double: bool = False  # walls as two lines
    tinted: bool = False  # floors of different colours


def make(rng: np.random.Generator, world: World) -> Made:
    """A floor plan of two to eight rooms, or a circuit."""
    if chance(rng, 0.4):
        return circuits.make(rng, world)
    style = Style(face=world.plain_face(rng), size=integer(rng, 13, 24))
    count = integer(rng, 2, 8)
    side = style.size * (9 + 4.2 * math.sqrt(count)) * between(rng, 0.95, 1.3)
    width, height = round(side * between(rng, 0.95, 1.35)), round(side * between(rng, 0.7, 1.0))
    look = _look(rng, world)
    margin = integer(rng, 12, 60)
    sheet = Sheet(Image.new("RGB", (width + 2 * margin, height + 2 * margin), look.floor))
    boxes = split_rooms(rng, (margin, margin, margin + width, margin + height), count, style.size)
    names = [style.shown(name) for name in some(rng, world.style(NAMES), len(boxes))]
    rooms = [Room(name=n, box=b) for n, b in zip(names, boxes, strict=True)]
    floor = _built(rng, sheet, rooms, replace(style, colour=look.line), look)
    image, marks = finish(rng, sheet, strength=0.8)
    floor = floor.moved([mark.box for mark in marks if mark.kind == "thing"])
    lines = [mark for mark in marks if mark.kind == "line"]
    facts = {
        "form": "floor plan",
        "rooms": [(room.name, room.area, room.furniture) for room in floor.rooms],
        "doors": len(floor.doors),
        "windows": floor.windows,
    }
    asks = tuple(plan_asks(rng, world, floor, lines))
    return Made(image=image, marks=marks, asks=asks, facts=facts)


def _look(rng: np.random.Generator, world: World) -> Look:
    look, wall = pick(rng, world.style(LOOKS)), integer(rng, 4, 9)
    paper = light_colour(rng)
    dark = integer(rng, 0, 60)
    line: Colour = (dark, dark, dark)
    if look == "blueprint":
        blue: Colour = (integer(rng, 10, 40), integer(rng, 40, 80), integer(rng, 110, 160))
        return Look(wall=wall, line=(240, 245, 255), floor=blue, double=chance(rng, 0.5))
    return Look(wall=wall, line=line, floor=paper, double=look == "double", tinted=look == "tinted")


def _built(
    rng: np.random.Generator, sheet: Sheet, rooms: list[Room], style: Style, look: Look
) -> Floor:
    """Draw floors, walls, doors, windows, names and furniture; rooms are marked first."""
    for room in rooms:
        sheet.mark(room.name, room.box)
        if look.tinted:
            tint = (integer(rng, 215, 255), integer(rng, 215, 255), integer(rng, 205, 255))
            sheet.draw.rectangle(room.box, fill=tint)
    for room in rooms:
        _wall(sheet, room.box, look)
    doors = _doors(rng, rooms, style.size)
    arcs = [_door(rng, sheet, door, look) for door in doors]
    windows = _windows(rng, sheet, rooms, doors, look) if chance(rng, 0.6) else 0
    scale = between(rng, 9, 30) / max(room.pixels for room in rooms)
    valued, furnished = chance(rng, 0.4), chance(rng, 0.7)
    found = []
    for room in rooms:
        area = f"{max(1, round(room.pixels * scale))} m2" if valued else ""
        lines = _named(sheet, replace(room, area=area), style, look)
        taken = [*arcs, *lines]
        kind = _furnished(rng, sheet, room, taken, style, look) if furnished else ""
        found.append(replace(room, area=area, furniture=kind))
    return Floor(rooms=tuple(found), doors=tuple(doors), windows=windows, beside=neighbours(rooms))


def _wall(sheet: Sheet, box: PixelBox, look: Look) -> None:
    """The walls around a room, half of their thickness inside of it."""
    half = look.wall // 2
    strips = [(half, look.line)] + [(max(1, half - 1), look.floor)] * look.double
    for reach, colour in strips:
        around = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
        sheet.draw.rectangle(around, outline=colour, width=2 * reach + 1)


def _doors(rng: np.random.Generator, rooms: Sequence[Room], size: int) -> list[Door]:
    """One to the outside, and so many that every room can be reached."""
    wide = round(1.9 * size)
    outer = [wall for wall in outer_walls(rooms) if wall.length > wide + size]
    doors = [pick(rng, outer).door(rng, wide)]
    walls = shuffled(rng, [wall for wall in walls_between(rooms) if wall.length > wide + size])
    reached = {doors[0].rooms[0]}
    while wall := next((w for w in walls if (w.one in reached) != (w.two in reached)), None):
        reached |= {wall.one, wall.two}
        doors.append(wall.door(rng, wide))
    return doors


def _door(rng: np.random.Generator, sheet: Sheet, door: Door, look: Look) -> PixelBox:
    """A gap in the wall with the leaf and the arc that it swings over; returns what that takes."""
    half, (x, y) = look.wall // 2 + 1, door.start
    along, swing = door.along, door.inward
    end = (x + along[0] * door.wide, y + along[1] * door.wide)
    gap = (min(x, end[0]), min(y, end[1]), max(x, end[0]), max(y, end[1]))
    across = (abs(along[1]) * half, abs(along[0]) * half)
    gap = (gap[0] - across[0], gap[1] - across[1], gap[2] + across[0], gap[3] + across[1])
    sheet.draw.rectangle(gap, fill=look.floor)
    pen = Pen(rng, sheet, width=1 if look.wall < 6 else 2, wobble=0)
    tip = (x + swing[0] * door.wide, y + swing[1] * door.wide)
    turns = [math.pi / 2 * n / 12 for n in range(13)]
    arc = [
        (
            x + door.wide * (swing[0] * math.cos(t) + along[0] * math.sin(t)),
            y + door.wide * (swing[1] * math.cos(t) + along[1] * math.sin(t)),
        )
        for t in turns
    ]
    pen.line([(x, y), tip])
    pen.line(arc)
    pen.lift(look.line)
    xs, ys = (x, end[0], tip[0]), (y, end[1], tip[1])
    return min(xs), min(ys), max(xs), max(ys)


def _windows(
    rng: np.random.Generator,
    sheet: Sheet,
    rooms: Sequence[Room],
    doors: Sequence[Door],
    look: Look,
) -> int:
    """Windows in outer walls where no door is: a gap with two lines along it."""
    wide, count = doors[0].wide, 0
    for wall in outer_walls(rooms):
        used = any(door.outer and wall.holds(door) for door in doors)
        if used or wall.length < 2.2 * wide or chance(rng, 0.4):
            continue
        (x, y), along = wall.middle, wall.along
        half, reach = look.wall // 2 + 1, wide * 0.8
        dx, dy = along[0] * reach + along[1] * half, along[1] * reach + along[0] * half
        box = (round(x - dx), round(y - dy), round(x + dx), round(y + dy))
        sheet.draw.rectangle(box, fill=look.floor, outline=look.line)
        middle = (
            x - along[0] * reach,
            y - along[1] * reach,
            x + along[0] * reach,
            y + along[1] * reach,
        )
        sheet.draw.line(middle, fill=look.line)
        count += 1
    return count


def _named(sheet: Sheet, room: Room, style: Style, look: Look) -> list[PixelBox]:
    """The name in the middle of a room, its area below."""
    x1, y1, x2, y2 = room.box
    width = x2 - x1 - 2 * look.wall
    fit = fitting(room.name, style, 0.86 * width, least=9)
    rows = [room.name, *([room.area] if room.area else [])]
    top = (y1 + y2) / 2 - len(rows) * fit.leading / 2
    boxes = []
    for k, row in enumerate(rows):
        small = fit if k == 0 else replace(fit, size=max(9, round(fit.size * 0.85)))
        x = (x1 + x2 - small.width(row)) / 2
        boxes.append(sheet.text(x, top + k * fit.leading, row, small))
    return boxes


def _furnished(
    rng: np.random.Generator,
    sheet: Sheet,
    room: Room,
    taken: Sequence[PixelBox],
    style: Style,
    look: Look,
) -> str:
    """A piece of furniture in a free corner of a room that has such; empty where none fits."""
    word = room.name.split()[0].lower()
    suited = [name for name, words in FURNITURE.items() if word in words]
    if not suited:
        return ""
    name = pick(rng, suited)
    wide, high = (round(side * style.size) for side in SIZES[name])
    x1, y1, x2, y2 = room.box
    gap = look.wall // 2 + 3
    corners = [(x, y) for x in (x1 + gap, x2 - gap - wide) for y in (y1 + gap, y2 - gap - high)]
    for x, y in shuffled(rng, corners):
        box = (x, y, x + wide, y + high)
        inside = x2 - x1 > wide + 3 * gap and y2 - y1 > high + 3 * gap
        if inside and not any(_overlap(box, other) for other in taken):
            pen = Pen(rng, sheet, width=1 if look.wall < 7 else 2, wobble=0)
            for path in furniture(name, box):
                pen.line(path)
            pen.lift(look.line)
            sheet.mark(name, box)
            return name
    return ""


def _overlap(one: PixelBox, two: PixelBox, gap: int = 3) -> bool:
    across = one[0] < two[2] + gap and two[0] < one[2] + gap
    return across and one[1] < two[3] + gap and two[1] < one[3] + gap


def furniture(name: str, box: PixelBox) -> list[list[Point]]:
    """The lines of a piece of furniture seen from above, as plans show it."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1

    def part(a: float, b: float, c: float, d: float) -> list[Point]:
        left, top, right, bottom = x1 + a * w, y1 + b * h, x1 + c * w, y1 + d * h
        return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]

    def oval(x: float, y: float, rx: float, ry: float) -> list[Point]:
        points = ellipse((x1 + x * w, y1 + y * h), (rx * w, ry * h))
        return [*points, points[0]]

    whole, rings = part(0, 0, 1, 1), ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))
    beside = ((0, 0.35, 0.18, 0.65), (0.82, 0.35, 1, 0.65))
    chairs = ((0.35, 0, 0.65, 0.18), (0.35, 0.82, 0.65, 1), *beside)
    pillows = ((0.05, 0.08, 0.25, 0.46), (0.05, 0.54, 0.25, 0.92))
    return {
        "bed": [whole, *(part(*pillow) for pillow in pillows), part(0.32, 0, 1, 1)],
        "table": [part(0.22, 0.22, 0.78, 0.78), *(part(*chair) for chair in chairs)],
        "sofa": [whole, part(0.1, 0.3, 0.5, 1), part(0.5, 0.3, 0.9, 1)],
        "stove": [whole, *(oval(x, y, 0.16, 0.16) for x, y in rings)],
        "bath": [whole, oval(0.5, 0.5, 0.42, 0.36), oval(0.18, 0.5, 0.04, 0.08)],
    }[name]
