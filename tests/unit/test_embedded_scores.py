"""Scores of answers about made pictures, and what the embedded model is examined on."""

import math

import pytest
from tests.unit.made import small_world

import vl2
from vl2.data.make.sample import plain
from vl2.recipes.embedded.exam import SKILLS, auroc, draw_items, examine, majority
from vl2.recipes.embedded.scores import score, stated

SIZE = (1000, 500)
TABLE = "| A | B |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def located(*boxes: tuple[int, int, int, int], label: str = "cup") -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{[list(box) for box in boxes]}<|/det|>"


@pytest.mark.parametrize(
    ("skill", "truth", "answer", "wanted"),
    [
        ("line.read", "a b\nc", "a  b c", {"right": 1, "cer": 0}),
        ("line.read", "abcd", "abxd", {"right": 0, "cer": 0.25}),
        ("line.read", "ab", "ab and much more", {"right": 0, "cer": 1}),
        ("line.read", "Total", "total", {"right": 0, "cer": 0.2}),
        ("shape.colour", "Dark blue.", "dark  blue", {"right": 1}),
        ("shape.there", "Yes", "No", {"right": 0}),
        ("chart.value", "57%", "about 59", {"right": 1}),
        ("chart.value", "57%", "61", {"right": 0}),
        ("chart.value", "1,250", "1250.0", {"right": 1}),
        ("chart.value", "-20", "20", {"right": 0}),
        ("chart.value", "12", "twelve", {"right": 0}),
        ("field.value", "12", "12.00", {"right": 0}),
        ("screen.buttons", "OK, Quit", "Quit, OK", {"right": 1, "precision": 1, "recall": 1}),
        ("screen.buttons", "OK, Quit", "OK", {"right": 0, "precision": 1, "recall": 0.5}),
        ("screen.buttons", "OK, Quit", "", {"right": 0, "precision": 0, "recall": 0}),
        ("table.markdown", TABLE, TABLE, {"right": 1, "teds": 1}),
        ("table.markdown", TABLE, TABLE.replace(" ", ""), {"right": 1, "teds": 1}),
        ("table.markdown", TABLE, TABLE.replace("4", "5"), {"right": 0, "teds": 0.9}),
        ("chart.table", TABLE, "no table", {"right": 0, "teds": 0.1}),
    ],
)
def test_each_kind_of_answer_has_its_rule(
    skill: str, truth: str, answer: str, wanted: dict[str, float]
) -> None:
    assert score(skill, truth, answer, SIZE) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (located((0, 0, 100, 100), (500, 500, 600, 600)), {"right": 1, "f1": 1, "named": 1}),
        (located((500, 500, 600, 600), (0, 0, 100, 60)), {"right": 1, "f1": 1, "named": 1}),
        (located((0, 0, 100, 40), (500, 500, 600, 600)), {"right": 0, "f1": 0.5, "named": 1}),
        (located((0, 0, 100, 100), (0, 0, 100, 100)), {"right": 0, "f1": 0.5, "named": 1}),
        (located((0, 0, 100, 100)), {"right": 0, "f1": 2 / 3, "named": 1}),
        ("There is no cup in the image.", {"right": 0, "f1": 0, "named": 0}),
    ],
)
def test_boxes_are_found_once_each(answer: str, wanted: dict[str, float]) -> None:
    truth = located((0, 0, 100, 100), (500, 500, 600, 600))
    assert score("thing.locate", truth, answer, SIZE) == pytest.approx(wanted)


def test_a_field_counts_by_its_value() -> None:
    truth = located((0, 0, 100, 100), label="12.50")
    wanted = {"right": 1, "f1": 0, "named": 1}
    assert score("field.value", truth, "12.50", SIZE) == pytest.approx(wanted)
    assert score("field.value", truth, located((0, 0, 99, 99), label="1"), SIZE)["right"] == 0


def test_a_description_is_judged_by_its_facts() -> None:
    truth = "Two black hearts, an orange circle and a blue cross."
    assert stated(truth) == ["two black hearts", "an orange circle", "a blue cross"]
    found = score("shape.describe", truth, "A blue cross and a red ring, two black hearts", SIZE)
    assert found == pytest.approx({"right": 0, "precision": 2 / 3, "recall": 2 / 3})


@pytest.mark.parametrize("name", SKILLS)
def test_true_answers_have_full_marks_and_others_have_not(name: str) -> None:
    skill = SKILLS[name]
    items = draw_items(skill, 4, 5, small_world())
    assert len(items) == 4
    for item in items:
        for figure in skill.aims:
            assert item.judge(item.truth)[figure] == pytest.approx(float(figure != "cer"))
        assert item.judge(item.truth)["right"] == 1.0
        assert item.judge("a wrong answer")["right"] == 0.0
    again = draw_items(skill, 4, 5, small_world())
    assert [item.ask for item in items] == [item.ask for item in again]
    assert items[0].made.image.tobytes() == again[0].made.image.tobytes()


def test_yes_and_no_are_right_equally_often() -> None:
    items = draw_items(SKILLS["yes or no"], 6, 5, small_world())
    assert [plain(item.ask.answer) for item in items] == ["Yes", "No"] * 3
    assert majority(items) == 0.5


def test_certainty_tells_right_from_wrong() -> None:
    assert auroc([0.9, 0.8, 0.3, 0.1], [True, True, False, False]) == 1.0
    assert auroc([0.9, 0.2, 0.5, 0.5], [True, False, False, True]) == 0.875
    assert math.isnan(auroc([0.5, 0.4], [True, True]))


def test_an_engine_is_examined() -> None:
    engine = vl2.Engine(vl2.load_model("nano"), vl2.Processor.from_pretrained("nano"))
    found = examine(engine, SKILLS["word"], draw_items(SKILLS["word"], 3, 5, small_world()))
    assert found["n"] == 3
    assert 0 < found["certainty"] <= 1
    assert 0 <= found["right"] <= 1
