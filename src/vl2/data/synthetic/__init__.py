"""Synthetic pictures of text and shapes with exact boxes, questions, answers and patch labels."""

from vl2.data.synthetic.colours import COLOURS
from vl2.data.synthetic.composing import draw_scene
from vl2.data.synthetic.font_packages import fetch_fonts
from vl2.data.synthetic.fonts import LETTERS, font_split
from vl2.data.synthetic.labels import dense_labels
from vl2.data.synthetic.questions import QUESTION_KINDS, Question, ask, drill
from vl2.data.synthetic.scene import CharBox, Scene, SceneObject, SceneRecipe
from vl2.data.synthetic.shapes import SHAPES
from vl2.data.synthetic.sheet import contact_sheet
from vl2.data.synthetic.words import COMMON_WORDS

__all__ = [
    "COLOURS",
    "COMMON_WORDS",
    "LETTERS",
    "QUESTION_KINDS",
    "SHAPES",
    "CharBox",
    "Question",
    "Scene",
    "SceneObject",
    "SceneRecipe",
    "ask",
    "contact_sheet",
    "dense_labels",
    "draw_scene",
    "drill",
    "fetch_fonts",
    "font_split",
]
