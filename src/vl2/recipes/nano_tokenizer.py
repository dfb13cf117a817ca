"""The embedded model's tokenizer: a small byte-level BPE with DeepSeek-VL2's special tokens.

Digits and capitals are always tokens of their own: coordinates and codes are then read and written
character by character, which a small model learns from far fewer pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vl2.data.synthetic import COMMON_WORDS, SceneRecipe, ask, draw_scene
from vl2.processing.tokenizer import SPECIAL_TOKENS
from vl2.recipes.bpe import train_tokenizer

PIECES = r"\p{N}|\p{Lu}| ?[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\s\p{L}\p{N}]+ ?|\s+"
"""What BPE may merge within: a digit, a capital, the rest of a word, punctuation, white space."""


def tokenizer_texts(scenes: int, seed: int = 0) -> Iterable[str]:
    """Questions and answers of drawn scenes, and the word list; control strings are left out."""
    rng = np.random.default_rng(seed)
    recipe = SceneRecipe(text_styles=(("code", 0.5), ("word", 0.3), ("line", 0.2)))
    for _ in range(scenes):
        for question in ask(draw_scene(rng, recipe=recipe), rng):
            for text in (question.text, question.answer):
                yield _without_controls(text)
    for word in COMMON_WORDS:
        yield f"{word} {word}"


def _without_controls(text: str) -> str:
    for token in SPECIAL_TOKENS.values():
        text = text.replace(token, "\n")
    return text


def save_tokenizer(folder: Path, vocab_size: int, scenes: int) -> None:
    """Train and write `tokenizer.json` into `folder`, unless it is there."""
    target = folder / "tokenizer.json"
    if not target.exists():
        train_tokenizer(tokenizer_texts(scenes), vocab_size, PIECES).save(str(target))
