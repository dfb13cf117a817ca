"""Floor plans as data: rooms that fill a rectangle, the walls between them, and doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vl2.data.make.chance import between, chance
from vl2.data.make.sample import union
from vl2.geometry import PixelBox

FURNITURE: dict[str, set[str]] = {
    "bed": {"bedroom", "guest", "nursery"},
    "table": {"kitchen", "dining", "room", "office", "study"},
    "sofa": {"living", "lounge", "library", "lobby"},
    "stove": {"kitchen"},
    "bath": {"bathroom", "bath"},
}
"""Which rooms, by the first word of their names, have which furniture."""
Step = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """A room with what is written in it."""

    name: str
    box: PixelBox
    area: str = ""
    furniture: str = ""
    furniture_box: PixelBox = (0, 0, 0, 0)

    @property
    def pixels(self) -> int:
        """Its size on the plan."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """A door that hangs at `start`, fills the wall along a direction and opens into a room."""

    rooms: tuple[int, int]  # the second is -1 for the outside
    start: tuple[int, int]
    along: Step
    inward: Step
    wide: int

    @property
    def outer(self) -> bool:
        """Whether it leads outside."""
        return self.rooms[1] < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Wall:
    """A piece of wall between two rooms, or between a room and the outside."""

    one: int
    two: int  # -1: the outside
    start: tuple[int, int]
    end: tuple[int, int]
    inward: Step  # from the wall into room `one`

    @property
    def length(self) -> int:
        """In pixels."""
        return self.end[0] - self.start[0] + self.end[1] - self.start[1]

    @property
    def along(self) -> Step:
        """From start to end."""
        return (1, 0) if self.end[0] > self.start[0] else (0, 1)

    @property
    def middle(self) -> tuple[float, float]:
        """Half way."""
        return (self.start[0] + self.end[0]) / 2, (self.start[1] + self.end[1]) / 2

    def door(self, rng: np.random.Generator, wide: int) -> Door:
        """A door somewhere in it."""
        free = self.length - wide
        at = round(free * between(rng, 0.15, 0.85))
        x, y = self.start[0] + self.along[0] * at, self.start[1] + self.along[1] * at
        along = self.along
        if chance(rng, 0.5):  # it hangs at the other side
            x, y = x + along[0] * wide, y + along[1] * wide
            along = (-along[0], -along[1])
        rooms = (self.one, self.two)
        return Door(rooms=rooms, start=(x, y), along=along, inward=self.inward, wide=wide)

    def holds(self, door: Door) -> bool:
        """Whether a door is in this wall."""
        k = 0 if self.along == (1, 0) else 1
        same = door.start[1 - k] == self.start[1 - k]
        return same and self.start[k] <= door.start[k] <= self.end[k]


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """A whole plan."""

    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]
    windows: int
    beside: Mapping[tuple[int, str], Sequence[int]]  # see `neighbours`

    def moved(self, boxes: Sequence[PixelBox]) -> Floor:
        """With the boxes of rooms, then of furniture, as they are on the finished picture."""
        rest = iter(boxes[len(self.rooms) :])
        rooms = tuple(
            replace(room, box=box, furniture_box=next(rest) if room.furniture else (0, 0, 0, 0))
            for room, box in zip(self.rooms, boxes, strict=False)
        )
        return replace(self, rooms=rooms)


def split_rooms(rng: np.random.Generator, box: PixelBox, count: int, size: int) -> list[PixelBox]:
    """Cut a rectangle into rooms of at least some font sizes, the largest one each time."""
    boxes = [box]
    least = (6 * size, 4 * size)
    while len(boxes) < count:
        boxes.sort(key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        x1, y1, x2, y2 = boxes.pop()
        across = (x2 - x1) * between(rng, 0.8, 1.2) > (y2 - y1)
        k = 0 if across else 1
        low, high = (x1, x2) if across else (y1, y2)
        if high - low < 2 * least[k]:
            boxes.append((x1, y1, x2, y2))
            break
        cut = round(low + (high - low) * between(rng, 0.36, 0.64))
        cut = min(max(cut, low + least[k]), high - least[k])
        boxes += (
            [(x1, y1, cut, y2), (cut, y1, x2, y2)]
            if across
            else [(x1, y1, x2, cut), (x1, cut, x2, y2)]
        )
    return sorted(boxes, key=lambda b: (b[1], b[0]))


def walls_between(rooms: Sequence[Room]) -> list[Wall]:
    """The walls that two rooms share; each opens into the right or the lower one."""
    walls = []
    for k in (0, 1):
        for two, before in enumerate(rooms):
            for one, after in enumerate(rooms):
                low = max(before.box[1 - k], after.box[1 - k])
                high = min(before.box[3 - k], after.box[3 - k])
                if before.box[k + 2] == after.box[k] and low < high:
                    walls.append(_wall(one, two, k, (after.box[k], low, high), 1))
    return walls


def outer_walls(rooms: Sequence[Room]) -> list[Wall]:
    """The walls to the outside, one for each side of a room."""
    outline, walls = union([room.box for room in rooms]), []
    for one, room in enumerate(rooms):
        for side, edge in enumerate(room.box):
            if edge == outline[side]:
                k = side % 2
                ends = (edge, room.box[1 - k], room.box[3 - k])
                walls.append(_wall(one, -1, k, ends, 1 if side < 2 else -1))
    return walls


def neighbours(rooms: Sequence[Room]) -> dict[tuple[int, str], list[int]]:
    """The rooms that share a wall with a room, by the room and its side."""
    found: dict[tuple[int, str], list[int]] = {}
    for wall in walls_between(rooms):
        after, before = ("right", "left") if wall.inward == (1, 0) else ("below", "above")
        found.setdefault((wall.two, after), []).append(wall.one)
        found.setdefault((wall.one, before), []).append(wall.two)
    return found


def _wall(one: int, two: int, k: int, ends: tuple[int, int, int], inward: int) -> Wall:
    at, low, high = ends
    start, end = ((at, low), (at, high)) if k == 0 else ((low, at), (high, at))
    return Wall(
        one=one, two=two, start=start, end=end, inward=(inward, 0) if k == 0 else (0, inward)
    )
