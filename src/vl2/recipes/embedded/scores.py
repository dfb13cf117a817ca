"""How right an answer about a made picture is.

The rule follows from the question's skill and from the true answer. Every rule gives `right`, 0 to
1; reading, places, tables and descriptions give further figures. TEDS is that of
docling-metrics-table, edit distances are rapidfuzz's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence

from docling_metrics_table import TableMetric, TableMetricHTMLInputSample
from rapidfuzz.distance import Levenshtein

from vl2.geometry import Resolution
from vl2.processing.grounding import Box, iou, parse_grounding

Figures = dict[str, float]

OVERLAP = 0.5
"""Least intersection over union of a box that is found."""
CHART_TOLERANCE = 0.05
LISTS = ("names", "headings", "buttons", "entries", "on", "list", "items")
_MARKUP = re.compile(r"<\|det\|>.*?(?:<\|/det\|>|\Z)|<\|/?ref\|>", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def score(skill: str, truth: str, answer: str, size: Resolution) -> Figures:
    """Compare an answer with the true one, both as the model writes them.

    Args:
        skill: what the question takes, such as "line.read".
        truth: the true answer.
        answer: the answer to be judged.
        size: width and height of the picture.
    """
    verb = skill.partition(".")[2]
    rule = RULES.get(skill) or RULES.get(verb)
    if rule is not None:
        return rule(truth, answer)
    wanted = parse_grounding(truth, [size])
    if wanted:
        figures = _places(wanted, parse_grounding(answer, [size]), words(truth), words(answer))
        by_value = skill.startswith("field.")  # wherever its place was shown
        return {**figures, "right": figures["named"]} if by_value else figures
    if verb in LISTS:
        return _facts(words(truth).split(", "), words(answer).split(", "))
    return {"right": float(_bare(truth) == _bare(answer))}


def words(text: str) -> str:
    """An answer without its places."""
    return _MARKUP.sub("", text).strip()


def _bare(text: str) -> str:
    """What must agree where wording is free: words, without case, spaces and the last full stop."""
    return " ".join(words(text).casefold().split()).removesuffix(".")


def _read(truth: str, answer: str) -> Figures:
    wanted, found = (" ".join(words(text).split()) for text in (truth, answer))
    errors = Levenshtein.distance(wanted, found) / max(1, len(wanted))
    return {"right": float(wanted == found), "cer": min(1.0, errors)}


def _places(wanted: Sequence[Box], found: Sequence[Box], truth: str, answer: str) -> Figures:
    """F1 of boxes, each found at most once; right if none is missed, invented or misnamed."""
    left, hits = list(found), 0
    for box in wanted:
        best = max(left, key=lambda other: iou(box, other), default=None)
        if best is not None and iou(box, best) >= OVERLAP:
            left.remove(best)
            hits += 1
    f1 = 2 * hits / (len(wanted) + len(found))
    return {"right": float(f1 == 1.0), "f1": f1, "named": float(_bare(truth) == _bare(answer))}


def _value(truth: str, answer: str) -> Figures:
    """The first number within 5 %."""
    wanted, found = (_number(words(text)) for text in (truth, answer))
    if wanted is None or found is None:
        return {"right": float(_bare(truth) == _bare(answer))}
    return {"right": float(abs(found - wanted) <= CHART_TOLERANCE * abs(wanted))}


def _number(text: str) -> float | None:
    found = _NUMBER.search(text)
    return float(found.group().replace(",", "")) if found else None


def _described(truth: str, answer: str) -> Figures:
    return _facts(stated(truth), stated(answer))


def stated(text: str) -> list[str]:
    """The facts of a description, in the order in which they are stated."""
    clauses = re.split(r",\s*|\.\s+|\s+and\s+|\n", words(text).strip().removesuffix("."))
    return [clause for clause in map(_bare, clauses) if clause]


def _facts(wanted: Sequence[str], found: Sequence[str]) -> Figures:
    """Shares of what is stated that is true, and of what is true that is stated."""
    true, said = ({_bare(fact) for fact in facts if _bare(fact)} for facts in (wanted, found))
    hits = len(true & said)
    return {
        "right": float(true == said),
        "precision": hits / len(said) if said else float(not true),
        "recall": hits / len(true) if true else float(not said),
    }


def _table(truth: str, answer: str) -> Figures:
    wanted, found = _html(truth), _html(answer)
    sample = TableMetricHTMLInputSample(id="table", html_a=wanted, html_b=found)
    judged = TableMetric().evaluate_sample(sample).teds
    assert judged is not None  # one of the metrics that are computed by default
    return {"right": float(wanted == found), "teds": judged.teds}


def _html(markdown: str) -> str:
    """A Markdown table as HTML; lines that are no rows are left out."""
    lines = [line.strip() for line in words(markdown).splitlines()]
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    kept = [row for row in rows if not all(set(cell.strip()) <= set(":-") for cell in row)]
    cells = ("".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row) for row in kept)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


RULES: Mapping[str, Callable[[str, str], Figures]] = {
    "read": _read,
    "chart.value": _value,
    "describe": _described,
    "markdown": _table,
    "chart.table": _table,
}
"""Skills, or their second halves, whose answers are judged in a way of their own."""
