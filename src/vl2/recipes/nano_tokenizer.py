"""The embedded model's tokenizer: a small byte-level BPE with DeepSeek-VL2's special tokens.

Digits and capitals are always tokens of their own: coordinates and codes are then read and written
character by character, which a small model learns from far fewer pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from vl2.data.synthetic import COMMON_WORDS, SceneRecipe, ask, draw_scene
from vl2.processing.tokenizer import SPECIAL_TOKENS

PIECES = r"\p{N}|\p{Lu}| ?[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\s\p{L}\p{N}]+ ?|\s+"
"""What BPE may merge within: a digit, a capital, the rest of a word, punctuation, white space."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `texts`; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS.values()
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


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
        train_tokenizer(tokenizer_texts(scenes), vocab_size).save(str(target))
