"""Small byte-level BPE tokenizers with DeepSeek-VL2's special tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from vl2.processing.tokenizer import SPECIAL_TOKENS


def train_tokenizer(texts: Iterable[str], vocab_size: int, within: str) -> Tokenizer:
    """Byte-level BPE over `texts`; the same texts give the same tokenizer.

    Args:
        texts: to learn from.
        vocab_size: special tokens and bytes included.
        within: a regular expression of what may be merged within.
    """
    tokenizer = Tokenizer(BPE())
    pieces = pre_tokenizers.Split(Regex(within), behavior="isolated")
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
