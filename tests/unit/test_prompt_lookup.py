"""Guesses come from the text alone: the latest place, never a barred token, never from the end."""

import random

import pytest

from vl2.engine.prompt_lookup import PromptLookup


def lookup_of(text: str, match: int = 2, barred: str = "") -> PromptLookup:
    lookup = PromptLookup(match, frozenset(map(ord, barred)))
    lookup.extend(map(ord, text))
    return lookup


def guess(text: str, count: int = 3, **how) -> str:
    return "".join(map(chr, lookup_of(text, **how).guess(count)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("abcdeab", "cde"),
        ("abcXabdYab", "dYa"),  # the latest place
        ("ab", ""),
        ("a", ""),
        ("", ""),
        ("abcd", ""),
        ("aaaa", "a"),  # an overlap with itself: one token is known to follow
    ],
)
def test_what_followed_the_latest_place_is_guessed(text, wanted):
    assert guess(text) == wanted


def test_a_barred_token_ends_a_guess_and_starts_none():
    assert guess("abc#eab", barred="#") == "c"
    assert guess("a#bcda#", barred="#") == ""


@pytest.mark.parametrize("seed", range(10))
def test_growing_token_by_token_is_the_same_as_a_search(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("abc", k=80))
    grown = PromptLookup(3, frozenset())
    for end in range(1, len(text) + 1):
        grown.extend([ord(text[end - 1])])
        known, tail = text[:end], text[max(0, end - 3) : end]
        start = known.rfind(tail, 0, end - 1) if end > 3 else -1
        wanted = known[start + 3 : start + 7] if start >= 0 else ""
        assert "".join(map(chr, grown.guess(4))) == wanted
