"""A set of questions about pictures, as a person has them who meets the model for the first time.

    python bench/newcomer.py --out FOLDER [--plain-font]

300 pictures, 25 of each of twelve kinds: a word, a line, a paragraph, a page, a receipt, a form, a
table, a chart, a screen, shapes, a sign, an object. Texts and drawings are the set's own; its
fonts are not among those of the training pictures. FOLDER gets pictures/*.png and items.jsonl: per
line `picture`, `kind`, `size`, `questions` of `ask`, `rule`, `answers`, `tolerance` and `skill`.
Prints one line of JSON: the counts, and a sha256 over all pixels and items, which is
`bench/newcomer.sha256` for the fonts that FOLDER/fonts gets from pinned Debian packages.
`--plain-font` draws with Pillow's own font instead: offline, with another sum.

`judge` says whether an answer is right:

    exact         one of the strings, without regard to case, outer spaces and a final full stop
    number        the answer names one number, within the share `tolerance` of the right one
    contains_all  every fact occurs as whole words; `|` stands between spellings of a fact
    contains_any  one of the words occurs
    cer           a transcription with a character error rate of at most 0.05
    boxes         every box is met with an IoU of at least 0.5, and there is no other box
    yes_no        the first word
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newcomer_set.fonts import Fonts, fetch
from newcomer_set.items import EACH, KINDS, Item, item
from rapidfuzz.distance import Levenshtein

from vl2.folders import check_folder
from vl2.processing.grounding import Box, iou, parse_grounding

MAX_CER = 0.05
MIN_IOU = 0.5
NUMBERS = {
    "zero": 0, "no": 0, "none": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13,
    "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
    "twenty": 20, "forty": 40,
}  # fmt: skip
_MARKUP = re.compile(r"<\|ref\|>|<\|/ref\|>|<\|det\|>.*?(?:<\|/det\|>|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d+(?:,\d{3})*(?:\.\d+)?(?!\d)")


def judge(question: Mapping[str, Any], answer_text: str, picture_size: tuple[int, int]) -> bool:
    """Whether an answer is right by the rule of its question (a line of `questions`)."""
    rule, answers = question["rule"], question["answers"]
    if rule == "boxes":
        return _boxes_met(answers, parse_grounding(answer_text, [picture_size]))
    text = " ".join(_MARKUP.sub(" ", answer_text).replace("\u2019", "'").split())
    if rule == "exact":
        return _bare(text) in {_bare(answer) for answer in answers}
    if rule == "number":
        return _number_met(answers[0], question["tolerance"], text)
    if rule == "contains_all":
        return all(any(_holds(text, way) for way in fact.split("|")) for fact in answers)
    if rule == "contains_any":
        return any(_holds(text, word) for word in answers)
    if rule == "cer":
        truth = " ".join(answers[0].split())
        return Levenshtein.distance(truth, text) <= MAX_CER * len(truth)
    if rule == "yes_no":
        return re.split(r"\W+", text.casefold().lstrip("\"'*( "))[0] == answers[0]
    raise ValueError(f"rule {rule!r} is not known: expected one of those that --help lists")


def _bare(text: str) -> str:
    return text.casefold().strip().removesuffix(".").rstrip()


def _holds(text: str, words: str) -> bool:
    plain, sought = (re.sub(r"(?<=\d),(?=\d{3})", "", part.casefold()) for part in (text, words))
    # 5 does not occur in 5.20, 12.5 or 10:5
    whole = rf"(?<!\w)(?<!\d[.:]){re.escape(sought)}(?!\w)(?![.:]\d)"
    return re.search(whole, plain) is not None


def _number_met(truth: float, tolerance: float, text: str) -> bool:
    found = {float(part.replace(",", "").replace("\u2212", "-")) for part in _NUMBER.findall(text)}
    if not found:
        found = {float(NUMBERS[word]) for word in re.findall(r"[a-z]+", text.casefold())
                 if word in NUMBERS}  # fmt: skip
    return len(found) == 1 and abs(found.pop() - truth) <= tolerance * abs(truth) + 1e-9


def _boxes_met(truth: Sequence[Sequence[float]], found: list[Box]) -> bool:
    """Each box has its own partner, sought along ways of exchange (the sets are small)."""
    wanted = [Box("", *_corners(box)) for box in truth]
    fits = [[n for n, box in enumerate(found) if iou(want, box) >= MIN_IOU] for want in wanted]
    partner: dict[int, int] = {}

    def placed(at: int, seen: set[int]) -> bool:
        for n in fits[at]:
            if n not in seen:
                seen.add(n)
                if n not in partner or placed(partner[n], seen):
                    partner[n] = at
                    return True
        return False

    return len(found) == len(wanted) and all(placed(at, set()) for at in range(len(wanted)))


def _corners(box: Sequence[float]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(round, box)
    return x1, y1, x2, y2


def items(fonts: Fonts, each: int = EACH) -> Iterable[Item]:
    """The items of the set, kind after kind."""
    return (item(kind, number, fonts) for kind in KINDS for number in range(each))


def write(folder: Path, fonts: Fonts, each: int = EACH) -> dict[str, Any]:
    """Draw the set into a folder; returns its counts and its sum."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    kinds, rules, skills, truths = Counter(), Counter(), Counter(), Counter()
    total = hashlib.sha256()
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        for drawn in items(fonts, each):
            told = json.dumps(drawn.told(), ensure_ascii=False)
            drawn.picture.save(folder / "pictures" / f"{drawn.name}.png")
            file.write(told + "\n")
            total.update(told.encode() + drawn.picture.tobytes())
            kinds[drawn.kind] += 1
            for question in drawn.questions:
                rules[question.rule] += 1
                skills[question.skill] += 1
                truths[question.answers[0]] += question.rule == "yes_no"
    return {
        "pictures": kinds.total(), "questions": rules.total(), "kinds": kinds, "rules": rules,
        "skills": skills, "yes": truths["yes"], "no": truths["no"], "sha256": total.hexdigest(),
    }  # fmt: skip


def main() -> int:
    """Draw the set; 2 where its fonts cannot be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets the set")
    parser.add_argument("--plain-font", action="store_true", help="draw with Pillow's own font")
    options = parser.parse_args()
    try:
        check_folder(options.out, "--out")
        fonts = Fonts() if options.plain_font else fetch(options.out / "fonts")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(write(options.out, fonts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
