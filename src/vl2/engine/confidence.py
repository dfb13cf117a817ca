"""How sure the model was of each box: the mean probability of the tokens that spell it."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from vl2.engine.text_stream import TextStream
from vl2.geometry import Resolution
from vl2.processing.grounding import Box, parse_grounding

_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def scored_boxes(
    stream: TextStream,
    logprobs: Sequence[float],
    image_sizes: Sequence[Resolution],
    question: str,
    sent: Sequence[int] = (),
) -> list[Box]:
    """Boxes of an answer in source pixels, each with its score.

    What a box is, the parser alone decides; a box is spelt by the next brackets that parse to it.

    Args:
        stream: the finished text, with the place of every token in it.
        logprobs: log-probability of every token.
        image_sizes: (width, height) of the source pictures.
        question: what was asked, which can say in which picture the boxes are.
        sent: how many pictures each user turn sent.
    """
    brackets = _BRACKETS.finditer(stream.text)
    scored: list[Box] = []
    for box in parse_grounding(stream.text, image_sizes, question=question, sent=sent):
        size = image_sizes[box.image_index]
        spelt = (found for found in brackets if _corners_in(found[0], size) == _corners(box))
        first, end = next(spelt).span()
        score = _mean_probability(stream, logprobs, first + 1, end - 2)
        scored.append(replace(box, score=score))
    return scored


def _corners_in(brackets: str, size: Resolution) -> tuple[int, ...]:
    return tuple(x for box in parse_grounding(f"<|det|>{brackets}", [size]) for x in _corners(box))


def _corners(box: Box) -> tuple[int, ...]:
    return box.x1, box.y1, box.x2, box.y2


def _mean_probability(
    stream: TextStream, logprobs: Sequence[float], first: int, last: int
) -> float:
    """Over the tokens with a digit that reach into text[first : last + 1]."""
    tokens = range(bisect_right(stream.ends, first), bisect_right(stream.ends, last) + 1)
    digits = [i for i in tokens if any(char.isdigit() for char in stream.piece(i))]
    return sum(math.exp(logprobs[i]) for i in digits) / len(digits)
