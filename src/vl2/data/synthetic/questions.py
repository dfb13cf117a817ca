"""Questions about a scene with their true answers: `ask(scene, rng)`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vl2.data.synthetic.chance import chance, pick, shuffled
from vl2.data.synthetic.colours import COLOURS
from vl2.data.synthetic.scene import Scene, SceneObject
from vl2.data.synthetic.shapes import SHAPES
from vl2.data.synthetic.wording import by_name, grounded, listed, phrased, plural, some

QUESTION_KINDS = (
    *("read", "locate", "count", "colour", "shape", "position", "caption", "grounded_caption"),
)
GROUNDING = "<|grounding|>"
MIN_QUESTIONS, MAX_QUESTIONS = 2, 5
DRILL_ROUNDS = 4
GRID_MARGIN = 0.04
"""An object whose centre is this close to a line of the 3x3 grid has no clear place."""
CLEAR_SHIFT = 0.12
"""Two centres at least this far apart, in picture sides, are clearly left/right or above/below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question in the words a user would type, and its answer."""

    text: str
    answer: str
    kind: str
    """One of `QUESTION_KINDS`."""


Asker = Callable[[Scene, np.random.Generator], Question | None]


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Two to five different questions that the scene answers without doubt, in random order."""
    wanted = int(rng.integers(MIN_QUESTIONS, MAX_QUESTIONS + 1))
    return _collect(scene, rng, _askers(scene, rng), wanted)


def drill(scene: Scene, rng: np.random.Generator, most: int = 10) -> list[Question]:
    """Up to `most` questions, and lists of all objects: much practice from one picture.

    In a list each object's property comes right after its name, in random order. A model learns
    to choose one object among several from these first, and then for questions.
    """
    rounds = [asker for _ in range(DRILL_ROUNDS) for asker in _askers(scene, rng)]
    lists = _collect(scene, rng, LISTS, len(LISTS)) if len(scene.shapes) > 1 else []
    return shuffled(rng, [*lists, *_collect(scene, rng, rounds, most)])


def _collect(
    scene: Scene, rng: np.random.Generator, askers: Sequence[Asker], wanted: int
) -> list[Question]:
    questions: dict[str, Question] = {}
    for asker in askers:
        question = asker(scene, rng)
        if question and question.text not in questions:
            questions[question.text] = question
        if len(questions) == wanted:
            break
    return shuffled(rng, list(questions.values()))


def _askers(scene: Scene, rng: np.random.Generator) -> list[Asker]:
    """What to try, best suited first: the kind of scene decides the first, chance the rest."""
    first: list[Asker] = {
        "text": [_read],
        "mixed": [_read, _locate],
        "count": [_count],
        "shapes": [_locate],
        "crowd": [_locate],
    }[scene.kind]
    texts: list[Asker] = [_locate_text, _grounded_read, _colour_of_text, _position]
    shapes: list[Asker] = [_locate, _count, _absent, _relation]
    shapes += [_colour, _shape, _position] * 2
    others: list[Asker] = [_caption, _grounded_caption]
    others += (texts if len(scene.texts) == 1 else []) + (shapes if scene.shapes else [])
    return first + shuffled(rng, others)


def _read(scene: Scene, rng: np.random.Generator) -> Question | None:
    text = scene.texts[0].text
    return Question(text=phrased(rng, "read"), answer=text, kind="read")


def _grounded_read(scene: Scene, rng: np.random.Generator) -> Question | None:
    text = scene.texts[0]
    answer = grounded(text.text, [text.box], scene.image.size)
    question = GROUNDING + phrased(rng, "read")
    return Question(text=question, answer=answer, kind="grounded_caption")


def _locate_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    answer = grounded("text", [scene.texts[0].box], scene.image.size)
    return Question(text=_locating(rng, "text"), answer=answer, kind="locate")


def _colour_of_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    colour = scene.texts[0].colour
    if not colour:
        return None
    return Question(text=phrased(rng, "colour", "text"), answer=colour, kind="colour")


def _locate(scene: Scene, rng: np.random.Generator) -> Question | None:
    """All objects of one description: by colour and shape, shape alone, or colour alone."""
    if not scene.shapes:
        return None
    item = pick(rng, scene.shapes)
    point = rng.random()
    label = item.name if point < 0.75 else item.shape if point < 0.9 else f"{item.colour} shape"
    same = [other for other in scene.shapes if label in _descriptions(other)]
    plain = label if len(same) == 1 else plural(label) if chance(rng, 0.7) else label
    answer = grounded(label, [other.box for other in same], scene.image.size)
    return Question(text=_locating(rng, plain), answer=answer, kind="locate")


def _descriptions(item: SceneObject) -> tuple[str, str, str]:
    return item.name, item.shape, f"{item.colour} shape"


def _locating(rng: np.random.Generator, name: str) -> str:
    return phrased(rng, "official locate" if chance(rng, 0.25) else "locate", name)


def _absent(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about something that is not there; asked rarely."""
    if chance(rng, 0.75):
        return None
    shape, seen = pick(rng, SHAPES), {item.shape for item in scene.shapes}
    if shape not in seen and chance(rng, 0.5):
        return Question(text=phrased(rng, "count", plural(shape)), answer="0", kind="count")
    name = f"{pick(rng, COLOURS)} {pick(rng, sorted(seen)) if chance(rng, 0.4) else shape}"
    if any(item.name == name for item in scene.shapes):
        return None
    return Question(text=_locating(rng, name), answer=f"There is no {name}.", kind="locate")


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many of one shape, of one colour and shape, or of all shapes."""
    counts = Counter(item.shape for item in scene.shapes)
    if not counts:
        return None
    name, number = counts.most_common(1)[0] if chance(rng, 0.5) else pick(rng, list(counts.items()))
    point = rng.random()
    if point < 0.1:
        name, number = "shape", len(scene.shapes)
    elif point < 0.25:
        name, number = pick(rng, list(Counter(item.name for item in scene.shapes).items()))
    text = phrased(rng, "count", plural(name))
    return Question(text=text, answer=str(number), kind="count")


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of a shape that is there once."""
    counts = Counter(item.shape for item in scene.shapes)
    single = [item for item in scene.shapes if counts[item.shape] == 1]
    if not single:
        return None
    item = pick(rng, single)
    return Question(text=phrased(rng, "colour", item.shape), answer=item.colour, kind="colour")


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The shape of the only shape in its colour."""
    counts = Counter(item.colour for item in scene.shapes)
    single = [item for item in scene.shapes if counts[item.colour] == 1]
    if not single:
        return None
    item = pick(rng, single)
    return Question(text=phrased(rng, "shape", item.colour), answer=item.shape, kind="shape")


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where an object with a unique name is, in words of a 3x3 grid."""
    counts = Counter(item.name for item in scene.objects)
    single = [item for item in scene.objects if counts[item.name] == 1]
    if not single:
        return None
    item = pick(rng, single)
    answer = place_word(item, scene)
    if answer is None:
        return None
    name = item.name if item.kind == "shape" else "text"
    return Question(text=phrased(rng, "position", name), answer=answer, kind="position")


def place_word(item: SceneObject, scene: Scene) -> str | None:
    """The cell of a 3x3 grid that holds the object's centre; None near a line of the grid."""
    (x, y), (width, height) = item.centre, scene.image.size
    across, down = x / width, y / height
    if any(abs(part - line) < GRID_MARGIN for part in (across, down) for line in (1 / 3, 2 / 3)):
        return None
    row, column = ("top", "", "bottom")[int(down * 3)], ("left", "", "right")[int(across * 3)]
    return f"{row} {column}".strip() or "centre"


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether one shape is left of, right of, above or below another; only clear cases."""
    counts = Counter(item.name for item in scene.shapes)
    single = shuffled(rng, [item for item in scene.shapes if counts[item.name] == 1])
    if len(single) < 2:
        return None
    (x1, y1), (x2, y2) = single[0].centre, single[1].centre
    right, down = (x1 - x2) / scene.image.width, (y1 - y2) / scene.image.height
    truths = {"left of": -right, "right of": right, "above": -down, "below": down}
    clear = [word for word, shift in truths.items() if abs(shift) >= CLEAR_SHIFT]
    if not clear:
        return None
    word = pick(rng, clear)
    text = phrased(rng, "relation", single[0].name, word, single[1].name)
    return Question(text=text, answer="yes" if truths[word] > 0 else "no", kind="position")


def _reverse_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What stands in a cell of the 3x3 grid that holds one object."""
    places = [(place_word(item, scene), item) for item in scene.shapes]
    counts = Counter(place for place, _ in places)
    single = [(place, item) for place, item in places if place and counts[place] == 1]
    if not single or any(place is None for place, _ in places):
        return None
    place, item = pick(rng, single)
    where = "in the centre" if place == "centre" else f"at the {place}"
    return Question(text=phrased(rng, "reverse position", where), answer=item.name, kind="position")


def _single(scene: Scene, field: str) -> list[SceneObject]:
    """The shapes whose name, shape or colour no other shape has."""
    counts = Counter(getattr(item, field) for item in scene.shapes)
    return [item for item in scene.shapes if counts[getattr(item, field)] == 1]


def _listing(rng: np.random.Generator, kind: str, parts: Sequence[str]) -> Question | None:
    if len(parts) < 2:
        return None
    answer = ", ".join(shuffled(rng, parts))
    return Question(text=phrased(rng, kind), answer=answer, kind="caption")


def _list_colours(scene: Scene, rng: np.random.Generator) -> Question | None:
    parts = [f"{item.shape} {item.colour}" for item in _single(scene, "shape")]
    return _listing(rng, "list colours", parts)


def _list_shapes(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _listing(rng, "list shapes", [item.name for item in _single(scene, "colour")])


def _list_places(scene: Scene, rng: np.random.Generator) -> Question | None:
    places = [(item, place_word(item, scene)) for item in _single(scene, "name")]
    return _listing(rng, "list places", [f"{item.name} {place}" for item, place in places if place])


def _list_boxes(scene: Scene, rng: np.random.Generator) -> Question | None:
    size = scene.image.size
    parts = [grounded(item.name, [item.box], size) for item in _single(scene, "name")]
    return _listing(rng, "list boxes", parts)


LISTS: tuple[Asker, ...] = (
    *(_list_colours, _list_shapes, _list_places, _list_boxes, _reverse_position),
)
"""What `drill` asks besides questions."""


def _caption(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not scene.objects:
        return None
    parts = [some(len(items), name) for name, items in by_name(scene.shapes)]
    parts += [f'the text "{item.text}"' for item in scene.texts]
    return Question(text=phrased(rng, "caption"), answer=listed(parts), kind="caption")


def _grounded_caption(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not scene.objects:
        return None
    size = scene.image.size
    parts = [
        grounded(some(len(items), name), [item.box for item in items], size)
        for name, items in by_name(scene.shapes)
    ]
    parts += [grounded(f'the text "{item.text}"', [item.box], size) for item in scene.texts]
    question = GROUNDING + phrased(rng, "caption")
    return Question(text=question, answer=listed(parts), kind="grounded_caption")
