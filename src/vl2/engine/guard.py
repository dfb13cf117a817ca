"""The repetition guard: which tokens would complete an n-gram that the answer said not long ago.

The rule is that of DeepSeek-OCR's `NoRepeatNGramLogitsProcessor`. `NgramTable` follows an answer
token by token, `banned_ref` is the definition over the whole answer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Sequence

from vl2.engine.config import RepetitionGuard


class NgramTable:
    """The n-grams in the window: how often each token followed each run of n - 1 tokens.

    Runs are known by a digest, so that a table takes some 200 kB however long they are; a token
    costs the same wherever it stands in the answer.

    Attributes:
        banned: tokens that may not come next.
    """

    def __init__(self, guard: RepetitionGuard) -> None:
        self.banned: tuple[int, ...] = ()
        self._exempt = frozenset(guard.exempt_token_ids)
        self._most = guard.window_size - guard.ngram_size + 1
        self._run = guard.ngram_size - 1
        self._token_ids = array("q")
        self._name: bytes | None = None  # of the run, once it is whole
        self._ngrams: deque[tuple[bytes, int]] = deque()
        self._following: dict[bytes, Counter[int]] = {}

    def add(self, token: int) -> None:
        """The answer goes on with a token."""
        if self._name is not None:
            self._ngrams.append((self._name, token))
            self._following.setdefault(self._name, Counter())[token] += 1
        if len(self._ngrams) > self._most:
            self._forget(*self._ngrams.popleft())
        self._token_ids.append(token)
        if len(self._token_ids) >= self._run:
            run = self._token_ids[-self._run :]
            self._name = hashlib.blake2b(run, digest_size=16).digest()
            said = self._following.get(self._name, ())
            self.banned = tuple(t for t in said if t not in self._exempt)

    def _forget(self, name: bytes, token: int) -> None:
        following = self._following[name]
        following[token] -= 1
        if not following[token]:
            del following[token]
        if not following:
            del self._following[name]


def banned_ref(token_ids: Sequence[int], guard: RepetitionGuard) -> set[int]:
    """The twin of `NgramTable.banned`: a search through the window of the whole answer."""
    size, length = guard.ngram_size, len(token_ids)
    run = token_ids[length - size + 1 :] if length >= size else ()
    starts = range(max(0, length - guard.window_size), length - size + 1)
    said = {token_ids[at + size - 1] for at in starts if token_ids[at : at + size - 1] == run}
    return said.difference(guard.exempt_token_ids)
