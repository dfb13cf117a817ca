"""How well the embedded model answers about pictures that it was not trained on.

    python bench/nano.py [--model nano] [--pictures 400] [--split heldout] [--quantization int8]

Scenes come from seeds, fonts and backgrounds that training never saw (`--split train` draws with
the training ones, still with new seeds). Every question is asked alone. Prints one JSON line per
kind: exact match for reading, counting, colour, shape and position; for locating one object the
share of boxes with an intersection over union of at least 0.5.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

import vl2
from vl2.benchmarks.timing import seconds, take_turns
from vl2.data.synthetic import Question, ask, draw_scene, fetch_fonts, font_split
from vl2.model.quantized import SCHEMES
from vl2.processing.grounding import iou, parse_grounding
from vl2.recipes.nano import scene_recipe

SEED = 77_000_000
"""Far from the seeds of the recipe's shards."""
EXACT = ("read", "count", "colour", "shape", "position")
SCENES = {"read": "text", "count": "count", "locate": "shapes"}
"""Which kind of scene a kind of question is asked about; the rest comes with those."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question about one picture."""

    image: Image.Image
    question: Question
    objects: int


def items(kind: str, pictures: int, split: str) -> Iterator[Item]:
    """Questions about `pictures` new scenes of a kind, at most one of each kind of question."""
    fonts = tuple(font_split(fetch_fonts(), split))
    recipe = replace(scene_recipe(fonts, split), kinds=((kind, 1.0),))
    rng = np.random.default_rng((SEED, ("text", "shapes", "count").index(kind)))
    for _ in range(pictures):
        scene = draw_scene(rng, recipe=recipe)
        seen = set()
        for question in ask(scene, rng):
            if question.kind not in seen:
                seen.add(question.kind)
                yield Item(image=scene.image, question=question, objects=len(scene.objects))


def is_right(item: Item, answer: str) -> bool:
    """Exact text, or for one located object a box that overlaps by half."""
    if item.question.kind != "locate":
        return answer.strip() == item.question.answer
    wanted = parse_grounding(item.question.answer, [item.image.size])
    found = parse_grounding(answer, [item.image.size])
    if not wanted:
        return not found
    return len(found) == 1 and iou(wanted[0], found[0]) >= 0.5


def wanted_kind(item: Item, scene: str) -> str | None:
    """The figure that an item counts for; None leaves it out (captions, several boxes)."""
    kind = item.question.kind
    if kind == "locate":
        return kind if scene == "shapes" and item.question.answer.count("], [") == 0 else None
    return kind if kind in EXACT and SCENES.get(kind, "shapes") == scene else None


def measure(engine: vl2.Engine, pictures: int, split: str) -> dict[str, list[bool]]:
    """Right or wrong for every question, by kind; locating also by the number of objects."""
    results: dict[str, list[bool]] = {}
    for scene in ("text", "shapes", "count"):
        chosen = [(wanted_kind(item, scene), item) for item in items(scene, pictures, split)]
        kept = [(kind, item) for kind, item in chosen if kind]
        answers = answer(engine, [item for _, item in kept])
        for (kind, item), text in zip(kept, answers, strict=True):
            right = is_right(item, text)
            results.setdefault(kind, []).append(right)
            if kind == "locate":
                results.setdefault(f"locate among {item.objects}", []).append(right)
    return results


def prompt(engine: vl2.Engine, item: Item) -> vl2.ModelInputs:
    """The item's question alone; on the trusted path, because it may hold `<|ref|>`."""
    turns = [
        {"role": "<|User|>", "content": f"<image>\n{item.question.text}"},
        {"role": "<|Assistant|>", "content": ""},
    ]
    return engine.processor.from_conversation(turns, [item.image])


def answer(engine: vl2.Engine, asked: Sequence[Item]) -> list[str]:
    """The model's greedy answers."""
    params = vl2.SamplingParams(max_tokens=64)
    inputs = [prompt(engine, item) for item in asked]
    return [completion.text for completion in engine.generate(inputs, params)]


def first_token_seconds(engine: vl2.Engine) -> float:
    """From a picture to the first token of the answer, the best of five, with a warm model.

    Nothing is reused from one time to the next.
    """
    apart = vl2.EngineConfig(enable_prefix_caching=False, vision_cache_gib=0.0)
    engine = vl2.Engine(engine.model, engine.processor, apart)
    [item, *_] = items("shapes", 1, "train")
    params = vl2.SamplingParams(max_tokens=1)

    def timer(turn: int) -> float:
        return seconds(lambda: engine.generate([prompt(engine, item)], params))

    [taken] = take_turns({"": timer}, 5).values()
    return min(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the embedded model on new scenes.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=400, help="scenes of each kind")
    parser.add_argument("--split", choices=("heldout", "train"), default="heldout")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=SCHEMES, help="quantise on loading")
    arguments = parser.parse_args()
    try:
        model = vl2.load_model(
            arguments.model, arguments.dtype, "cpu", quantization=arguments.quantization
        )
    except ValueError as error:
        parser.error(str(error))
    engine = vl2.Engine(
        model, vl2.Processor.from_pretrained(arguments.model), vl2.EngineConfig(max_num_seqs=32)
    )
    with torch.inference_mode():
        results = measure(engine, arguments.pictures, arguments.split)
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads()}
    row = {"first_token_seconds": round(first_token_seconds(engine), 3), **machine}
    print(json.dumps(row))
    for kind, right in sorted(results.items()):
        share = sum(right) / len(right)
        row = {"kind": kind, "split": arguments.split, "n": len(right), "accuracy": round(share, 4)}
        print(json.dumps({**row, "quantization": arguments.quantization}))


if __name__ == "__main__":
    main()
