"""Diagrams as data: named nodes on a plane and the arrows between them, without any drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vl2.data.make.chance import chance, integer, pick, shuffled
from vl2.data.make.pen import Point
from vl2.geometry import PixelBox

WAYS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
"""Where an arrow points, clockwise from the right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """An arrow from one node to another, by their numbers."""

    start: int
    end: int
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A named box, circle or diamond."""

    name: str
    shape: str  # "box", "rounded box", "circle" or "diamond"
    colour: str = ""  # empty: the paper's
    box: PixelBox = (0, 0, 0, 0)

    @property
    def noun(self) -> str:
        """What one calls it."""
        return self.shape.split()[-1]

    @property
    def middle(self) -> Point:
        """Its centre in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A whole diagram."""

    form: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    directed: bool = True

    def after(self, node: int) -> list[int]:
        """The nodes to which arrows from a node lead, in reading order."""
        return self.ordered({e.end for e in self.edges if e.start == node})

    def before(self, node: int) -> list[int]:
        """The nodes from which arrows lead to a node, in reading order."""
        return self.ordered({e.start for e in self.edges if e.end == node})

    def around(self, node: int) -> list[int]:
        """All nodes that share an arrow or a line with a node."""
        return self.ordered({*self.after(node), *self.before(node)})

    def ordered(self, nodes: set[int]) -> list[int]:
        """Nodes from top to bottom; those beside each other from left to right."""
        high = max((n.box[3] - n.box[1] for n in self.nodes), default=1) or 1
        place = {k: self.nodes[k].middle for k in nodes}
        return sorted(nodes, key=lambda k: (round(place[k][1] / high), place[k][0]))


Plan = tuple[list[Point], list[tuple[int, int]]]
"""Places of nodes in units of the distance of two nodes, and which are joined."""


def plan(rng: np.random.Generator, form: str) -> Plan:
    """Places and arrows of a form of diagram; lines cross neither each other nor a node."""
    return _PLANS[form](rng)


def way(start: Point, end: Point) -> str | None:
    """Where an arrow points; None near the bounds between two answers."""
    turn = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0])) % 360 / 45
    return WAYS[round(turn) % 8] if abs(turn - round(turn)) < 0.3 else None


def _down(rng: np.random.Generator) -> Plan:
    """Steps below each other; from one of them another way leads to the side."""
    count = integer(rng, 2, 6)
    places = [(0.0, float(n)) for n in range(count)]
    edges = [(n, n + 1) for n in range(count - 1)]
    if count > 2 and chance(rng, 0.5):
        at = integer(rng, 1, count - 2)
        places.append((1.0, float(at)))
        edges.append((at, count))
        if at + 1 < count and chance(rng, 0.4):
            edges.append((count, at + 1))
    return places, edges


def _right(rng: np.random.Generator) -> Plan:
    count = integer(rng, 2, 5)
    return [(float(n), 0.0) for n in range(count)], [(n, n + 1) for n in range(count - 1)]


def _snake(rng: np.random.Generator) -> Plan:
    """Rows that are read to and fro."""
    columns, count = integer(rng, 2, 3), integer(rng, 4, 8)
    places = []
    for n in range(count):
        row, column = divmod(n, columns)
        places.append((float(column if row % 2 == 0 else columns - 1 - column), float(row)))
    return places, [(n, n + 1) for n in range(count - 1)]


def _tree(rng: np.random.Generator) -> Plan:
    """A root with two or three children, of which some have children."""
    places: list[Point] = [(0.0, 0.0)]
    edges, at = [], 0.0
    children = []
    for _ in range(integer(rng, 2, 3)):
        child = len(places)
        places.append((0.0, 1.0))
        edges.append((0, child))
        leaves = integer(rng, 1, 2) if chance(rng, 0.4) else 0
        for _ in range(leaves):
            edges.append((child, len(places)))
            places.append((at, 2.0))
            at += 1
        places[child] = (at - (leaves + 1) / 2, 1.0) if leaves else (at, 1.0)
        at += 0 if leaves else 1
        children.append(places[child][0])
    places[0] = ((children[0] + children[-1]) / 2, 0.0)
    return places, edges


def _sideways(rng: np.random.Generator) -> Plan:
    """A tree that grows to the right."""
    places, edges = _tree(rng)
    return [(y, x) for x, y in places], edges


def _cycle(rng: np.random.Generator) -> Plan:
    count = integer(rng, 3, 6)
    radius = 0.7 / math.sin(math.pi / count)
    first = math.pi / 2
    turns = [math.tau * n / count - first for n in range(count)]
    step = 1 if chance(rng, 0.75) else -1
    edges = [(n, (n + step) % count) for n in range(count)]
    return [(radius * math.cos(t), radius * math.sin(t)) for t in turns], edges


def _star(rng: np.random.Generator) -> Plan:
    """One in the middle, joined to those around it."""
    count = integer(rng, 3, 5)
    turns = [math.tau * n / count - math.pi / 2 for n in range(count)]
    places = [(0.0, 0.0), *((1.25 * math.cos(t), 1.25 * math.sin(t)) for t in turns)]
    outward = chance(rng, 0.5)
    return places, [(0, n) if outward else (n, 0) for n in range(1, count + 1)]


def _grid(rng: np.random.Generator) -> Plan:
    """Some of the places of a grid, joined to neighbours at random."""
    columns, rows = pick(rng, ((2, 2), (3, 2), (2, 3), (3, 3)))
    cells = [(float(x), float(y)) for y in range(rows) for x in range(columns)]
    kept = sorted(shuffled(rng, range(len(cells)))[: integer(rng, 3, min(7, len(cells)))])
    places = [cells[k] for k in kept]
    pairs = [
        (a, b)
        for a in range(len(places))
        for b in range(len(places))
        if a < b and math.dist(places[a], places[b]) < 1.1
    ]
    chosen = shuffled(rng, pairs)[: max(2, len(pairs) - integer(rng, 0, 2))]
    return places, [(a, b) if chance(rng, 0.6) else (b, a) for a, b in chosen]


_PLANS = {
    "down": _down,
    "right": _right,
    "snake": _snake,
    "tree": _tree,
    "sideways": _sideways,
    "cycle": _cycle,
    "star": _star,
    "grid": _grid,
}
