"""The embedded model's tokenizer: a small byte-level BPE with DeepSeek-VL2's special tokens.

Digits are always tokens of their own: coordinates, prices and codes are then read and written digit
by digit. Pieces never join letters of different case inside a word, so that words in capitals and
codes are spelt from few, frequent pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vl2.data.make.kinds import KINDS, make
from vl2.data.make.sample import plain
from vl2.data.make.world import World
from vl2.recipes.bpe import train_tokenizer

PIECES = r"\p{N}| ?\p{Lu}?[\p{Ll}\p{Lm}\p{Lo}\p{M}]+| ?\p{Lu}+|[^\s\p{L}\p{N}]+ ?|\s+"
"""What BPE may merge within: a digit, a word, capitals, punctuation, white space."""
MADE_ROWS = 150  # of each kind, whose questions and answers are read
PLAIN_WORDS = 20_000


def texts_to_learn(world: World, seed: int) -> Iterator[str]:
    """Running text, single words, and what is asked and answered about made pictures."""
    words = world.texts.words[:PLAIN_WORDS]
    asked = (
        plain(text)
        for kind in KINDS
        for row in range(MADE_ROWS)
        for ask in make(kind, seed, row, world).asks
        for text in (ask.question, ask.answer)
    )
    return chain(world.texts.paragraphs, (f" {word}" for word in words), asked)


def save_tokenizer(folder: Path, vocab_size: int, world: World, seed: int) -> None:
    """Train and write `tokenizer.json` into `folder`, unless it is there."""
    target = folder / "tokenizer.json"
    if not target.exists():
        train_tokenizer(texts_to_learn(world, seed), vocab_size, PIECES).save(str(target))
