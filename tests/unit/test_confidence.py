"""Scores of boxes: the parser's boxes, whatever the text, each with the digits that spell it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.engine.confidence import scored_boxes
from vl2.engine.text_stream import TextStream
from vl2.processing.grounding import parse_grounding
from vl2.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer"
TOKENIZER = Tokenizer.from_pretrained(GOLDEN)
SIZES = [(640, 480), (1000, 50)]
FRAGMENTS = [
    *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "the dog", "the second image", "[", "]", ", "),
    *("[1, 2, 3, 4]", "[[5, 6, 7, 8]", "[9, 9, 1, 1]", "[0,0,999,999]", "[1, 2.5, 3, 4]", "5"),
]


def stream_of(text: str) -> TextStream:
    stream = TextStream(TOKENIZER)
    for token in TOKENIZER.encode_trusted(text):
        stream.push(token)
    stream.finish()
    return stream


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=15).map("".join))
def test_boxes_are_the_parsers_and_each_has_a_score(text):
    stream = stream_of(text)
    boxes = scored_boxes(stream, [math.log(0.5)] * len(stream.ends), SIZES, "in image 2")
    assert all(box.score == pytest.approx(0.5) for box in boxes)
    plain = parse_grounding(text, SIZES, question="in image 2")
    assert [replace(box, score=None) for box in boxes] == plain


def test_a_score_is_the_mean_over_the_digits_alone():
    stream = stream_of("7 <|det|>[[9, 9, 1, 1], [100, 2, 300, 4]] 8")
    start = stream.text.index("[100") + 1
    numbers = range(start, start + len("100, 2, 300, 4"))
    inside = [i for i, end in enumerate(stream.ends) if end - 1 in numbers]
    digits = [i for i in inside if any(c.isdigit() for c in stream.piece(i))]
    sure = {i: 0.25 if i == digits[0] else 1.0 for i in digits}
    logprobs = [math.log(sure.get(i, 1e-9)) for i in range(len(stream.ends))]
    [box] = scored_boxes(stream, logprobs, SIZES, "")
    assert box.score == pytest.approx(sum(sure.values()) / len(sure))
    assert len(digits) >= 4
