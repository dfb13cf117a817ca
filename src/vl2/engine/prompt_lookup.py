"""Guesses at the next tokens: what followed the last time that the text ended in these tokens.

Answers about documents repeat what stands in the question and in the answer itself. A guess costs
one more row in a step, and a wrong one changes nothing (prompt-lookup decoding).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile


class PromptLookup:
    """The text so far and where each run of `match` tokens in it last went on.

    Tokens of `barred`, image placeholders for instance, are never guessed and end a guess.
    """

    def __init__(self, match: int, barred: frozenset[int]) -> None:
        self._match, self._barred = match, barred
        self._token_ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self._token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        for token in token_ids:
            if len(self._token_ids) >= self._match:
                self._next[self._tail()] = len(self._token_ids)
            self._token_ids.append(token)

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next."""
        tail = self._tail()
        place = self._next.get(tail)
        if place is None or not self._barred.isdisjoint(tail):
            return []
        found = self._token_ids[place : place + count]
        return list(takewhile(lambda token: token not in self._barred, found))

    def _tail(self) -> tuple[int, ...]:
        return tuple(self._token_ids[-self._match :])
