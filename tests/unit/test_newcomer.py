"""The newcomer's set: its rules tell right from wrong, and its items keep to the rules."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from vl2.processing.grounding import grounding_text

SCRIPT = Path(__file__).parents[2] / "bench" / "newcomer.py"
SIZE = (1000, 500)


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPT.parent))  # where the script finds its modules
    spec = importlib.util.spec_from_file_location("bench_newcomer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def dozen(bench):
    """One picture of each kind, as a photograph where the kind has some."""
    return [bench.item(kind, 5, bench.Fonts()) for kind in bench.KINDS]


def right_answer(question: dict, size: tuple[int, int]) -> str:
    rule, answers = question["rule"], question["answers"]
    if rule == "boxes":
        return grounding_text("it", answers, size)
    if rule == "contains_all":
        return " and ".join(fact.split("|")[-1] for fact in answers)
    return f"It is {answers[0]}" if rule == "contains_any" else str(answers[0])


def wrong_answer(question: dict, size: tuple[int, int]) -> str:
    rule, answers = question["rule"], question["answers"]
    if rule == "boxes":  # one more than there are
        return grounding_text("it", [*answers, (0, 0, size[0], size[1])], size)
    if rule == "yes_no":
        return "no" if answers[0] == "yes" else "yes"
    if rule == "number":
        return str(answers[0] * 2 + 1)
    return "Perhaps a walrus"


def judged(bench, items) -> list[tuple[str, str, bool, bool]]:
    """Where a true answer is called wrong, or a wrong one right."""
    found = []
    for item in items:
        told, size = json.loads(json.dumps(item.told())), item.picture.size
        for asked in told["questions"]:
            true = bench.judge(asked, right_answer(asked, size), size)
            false = bench.judge(asked, wrong_answer(asked, size), size)
            found.append((item.name, asked["ask"], true, false))
    return [row for row in found if row[2:] != (True, False)]


def test_answers_agree_with_their_rules(bench, dozen):
    assert judged(bench, dozen) == []


def test_boxes_lie_inside_their_pictures(bench, dozen):
    assert len(dozen) == 12
    boxes = 0
    for item in [*dozen, *(bench.item("shapes", n, bench.Fonts()) for n in range(4, 25, 5))]:
        wide, high = item.picture.size
        for question in item.questions:
            for x1, y1, x2, y2 in question.answers if question.rule == "boxes" else ():
                assert 0 <= x1 < x2 <= wide
                assert 0 <= y1 < y2 <= high
                boxes += 1
    assert boxes > 4


def test_the_whole_set_is_as_it_was_ordered(bench):
    items = list(bench.items(bench.Fonts()))
    assert Counter(item.kind for item in items) == dict.fromkeys(bench.KINDS, 25)
    assert judged(bench, items) == []
    assert {len(item.questions) for item in items} <= {1, 2, 3}
    sides = [side for item in items for side in item.picture.size]
    assert max(sides) <= 1600
    assert all(max(item.picture.size) >= 300 for item in items)
    asked = [question for item in items for question in item.questions]
    truths = Counter(question.answers[0] for question in asked if question.rule == "yes_no")
    assert abs(truths["yes"] - truths["no"]) <= 0.1 * truths.total()
    skills = Counter(question.skill for question in asked)
    assert skills["reading"] <= skills.total() / 3
    assert 0.08 <= skills["absent"] / skills.total() <= 0.14
    assert {question.rule for question in asked} == {
        "exact", "number", "contains_all", "contains_any", "cer", "boxes", "yes_no",
    }  # fmt: skip


def test_the_folder_holds_what_its_sum_says(bench, tmp_path):
    first, again = (bench.write(tmp_path / name, bench.Fonts(), each=1) for name in ("a", "b"))
    assert first == again
    assert first["pictures"] == 12
    lines = (tmp_path / "a" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["picture"] for line in lines) == sorted(
        str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.png")
    )


def test_fonts_that_cannot_be_had_are_one_line(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["newcomer.py", "--out", str(tmp_path / "set")])
    assert bench.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "--plain-font" in printed.err


BOXES = [[100, 100, 300, 200], [600, 100, 800, 200]]


@pytest.mark.parametrize(
    ("rule", "answers", "text", "right"),
    [
        ("exact", ["Open", "it is open"], "  OPEN. ", True),
        ("exact", ["Open"], "<|ref|>open<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", True),
        ("exact", ["Open"], "Opened", False),
        ("number", [1896], "1,896.00", True),
        ("number", [3], "There are three of them.", True),
        ("number", [0], "There is none.", True),
        ("number", [3], "3 of 5", False),
        ("number", [3], "many", False),
        ("number", [100], "109", True),  # within the tenth that is allowed here
        ("number", [100], "111", False),
        ("contains_all", ["tent", "man|fellow"], "a Tent and a fellow", True),
        ("contains_all", ["tent", "man"], "a tent", False),
        ("contains_all", ["man"], "a manor", False),
        ("contains_all", ["5"], "12.5 km", False),
        ("contains_all", ["8:47"], "18:47", False),
        ("contains_any", ["no", "isn't"], "It isn\u2019t on the page.", True),
        ("contains_any", ["no"], "Nora", False),
        ("cer", ["The ferry leaves at seven."], "The ferry\nleaves at sevem.", True),
        ("cer", ["The ferry leaves at seven."], "the ferry leaves at sevem.", False),
        ("yes_no", ["yes"], "**Yes**, it is.", True),
        ("yes_no", ["no"], "Nothing", False),
        ("yes_no", ["no"], "", False),
        ("boxes", BOXES, grounding_text("a", BOXES[::-1], SIZE), True),
        ("boxes", BOXES, grounding_text("a", BOXES[:1], SIZE), False),
        ("boxes", BOXES, grounding_text("a", BOXES[:1] * 2, SIZE), False),
        ("boxes", BOXES[:1], grounding_text("a", [[100, 100, 190, 200]], SIZE), False),
        ("boxes", BOXES[:1], "It is at the left.", False),
    ],
)
def test_rules(bench, rule, answers, text, right):
    question = {"rule": rule, "answers": answers, "tolerance": 0.1 if answers == [100] else 0.0}
    assert bench.judge(question, text, SIZE) is right


def test_an_unknown_rule_is_named(bench):
    with pytest.raises(ValueError, match="'guess'"):
        bench.judge({"rule": "guess", "answers": []}, "x", SIZE)
