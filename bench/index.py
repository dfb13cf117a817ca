"""Seconds that counting the rows of a new data set takes, before the first step of a run.

    python bench/index.py                        # 20,000 rows with pictures, one process and two
    python bench/index.py 300000 1000000 --processes 2 --pictures 0.5

Rows are JSON lines in the form of LLaVA with answers of 20 to 180 words; a share of them has one of
1,000 JPEG files. Prints a line of JSON for each number of rows and of processes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from PIL import Image

from vl2.core_count import available_cores
from vl2.data.config import DataConfig, SourceConfig
from vl2.data.index import RowIndex
from vl2.data.sources import open_source
from vl2.processing.processor import Processor

PICTURES = 1000
WORDS = (
    "a",
    "red",
    "pump",
    "stands",
    "beside",
    "the",
    "wall",
    "under",
    "two",
    "pipes",
    "and",
    "one",
)


def write_rows(folder: Path, rows: int, share: float) -> Path:
    """A file of rows, of which a share has a picture."""
    draw = random.Random(0)
    file = folder / f"{rows}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            picture = draw.random() < share
            mark = "<image>\n" if picture else ""
            answer = " ".join(draw.choices(WORDS, k=draw.randint(20, 180)))
            talk = [
                {"from": "human", "value": f"{mark}What is to be seen in number {number}?"},
                {"from": "gpt", "value": answer},
            ]
            shown = {"image": f"{number % PICTURES}.jpg"} if picture else {}
            out.write(json.dumps({"id": number, **shown, "conversations": talk}) + "\n")
    return file


def main() -> None:
    """Write the rows, count them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, default=[20_000])
    parser.add_argument("--processes", nargs="*", type=int, default=sorted({1, available_cores()}))
    parser.add_argument("--pictures", type=float, default=1.0, help="share of rows with one")
    given = parser.parse_args()
    processor = Processor.from_pretrained("nano")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(PICTURES):
            colour = (number % 256, 90, 200)
            Image.new("RGB", (300 + number, 400), colour).save(folder / f"{number}.jpg")
        for rows in given.rows:
            config = SourceConfig(path=str(write_rows(folder, rows, given.pictures)))
            for processes in given.processes:
                started = time.monotonic()
                source, data = open_source(config), DataConfig(sources=(config,))
                index = RowIndex.build(data, [source], processor, processes=processes)
                seconds = time.monotonic() - started
                figures = {
                    "rows": rows,
                    "processes": processes,
                    "pictures": given.pictures,
                    "mean_tokens": round(float(index.counts(0).mean()), 1),
                    "seconds": round(seconds, 1),
                    "rows_per_second": round(rows / seconds),
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
