"""Teach the embedded model a new object from 20 labelled pictures: python examples/finetune.py."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import vl2
from vl2.data.synthetic.lesson import OBJECT, draw_lesson
from vl2.overrides import override
from vl2.processing.grounding import iou
from vl2.recipes.stages import RECIPES
from vl2.train.setup import run

QUESTION = {"type": "grounding", "query": OBJECT}


def score(model: str | Path, labels: Path) -> float:
    """Share of the labelled pictures on which the object is found, overlapping by half."""
    engine = vl2.Engine(vl2.load_model(model), vl2.Processor.from_pretrained(model))
    rows, right = json.loads(labels.read_text()), 0
    for row in rows:
        content = [{"type": "image", "image": labels.parent / row["image"]}, QUESTION]
        [answer] = engine.generate([[{"role": "user", "content": content}]])
        truth = vl2.Box(OBJECT, *row["objects"][0]["box"])
        right += len(answer.boxes) == 1 and iou(answer.boxes[0], truth) >= 0.5
    return right / len(rows)


def main(steps: str = "80", pictures: str = "20") -> None:
    """Draw pictures, tune adapters on some, and print what others score before and after."""
    with TemporaryDirectory() as folder:
        lesson, exam = (draw_lesson(Path(folder) / str(n), n, seed=n) for n in (int(pictures), 50))
        settings = [f"out={folder}/run", f"steps={steps}", f"data.sources.0.path={lesson}"]
        tuned = run(override(RECIPES["nano_lora"](), settings))
        print(json.dumps({"before": score("nano", exam), "after": score(tuned, exam)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
