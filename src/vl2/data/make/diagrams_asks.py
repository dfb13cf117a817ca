"""What people ask about diagrams: what comes after and before, how many, where, which way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vl2.data.make.chance import chance, phrase, pick, some
from vl2.data.make.graph import Edge, Graph, Node, way
from vl2.data.make.naming import COLOURS, capitalised, listed, plural
from vl2.data.make.reading import LOCATE_THING, different, locate, locate_asks, read_asks
from vl2.data.make.sample import Ask, Mark, ask
from vl2.data.make.world import World
from vl2.geometry import PixelBox

AFTER = (
    "Where does the arrow from {a} [go|lead|point]?",
    "What [comes|is] [after|next after] {a}?",
    "[What|Which {noun}] follows {a}?",
    "What does {a} point to?",
)
BEFORE = (
    "What [comes|is] [before|right before] {a}?",
    "Where does the arrow to {a} [start|come from]?",
    "What points to {a}?",
)
CONNECTED = (
    "What is [connected|joined|linked] [to|with] {a}?",
    "[Which|What] [are the neighbours of {a}|is next to {a}]?",
)
COUNT = (
    "How many {names} are there?",
    "[Count|Number of] {names}[.|?]",
    "How many {names} [do you see|does the diagram have|are in the picture]?",
)
BETWEEN = (
    "Is there an arrow from {a} to {b}?",
    "Does an arrow [go|lead] from {a} to {b}?",
    "Does {a} point to {b}?",
)
JOINED = ("Is {a} [connected|joined] to {b}?", "Is there a line between {a} and {b}?")
WAY = (
    "[Which way|In which direction] does the arrow from {a} to {b} point?",
    "[Which way|Where] does the arrow between {a} and {b} [point|go]?",
)
LABEL = (
    "What is written [on|at|beside] the arrow from {a} to {b}?",
    "What does the arrow from {a} to {b} say?",
)
FOLLOW = ("Where does the {label} arrow [go|lead]?", "What [comes after|follows] {label}?")
FIRST = ("[What|Which {noun}] [is|comes] first?", "[Where|With what] does it [start|begin]?")
LAST = ("[What|Which {noun}] [is|comes] last?", "[Where|With what] does it end?")
TOP = ("What is [at the top|the root][ of the tree|]?", "Which {noun} is the root?")
NAMES = ("[Which|What] {names} are there?", "[List|Name] the {names}.")
SHAPE = ("What shape is {a}?", "What is the shape [of|around] {a}?")
COLOUR = ("What [colour|color] is {a}?", "Which [colour|color] does {a} have?")
KIND = ("What kind of [diagram|picture] is [this|it]?", "What [is this|does the picture show]?")
DESCRIBE = (
    "Describe [the diagram|the picture|this image|the image].",
    "What [is in this picture|do you see|is shown]?",
    "Caption this[ image|].",
    "Explain the diagram.",
)
POINTS = (
    "[Which way|Where|In which direction] does the {name} point?",
    "What direction is the {name}[ pointing|]?",
)
ARROW_COLOUR = ("What [colour|color] is the arrow?", "[Colour|Color] of the arrow?")
KINDS = {
    "tree": "A tree.",
    "sideways": "A tree.",
    "cycle": "A cycle.",
    "grid": "A graph.",
    "star": "A graph.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrow:
    """An arrow alone."""

    colour: str
    way: str
    box: PixelBox


def diagram_asks(
    rng: np.random.Generator, world: World, graph: Graph, marks: Sequence[Mark]
) -> list[Ask]:
    """Everything that the diagram answers without doubt, and what is not in it."""
    lines = [mark for mark in marks if mark.kind == "line"]
    asks = [
        ask("diagram.kind", phrase(rng, pick(rng, KIND)), KINDS.get(graph.form, "A flow chart.")),
        ask("diagram.describe", phrase(rng, pick(rng, DESCRIBE)), _description(graph)),
        *locate_asks(rng, lines, "diagram", most=1),
    ]
    if graph.form in ("down", "right", "tree") and not any(e.label for e in graph.edges):
        asks += read_asks(rng, lines, "diagram")
    asks += _counts(rng, graph) + _places(rng, world, graph) + _looks(rng, graph)
    for node in some(rng, range(len(graph.nodes)), 3):
        asks += _neighbours(rng, graph, node)
    asks += _between(rng, graph) + (_ends(rng, graph) if graph.directed else [])
    return different(rng, asks, 7)


def _neighbours(rng: np.random.Generator, graph: Graph, node: int) -> list[Ask]:
    """What stands before, after and beside one of the nodes."""
    name, noun = graph.nodes[node].name, _noun(graph)
    asks = []
    if graph.directed:
        after = _listed(graph, graph.after(node)) or f"Nothing comes after {name}."
        before = _listed(graph, graph.before(node)) or f"Nothing comes before {name}."
        asks += [ask("diagram.after", phrase(rng, pick(rng, AFTER), a=name, noun=noun), after)] * 2
        asks.append(ask("diagram.before", phrase(rng, pick(rng, BEFORE), a=name), before))
    if not graph.directed or chance(rng, 0.4):
        around = _listed(graph, graph.around(node)) or "Nothing."
        asks.append(ask("diagram.connected", phrase(rng, pick(rng, CONNECTED), a=name), around))
    return asks


def _between(rng: np.random.Generator, graph: Graph) -> list[Ask]:
    """Whether two nodes are joined, which way their arrow points, and what it says."""
    pairs = {(e.start, e.end) for e in graph.edges}
    if not pairs:
        return []
    a, b = pick(rng, sorted(pairs)) if chance(rng, 0.5) else some(rng, range(len(graph.nodes)), 2)
    there = (a, b) in pairs or (not graph.directed and (b, a) in pairs)
    one, two = graph.nodes[a].name, graph.nodes[b].name
    forms = BETWEEN if graph.directed else JOINED
    answer = "Yes" if there else "No"
    asks = [ask("diagram.joined", phrase(rng, pick(rng, forms), a=one, b=two), answer)]
    if graph.directed:
        edge = pick(rng, graph.edges)
        asks += _of_arrow(rng, graph, edge)
        for edge in graph.edges:
            if edge.label:
                asks += _of_arrow(rng, graph, edge)
    return asks


def _of_arrow(rng: np.random.Generator, graph: Graph, edge: Edge) -> list[Ask]:
    one, two = graph.nodes[edge.start], graph.nodes[edge.end]
    asks = []
    if pointed := way(one.middle, two.middle):
        question = phrase(rng, pick(rng, WAY), a=one.name, b=two.name)
        asks.append(ask("diagram.way", question, pointed))
    if edge.label:
        question = phrase(rng, pick(rng, LABEL), a=one.name, b=two.name)
        asks.append(ask("diagram.label", question, edge.label))
        question = phrase(rng, pick(rng, FOLLOW), label=edge.label)
        asks.append(ask("diagram.after", question, two.name))
    return asks


def _ends(rng: np.random.Generator, graph: Graph) -> list[Ask]:
    """The first and the last node, where there is one each."""
    nodes = range(len(graph.nodes))
    first = [n for n in nodes if not graph.before(n)]
    last = [n for n in nodes if not graph.after(n)]
    noun, asks = _noun(graph), []
    if len(first) == 1 and graph.form not in ("star", "grid"):
        forms = TOP if graph.form in ("tree", "sideways") else FIRST
        forms = TOP[1:] if graph.form == "sideways" else forms
        name = graph.nodes[first[0]].name
        asks.append(ask("diagram.first", phrase(rng, pick(rng, forms), noun=noun), name))
    if len(last) == 1 and graph.form not in ("star", "grid", "tree", "sideways"):
        name = graph.nodes[last[0]].name
        asks.append(ask("diagram.last", phrase(rng, pick(rng, LAST), noun=noun), name))
    return asks


def _counts(rng: np.random.Generator, graph: Graph) -> list[Ask]:
    nouns = Counter(node.noun for node in graph.nodes)
    noun = pick(rng, list(nouns))
    line = "arrows" if graph.directed else "lines"
    asks = [
        ask("diagram.count", phrase(rng, pick(rng, COUNT), names=plural(noun)), str(nouns[noun])),
        ask("diagram.count", phrase(rng, pick(rng, COUNT), names=line), str(len(graph.edges))),
    ]
    if len(nouns) == 1:
        names = _listed(graph, graph.ordered(set(range(len(graph.nodes)))))
        if graph.form not in ("cycle", "star", "sideways"):
            asks.append(
                ask("diagram.names", phrase(rng, pick(rng, NAMES), names=plural(noun)), names)
            )
    return asks


def _places(rng: np.random.Generator, world: World, graph: Graph) -> list[Ask]:
    """Where one of the nodes is; and one that is not there."""
    node = pick(rng, graph.nodes)
    asks = [locate(rng, "diagram", f"{node.name} {node.noun}", (node.box,), LOCATE_THING)]
    missing = pick(rng, world.texts.nouns)
    if chance(rng, 0.5) and all(missing.lower() != n.name.lower() for n in graph.nodes):
        asks.append(locate(rng, "diagram", f"{missing} {node.noun}", (), LOCATE_THING))
    return asks


def _looks(rng: np.random.Generator, graph: Graph) -> list[Ask]:
    """The colour and, where they differ, the shape of a node."""
    node = pick(rng, graph.nodes)
    asks = []
    if node.colour:
        asks.append(ask("diagram.colour", phrase(rng, pick(rng, COLOUR), a=node.name), node.colour))
    if len({n.noun for n in graph.nodes}) > 1:
        asks.append(ask("diagram.shape", phrase(rng, pick(rng, SHAPE), a=node.name), node.noun))
    return asks


def _noun(graph: Graph) -> str:
    return graph.nodes[0].noun if len({n.noun for n in graph.nodes}) == 1 else "one"


def _listed(graph: Graph, nodes: Sequence[int]) -> str:
    return ", ".join(graph.nodes[k].name for k in nodes)


def _description(graph: Graph) -> str:
    """The kind, the number of nodes, and each arrow or line."""
    kind = KINDS.get(graph.form, "A flow chart.").rstrip(".")
    nouns = listed([_plain(node) for node in graph.nodes])
    word = "to" if graph.directed else "and"
    lead = "Arrows go from" if graph.directed else "Lines join"
    lead = lead.replace("Arrows go", "An arrow goes") if len(graph.edges) == 1 else lead
    lead = lead.replace("Lines join", "A line joins") if len(graph.edges) == 1 else lead
    pairs = [f"{graph.nodes[e.start].name} {word} {graph.nodes[e.end].name}" for e in graph.edges]
    return f"{kind} with {nouns}. {lead} {', '.join(pairs)}."


def _plain(node: Node) -> str:
    return f"{node.colour} {node.noun}".strip()


def arrow_asks(rng: np.random.Generator, arrows: Sequence[Arrow]) -> list[Ask]:
    """Where arrows point and are, their colours and number."""
    names = [f"{arrow.colour} arrow" for arrow in arrows]
    text = listed([f"{name} pointing {a.way}" for name, a in zip(names, arrows, strict=True)])
    if any(count > 1 for count in Counter(names).values()):
        text = listed(names)
    asks = [
        ask("diagram.count", phrase(rng, pick(rng, COUNT[:2]), names="arrows"), str(len(arrows))),
        ask("diagram.describe", phrase(rng, pick(rng, DESCRIBE[1:3])), f"{capitalised(text)}."),
    ]
    for arrow, name in zip(arrows, names, strict=True):
        called = "arrow" if len(arrows) == 1 and chance(rng, 0.7) else name
        if names.count(name) == 1:
            asks += [ask("diagram.way", phrase(rng, pick(rng, POINTS), name=called), arrow.way)] * 2
        same = tuple(a.box for a in arrows if a.colour == arrow.colour)
        asks.append(locate(rng, "diagram", name, same, LOCATE_THING))
    if len(arrows) == 1:
        asks.append(ask("diagram.colour", phrase(rng, pick(rng, ARROW_COLOUR)), arrows[0].colour))
    missing = f"{pick(rng, list(COLOURS))} arrow"
    if missing not in names:
        asks.append(locate(rng, "diagram", missing, (), LOCATE_THING))
    return different(rng, asks, 6)
