"""Boxes in text and in pixels, the parser that never raises, and the drawing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl2.processing.grounding import (
    Box,
    draw_boxes,
    grounding_text,
    parse_grounding,
    to_999,
    to_pixels,
)

SIZE = (640, 480)
FULL = "<|ref|>a cat<|/ref|><|det|>[[10, 20, 300, 400]]<|/det|>"
MISSED = (63, 126, 252, 504, 509)
FULL_BOX = (6, 9, 192, 192)


def corners(box: Box) -> tuple[int, int, int, int]:
    return (box.x1, box.y1, box.x2, box.y2)


def boxes_in(text: str, *sizes, question: str = "") -> list[tuple]:
    found = parse_grounding(text, sizes or [SIZE], question=question)
    return [(box.label, *corners(box)) for box in found]


# Coordinates


def test_pixels_are_those_of_the_released_demo():
    assert to_pixels((0, 0, 999, 999), SIZE) == (0, 0, 640, 480)
    assert to_pixels((10, 20, 300, 400), SIZE) == FULL_BOX
    assert to_pixels((580, 270, 999, 900), (1000, 500)) == (580, 135, 1000, 450)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), wide=st.integers(1, 998), high=st.integers(1, 998))
def test_whole_pixels_come_back_exactly(data, wide: int, high: int):
    xs = sorted(data.draw(st.tuples(st.integers(0, wide), st.integers(0, wide))))
    ys = sorted(data.draw(st.tuples(st.integers(0, high), st.integers(0, high))))
    box = (xs[0], ys[0], xs[1], ys[1])
    numbers = to_999(box, (wide, high))
    assert all(0 <= number <= 999 for number in numbers)
    assert to_pixels(numbers, (wide, high)) == box


def test_five_pixels_of_999_come_back_as_the_one_before():
    """int(63 / 999 * 999) is 62, in the released demo too."""
    back = [to_pixels(to_999((0, 0, 0, y), (1, 999)), (1, 999))[3] for y in range(1000)]
    assert {y: y - found for y, found in enumerate(back) if found != y} == dict.fromkeys(MISSED, 1)


@settings(max_examples=100, deadline=None)
@given(side=st.integers(1000, 9000), part=st.floats(0, 1))
def test_large_pictures_come_back_to_half_a_step(side: int, part: float):
    pixel = side * part
    numbers = to_999((0, 0, pixel, pixel), (side, side))
    back = to_pixels(numbers, (side, side))
    assert abs(back[2] - pixel) <= side / 999 / 2 + 1


@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 5, 5),
        (0, 0, 641, 5),
        (0, 0, 5, 480.5),
        (9, 0, 5, 5),
        (0, 9, 5, 5),
        (float("nan"), 0, 5, 5),
        (0, 0, float("inf"), 5),
    ],
)
def test_box_outside_its_picture(box):
    message = r"box \(.*\) does not lie inside its picture of 640 x 480 pixels: expected 0 <= x1"
    with pytest.raises(ValueError, match=message):
        to_999(box, SIZE)


# Parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL, [("a cat", *FULL_BOX)]),
        (f"Here: {FULL} and {FULL}.", [("a cat", *FULL_BOX)] * 2),
        (
            "<|ref|>dogs<|/ref|><|det|>[[0, 0, 9, 9], [10,20,300,400] ,[999, 999, 999, 999]]",
            [("dogs", 0, 0, 5, 4), ("dogs", *FULL_BOX), ("dogs", 640, 480, 640, 480)],
        ),
        ("<|det|>[[10, 20, 300, 400]]<|/det|>", [("", *FULL_BOX)]),
        ("<|ref|>a cat<|/ref|><|det|>[10, 20, 300, 400]<|/det|>", [("a cat", *FULL_BOX)]),
        ("<|ref|>a cat<|/ref|><|det|>[[10, 20, 300, 400], [5, 6", [("a cat", *FULL_BOX)]),
        ("<|ref|>a cat<|det|>[[10, 20, 300, 400]]", [("a cat", *FULL_BOX)]),
        ("<|ref|> 猫 <|/ref|><|det|>[[10.9, 20., 300.0, 400]]<|/det|>", [("猫", *FULL_BOX)]),
        (
            "<|ref|>a<|/ref|><|det|>[[10, 20, 300, 400]]<|ref|>b<|/ref|><|det|>[[0, 0, 9, 9]]",
            [("a", *FULL_BOX), ("b", 0, 0, 5, 4)],
        ),
        ("<|ref|>a<|/ref|><|det|>[[2, 311, 99999, 98]]<|/det|>", []),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3]], [[-1, 2, 3, 4]], [[9, 0, 1, 5]]<|/det|>", []),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4, 5]]<|/det|>", []),
        ("<|ref|>a<|/ref|><|det|>__import__('os').system('touch x')<|/det|>", []),
        ("[[10, 20, 300, 400]]", []),
        ("", []),
        ("<|det|><|/det|><|det|>", []),
    ],
)  # fmt: skip
def test_answers(text: str, expected: list):
    assert boxes_in(text) == expected


def test_no_picture_no_boxes():
    assert parse_grounding(FULL, []) == []


MARKS = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[", "]]", "[0, 0, 1, 1]"]
TOKENS = st.sampled_from([*MARKS, ",", " ", "999", "1e9", "-"])


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.one_of(TOKENS, st.text(max_size=5)), max_size=30).map("".join))
def test_any_answer_is_survived(text: str):
    for box in parse_grounding(text, [SIZE, (7, 9)], question=text):
        wide, high = (SIZE, (7, 9))[box.image_index]
        assert 0 <= box.x1 <= box.x2 <= wide
        assert 0 <= box.y1 <= box.y2 <= high


@pytest.mark.parametrize(
    "text", ["<|det|>" * 5000, "<|det|>" + "[" * 200000, "<|det|>[" + " " * 200000 + "1" * 200000]
)
def test_long_answers_take_no_time(text: str):
    assert parse_grounding(text, [SIZE]) == []


# Which picture


@pytest.mark.parametrize(
    ("text", "question", "indices"),
    [
        (FULL, "", [0]),
        (FULL, "Locate the object of the same category in the second image.", [1]),
        (FULL, "The first image shows a mark. Find the same in the second image.", [1]),
        (FULL, "image_3: where?", [2]),
        (FULL, "找到第二张图片里的猫", [1]),
        (f"In the first image {FULL}, in the third picture {FULL} {FULL}", "image 2", [0, 2, 2]),
        (FULL, "in image 7 or the ninth image", [0]),
        ("<|ref|>the cat in photo 2<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", "", [1]),
    ],
)
def test_picture_of_a_box(text: str, question: str, indices: list[int]):
    sizes = [SIZE, (100, 100), (999, 999)]
    found = parse_grounding(text, sizes, question=question)
    assert [box.image_index for box in found] == indices
    if "cat<" in text:
        for box in found:
            assert corners(box) == to_pixels((10, 20, 300, 400), sizes[box.image_index])


def test_one_picture_is_always_the_first():
    [box] = parse_grounding(FULL, [SIZE], question="in the second image")
    assert box.image_index == 0


# Writing


def test_written_boxes_are_read_again():
    boxes = [(0, 0, 640, 480), (17, 31, 200, 300)]
    text = grounding_text("the red circle", boxes, SIZE)
    assert text.startswith("<|ref|>the red circle<|/ref|><|det|>[[0, 0, 999, 999], [")
    assert boxes_in(text) == [("the red circle", *box) for box in boxes]
    inside = text.partition("<|det|>")[2].partition("<|/det|>")[0]
    assert json.loads(inside)[0] == [0, 0, 999, 999]


def test_label_must_not_be_markup():
    with pytest.raises(ValueError, match=r"holds <\|/ref\|>: give the plain name"):
        grounding_text("a<|/ref|>", [(0, 0, 1, 1)], SIZE)


# Drawing


def test_boxes_are_drawn_inside_and_the_picture_stays():
    image = Image.new("RGB", SIZE, "white")
    boxes = [
        Box("a cat", 100, 100, 300, 300),
        Box("at the edge", 600, 0, 640, 480),
        Box("猫", 0, 470, 640, 480),
        Box("x" * 200, 5, 5, 6, 6),
        Box("", 0, 0, 0, 0),
        Box("other picture", 0, 0, 640, 480, image_index=1),
    ]
    sheet = draw_boxes(image, boxes[:1])
    assert sheet.size == SIZE
    assert image.getcolors() == [(640 * 480, (255, 255, 255))]
    drawn = (np.asarray(sheet) != 255).any(-1)
    assert drawn[100, 100:300].all()
    assert drawn[299, 100:300].all()
    assert not drawn[102:298, 102:298].any()
    assert not drawn[301:].any()
    everything = np.asarray(draw_boxes(image, boxes))
    first = np.asarray(draw_boxes(image, boxes, image_index=0))
    assert (everything != first).any()
    assert draw_boxes(Image.new("L", (1, 1)), boxes[:1]).size == (1, 1)
