"""Made pictures as files: PNGs and JSON lines in the form that ms-swift and vl2 read.

A row has `messages` in which `<ref-object>` and `<bbox>` stand for the entries of `objects`, in
their order; boxes are pixels of the picture.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vl2.data.make.fonts import Split
from vl2.data.make.kinds import make
from vl2.data.make.sample import Made, Text
from vl2.data.make.world import world

ROWS = "rows.jsonl"
CHUNK = 16  # rows that a process draws at a time
SHEET_COLOURS = {
    "line": "red",
    "word": "blue",
    "thing": "magenta",
    "cell": "orange",
    "block": "cyan",
}


def write(kind: str, count: int, seed: int, folder: Path, split: Split, jobs: int) -> Iterator[int]:
    """Draw `count` rows into `folder`; yields how many are there, after each.

    Pictures are written first and the rows last, so that a folder with `rows.jsonl` is complete.

    Raises:
        ValueError: an unknown kind or split, or the folder holds rows already.
    """
    target = folder / ROWS
    if target.exists():
        raise ValueError(f"{target} exists: give another folder, or remove it")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    tasks = [(kind, seed, row, split, folder) for row in range(count)]
    unfinished = target.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file, closing(_drawn(tasks, jobs)) as rows:
        for done, row in enumerate(rows, 1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield done
    unfinished.rename(target)


Task = tuple[str, int, int, Split, Path]


def _drawn(tasks: Sequence[Task], jobs: int) -> Generator[dict[str, Any]]:
    """The rows in their order, drawn by `jobs` processes."""
    if jobs == 1:
        yield from map(_draw, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_draw, tasks, CHUNK)


def _draw(task: Task) -> dict[str, Any]:
    """Draw one picture, write it, and return its row."""
    kind, seed, row, split, folder = task
    made = make(kind, seed, row, world(split))
    name = f"pictures/{kind}-{row:06}.png"
    made.image.save(folder / name, compress_level=1)
    return {"id": f"{kind}-{seed}-{row}", **to_row(made, name)}


def to_row(made: Made, picture: str) -> dict[str, Any]:
    """A made picture as a row; all questions are turns of one conversation."""
    refs: list[str] = []
    boxes: list[list[int]] = []
    messages = []
    for number, ask in enumerate(made.asks):
        lead = "" if number else "<image>\n"
        messages.append({"role": "user", "content": lead + _marked(ask.question, refs, boxes)})
        messages.append({"role": "assistant", "content": _marked(ask.answer, refs, boxes)})
    return {
        "messages": messages,
        "images": [picture],
        "objects": {"ref": refs, "bbox": boxes},
        "skills": [ask.skill for ask in made.asks],
        "facts": made.facts,
    }


def _marked(text: Text, refs: list[str], boxes: list[list[int]]) -> str:
    """Text with a mark for each name and box, which are appended to the lists."""
    parts = []
    for part in text:
        if isinstance(part, str):
            parts.append(part)
            continue
        if part.label:
            refs.append(part.label)
            parts.append("<ref-object>")
        boxes.extend(list(box) for box in part.boxes)
        parts.append("<bbox>" * len(part.boxes))
    return "".join(parts)


def contact_sheet(made: Iterable[Made], columns: int = 4, cell: int = 420) -> Image.Image:
    """Pictures side by side with the boxes of their marks, to be looked at."""
    cells = []
    for one in made:
        picture = one.image.copy()
        draw = ImageDraw.Draw(picture)
        for mark in one.marks:
            if mark.kind != "char":
                draw.rectangle(mark.box, outline=SHEET_COLOURS[mark.kind])
        picture.thumbnail((cell, cell))
        cells.append(picture)
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (cell + 6), rows * (cell + 6)), (128, 128, 128))
    for n, picture in enumerate(cells):
        sheet.paste(picture, (n % columns * (cell + 6), n // columns * (cell + 6)))
    return sheet
