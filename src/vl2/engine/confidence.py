"""How sure the model was of each box: the mean probability of the tokens that spell it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from vl2.engine.text_stream import TextStream
from vl2.geometry import Resolution
from vl2.processing.grounding import Box, parse_grounding


def scored_boxes(
    stream: TextStream,
    logprobs: Sequence[float],
    image_sizes: Sequence[Resolution],
    question: str,
) -> list[Box]:
    """Boxes of an answer in source pixels, each with its score.

    What a box is, the parser alone decides: one is spelt between the "]" at which it first appears
    and the "[" before that.

    Args:
        stream: the finished text, with the place of every token in it.
        logprobs: log-probability of every token.
        image_sizes: (width, height) of the source pictures.
        question: what was asked, which can say in which picture the boxes are.
    """
    text = stream.text
    boxes = parse_grounding(text, image_sizes, question=question)
    done = 0
    close = text.find("]")
    while done < len(boxes) and close >= 0:
        if len(parse_grounding(text[: close + 1], image_sizes)) > done:
            first, last = text.rfind("[", 0, close) + 1, close - 1
            score = _mean_probability(stream, logprobs, first, last)
            boxes[done] = replace(boxes[done], score=score)
            done += 1
        close = text.find("]", close + 1)
    return boxes


def _mean_probability(
    stream: TextStream, logprobs: Sequence[float], first: int, last: int
) -> float:
    """Over the tokens with a digit that reach into text[first : last + 1]."""
    tokens = range(bisect_right(stream.ends, first), bisect_right(stream.ends, last) + 1)
    digits = [i for i in tokens if any(char.isdigit() for char in stream.piece(i))]
    return sum(math.exp(logprobs[i]) for i in digits) / len(digits)
