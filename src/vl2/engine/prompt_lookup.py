"""Guesses at the next tokens: what followed the last time that the text ended in these tokens.

Answers about documents repeat what stands in the question and in the answer itself. A guess costs
one more row in a step, and a wrong one changes nothing (prompt-lookup decoding).
"""

from __future__ import annotations

from collections.abc import Sequence


def look_up(
    token_ids: Sequence[int], *, match: int, count: int, barred: frozenset[int]
) -> list[int]:
    """Up to `count` tokens behind the latest earlier place of the last `match` tokens.

    Tokens of `barred`, image placeholders for instance, are never guessed and end the guess.
    """
    tail = list(token_ids[-match:])
    if len(tail) < match or count < 1 or not barred.isdisjoint(tail):
        return []
    for start in range(len(token_ids) - match - 1, -1, -1):
        if token_ids[start] == tail[0] and list(token_ids[start : start + match]) == tail:
            found = token_ids[start + match : start + match + count]
            return _until_barred(found, barred)
    return []


def _until_barred(tokens: Sequence[int], barred: frozenset[int]) -> list[int]:
    kept = []
    for token in tokens:
        if token in barred:
            break
        kept.append(token)
    return kept
