"""Flow charts, trees, cycles and graphs of named boxes joined by arrows, and arrows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, pick, some
from vl2.data.make.diagrams_asks import Arrow, arrow_asks, diagram_asks
from vl2.data.make.graph import Edge, Graph, Node, plan, way
from vl2.data.make.naming import capitalised
from vl2.data.make.paper import finish, ground, ink, light_colour, luminance
from vl2.data.make.pen import Pen, Point, ellipse
from vl2.data.make.sample import Made, Mark
from vl2.data.make.shapes import named_colour
from vl2.data.make.sheet import Colour, Sheet, Style, wrap
from vl2.data.make.world import World
from vl2.geometry import PixelBox

FORMS = {
    "train": ("down", "down", "tree", "cycle", "grid", "lone"),
    "heldout": ("right", "snake", "star", "sideways", "lone"),
}
LOOKS = {"train": ("plain", "plain", "wobbly"), "heldout": ("thin", "sketch")}
STEPS = {
    "train": (
        *("Start", "End", "Check input", "Read file", "Save", "Send mail", "Wait", "Login", "Pay"),
        *("Print", "Search", "Order", "Sort", "Upload", "Boil water", "Stop", "Ready?", "Error?"),
    ),
    "heldout": (
        *(
            "Begin",
            "Finish",
            "Load data",
            "Validate",
            "Store",
            "Notify",
            "Retry",
            "Sign up",
            "Ship",
        ),
        *("Draw", "Filter", "Pack", "Count", "Download", "Add milk", "Done", "Valid?", "Empty?"),
    ),
}


def make(rng: np.random.Generator, world: World) -> Made:
    """Two to nine nodes with arrows, or one to three arrows alone."""
    form = pick(rng, world.style(FORMS))
    return _lone(rng, world) if form == "lone" else _graph(rng, world, form)


def _graph(rng: np.random.Generator, world: World, form: str) -> Made:
    places, pairs = plan(rng, form)
    style = Style(face=world.plain_face(rng), size=round(between(rng, 13, 26)))
    if chance(rng, 0.12):
        style = replace(style, face=world.face(rng, hand=True), size=round(style.size * 1.3))
    names = node_names(rng, world, style, len(places))
    texts = [wrap(name, style, 9 * style.size) for name in names]
    shapes = _shapes(rng, names)
    halves = _halves(style, texts, shapes)
    sheet, middles = _laid(rng, world, places, halves, style.size)
    nodes = [
        Node(name=name, shape=shape, box=_box(middle, half))
        for name, shape, middle, half in zip(names, shapes, middles, halves, strict=True)
    ]
    nodes = _painted(rng, sheet, nodes)
    directed = form not in ("grid", "star") or chance(rng, 0.7)
    edges = _labelled(rng, pairs) if form == "down" else [Edge(start=a, end=b) for a, b in pairs]
    graph = Graph(form=form, nodes=tuple(nodes), edges=tuple(edges), directed=directed)
    line: Colour = ink(rng, sheet.image.getpixel((1, 1)), plain=True)  # pyright: ignore[reportArgumentType]
    _drawn(rng, _pen(rng, world, sheet), graph, line)
    _texts(sheet, graph, texts, replace(style, colour=line))
    image, marks = finish(rng, sheet, strength=0.8)
    return _made(rng, world, graph, image, marks)


def _made(
    rng: np.random.Generator,
    world: World,
    graph: Graph,
    image: Image.Image,
    marks: Sequence[Mark],
) -> Made:
    boxes = [mark.box for mark in marks if mark.kind == "thing"]
    nodes = [replace(n, box=box) for n, box in zip(graph.nodes, boxes, strict=True)]
    found = replace(graph, nodes=tuple(nodes))
    facts = {
        "form": graph.form,
        "nodes": [node.name for node in nodes],
        "edges": [(nodes[e.start].name, nodes[e.end].name, e.label) for e in graph.edges],
        "directed": graph.directed,
    }
    asks = tuple(diagram_asks(rng, world, found, marks))
    return Made(image=image, marks=tuple(marks), asks=asks, facts=facts)


def paper(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Image.Image:
    """Light paper in most cases; now and then any other ground."""
    if chance(rng, 0.75):
        return Image.new("RGB", size, light_colour(rng))
    return ground(rng, world, size)


def node_names(rng: np.random.Generator, world: World, style: Style, count: int) -> list[str]:
    """Different names of one sort, as the face shows them."""
    sort = rng.random()
    if sort < 0.2:
        return [chr(ord("A") + n) for n in some(rng, range(12), count)]
    if sort < 0.5:
        return [style.shown(name) for name in some(rng, world.style(STEPS), count)]
    found: dict[str, None] = {}
    while len(found) < count:
        texts = (world.texts.nouns, world.texts.places, world.texts.first_names, world.texts.jobs)
        name = pick(rng, pick(rng, texts)) if sort < 0.8 else world.texts.phrase(rng, 1, 3)
        name = style.shown(name.strip(".,;:()\"'"))
        if 1 <= len(name) <= 20:
            found[capitalised(name)] = None
    return list(found)


def _shapes(rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    """One shape for all, or diamonds for questions, or a mixture."""
    usual = ["box", "box", "rounded box"] + ["circle"] * (max(map(len, names)) < 10)
    common, mixed = pick(rng, usual), chance(rng, 0.2)
    shapes = [pick(rng, usual) if mixed else common for _ in names]
    asked = [name.endswith("?") and chance(rng, 0.8) for name in names]
    return ["diamond" if a else shape for a, shape in zip(asked, shapes, strict=True)]


def _halves(style: Style, texts: Sequence[Sequence[str]], shapes: Sequence[str]) -> list[Point]:
    """Half of the width and height of each node."""
    wide = max(style.width(row) for rows in texts for row in rows) / 2 + style.size * 0.9
    high = max(len(rows) for rows in texts) * style.leading / 2 + style.size * 0.55
    around = math.hypot(wide - style.size * 0.5, high - style.size * 0.3)
    sizes = {"circle": (around, around), "diamond": (wide * 1.45, high * 1.9)}
    return [sizes.get(shape, (wide, high)) for shape in shapes]


def _laid(
    rng: np.random.Generator,
    world: World,
    places: Sequence[Point],
    halves: Sequence[Point],
    size: int,
) -> tuple[Sheet, list[Point]]:
    """A sheet that holds all nodes, and their middles in pixels."""
    margin = integer(rng, size, 4 * size)
    half = (max(h[0] for h in halves), max(h[1] for h in halves))
    pitch = (2 * half[0] + between(rng, 2.4, 5) * size, 2 * half[1] + between(rng, 2.4, 4) * size)
    left, top = (min(place[k] for place in places) for k in (0, 1))
    middles = [
        ((x - left) * pitch[0] + half[0] + margin, (y - top) * pitch[1] + half[1] + margin)
        for x, y in places
    ]
    width, height = (round(max(m[k] for m in middles) + half[k] + margin) for k in (0, 1))
    return Sheet(paper(rng, world, (width, height))), middles


def _box(middle: Point, half: Point) -> PixelBox:
    (x, y), (a, b) = middle, half
    return round(x - a), round(y - b), round(x + a), round(y + b)


def _painted(rng: np.random.Generator, sheet: Sheet, nodes: Sequence[Node]) -> list[Node]:
    """Nodes with grounds of one colour, of one each, or bare; all are marked."""
    painting = pick(rng, ("bare", "bare", "one", "each"))
    dark = luminance(sheet.image.getpixel((1, 1))) < 0.5  # pyright: ignore[reportArgumentType]
    painted, paint = [], None
    for node in nodes:
        sheet.mark(node.name, node.box)
        while painting != "bare" and (paint is None or painting == "each"):
            paint = named_colour(rng, sheet.image, (0, 0, 8, 8))
            if (luminance(paint[1]) < 0.4) == dark:  # the ink of the lines is read on it
                break
            paint = None
        if paint is not None:
            outline = [(round(x), round(y)) for x, y in _outline(node)]
            sheet.draw.polygon(outline, fill=paint[1])
        painted.append(replace(node, colour=paint[0] if paint else ""))
    return painted


def _outline(node: Node) -> list[Point]:
    """Points around a node."""
    x1, y1, x2, y2 = node.box
    (x, y), half = node.middle, ((x2 - x1) / 2, (y2 - y1) / 2)
    if node.shape == "circle":
        return ellipse((x, y), half)
    if node.shape == "diamond":
        return [(x, y1), (x2, y), (x, y2), (x1, y)]
    if node.shape == "box":
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    r = min(half) * 0.7
    corners = [(x2 - r, y2 - r), (x1 + r, y2 - r), (x1 + r, y1 + r), (x2 - r, y1 + r)]
    return [
        (cx + r * math.cos(t), cy + r * math.sin(t))
        for quarter, (cx, cy) in enumerate(corners)
        for t in [math.pi / 2 * (quarter + n / 6) for n in range(7)]
    ]


def _labelled(rng: np.random.Generator, pairs: Sequence[tuple[int, int]]) -> list[Edge]:
    """Edges; the two ways out of a node are sometimes called yes and no."""
    starts = [a for a, _ in pairs]
    names = pick(rng, (("Yes", "No"), ("yes", "no"), ("OK", "fail"), ("", ""), ("", "")))
    called = iter(names if chance(rng, 0.5) else names[::-1])
    return [
        Edge(start=a, end=b, label=next(called) if starts.count(a) > 1 else "") for a, b in pairs
    ]


def _pen(rng: np.random.Generator, world: World, sheet: Sheet) -> Pen:
    look = pick(rng, world.style(LOOKS))
    wobble = between(rng, 1.5, 3.5) if look in ("wobbly", "sketch") else 0.0
    width = 1 if look == "thin" else integer(rng, 1, 3)
    return Pen(rng, sheet, width=width, wobble=wobble, strokes=2 if look == "sketch" else 1)


def _drawn(rng: np.random.Generator, pen: Pen, graph: Graph, colour: Colour) -> None:
    """Outlines and arrows."""
    filled, head = chance(rng, 0.6), between(rng, 9, 14) + 2 * pen.width
    for node in graph.nodes:
        pen.closed(_outline(node))
    for edge in graph.edges:
        start, end = _ends(graph.nodes[edge.start], graph.nodes[edge.end])
        if graph.directed:
            pen.arrow(start, end, head, filled=filled)
        else:
            pen.line([start, end])
    pen.lift(colour)


def _ends(one: Node, two: Node) -> tuple[Point, Point]:
    """Where the line between two nodes leaves the one and reaches the other."""
    (x1, y1), (x2, y2) = one.middle, two.middle
    far = math.dist((x1, y1), (x2, y2))
    dx, dy = (x2 - x1) / far, (y2 - y1) / far
    out, inn = _reach(one, dx, dy) + 2, _reach(two, dx, dy) + 4
    return (x1 + dx * out, y1 + dy * out), (x2 - dx * inn, y2 - dy * inn)


def _reach(node: Node, dx: float, dy: float) -> float:
    """The distance from the middle of a node to its outline in a direction."""
    a, b = (node.box[2] - node.box[0]) / 2, (node.box[3] - node.box[1]) / 2
    if node.shape == "circle":
        return 1 / math.hypot(dx / a, dy / b)
    if node.shape == "diamond":
        return 1 / (abs(dx) / a + abs(dy) / b)
    return min(a / max(abs(dx), 1e-6), b / max(abs(dy), 1e-6))


def _texts(sheet: Sheet, graph: Graph, texts: Sequence[Sequence[str]], style: Style) -> None:
    """Names in the middle of their nodes, labels beside their arrows."""
    for node, rows in zip(graph.nodes, texts, strict=True):
        x, y = node.middle
        top = y - len(rows) * style.leading / 2
        for k, row in enumerate(rows):
            sheet.text(x - style.width(row) / 2, top + k * style.leading, row, style)
    small = replace(style, size=max(11, round(style.size * 0.85)))
    for edge in graph.edges:
        if edge.label:
            (x1, y1), (x2, y2) = _ends(graph.nodes[edge.start], graph.nodes[edge.end])
            down = abs(y2 - y1) > abs(x2 - x1)
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            x += small.size * 0.5 if down else -small.width(edge.label) / 2
            sheet.text(x, y - small.size * (0.7 if down else 1.5), edge.label, small)


def _lone(rng: np.random.Generator, world: World) -> Made:
    """One to three arrows of different colours, each in its part of the picture."""
    count = pick(rng, (1, 1, 2, 3))
    side = integer(rng, 110, 260)
    across = chance(rng, 0.5)
    size = (side * count, side) if across else (side, side * count)
    sheet = Sheet(paper(rng, world, size))
    arrows: list[Arrow] = []
    for n in range(count):
        colour, paint = named_colour(rng, sheet.image, (0, 0, *size))
        turn = math.radians(45 * integer(rng, 0, 7) + between(rng, -8, 8))
        reach = side * between(rng, 0.25, 0.42)
        x, y = (side * (n + 0.5), side / 2) if across else (side / 2, side * (n + 0.5))
        dx, dy = reach * math.cos(turn), reach * math.sin(turn)
        start, end = (x - dx, y - dy), (x + dx, y + dy)
        pen = _pen(rng, world, sheet)
        pen.width = integer(rng, 2, 7)
        pen.arrow(start, end, side * 0.1 + 2 * pen.width, filled=chance(rng, 0.6))
        box = pen.layer.reduce(2).point([255 * (v > 127) for v in range(256)]).getbbox()
        assert box is not None
        pen.lift(paint)
        pointed = way(start, end)
        assert pointed is not None
        arrows.append(Arrow(colour=colour, way=pointed, box=sheet.mark(f"{colour} arrow", box)))
    image, marks = finish(rng, sheet, strength=0.8)
    found = [replace(arrow, box=mark.box) for arrow, mark in zip(arrows, marks, strict=True)]
    facts = {"form": "lone", "arrows": [(arrow.colour, arrow.way) for arrow in arrows]}
    return Made(image=image, marks=marks, asks=tuple(arrow_asks(rng, found)), facts=facts)
