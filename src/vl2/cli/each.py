"""`vl2 ask --each`: one question about many pictures, the model loaded once, one answer a file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vl2.cli.answering import Question, answer_fields
from vl2.cli.pictures import SUFFIXES, open_picture
from vl2.cli.terminal import note, progress_bar, show, show_remarks
from vl2.processing.plain_text import plain_text

if TYPE_CHECKING:
    from vl2.engine.config import Completion
    from vl2.engine.engine import Engine

COLUMNS = ("picture", "text", "boxes", "finish_reason", "error")
"""Columns of `--csv`; boxes are JSON."""
MOST_OPEN = 32
"""Pictures in memory at a time; one takes up to 18 MB as tiles."""


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Every picture that is meant, once: files as given, of folders all pictures in them by name.

    Raises:
        ValueError: a folder without pictures, or no path at all.
    """
    found: list[Path] = []
    for path in paths:
        held = [path]
        if path.is_dir():
            held = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not held:
                raise ValueError(f"{path}: no pictures in this folder or in the folders below it")
        found += held
    if not found:
        raise ValueError("--each needs pictures or folders: name them before the question")
    return list(dict.fromkeys(found))


def ask_each(engine: Engine, question: Question, files: Sequence[Path], form: str) -> None:
    """Print one answer per file, in order; a file that fails is told at the end.

    Args:
        engine: answers as many files at a time as it has places.
        question: the same for every file.
        files: pictures.
        form: "text", "jsonl" or "csv".

    Raises:
        typer.Exit: code 1, some files have no answer.
    """
    write = {"text": _write_text, "jsonl": _write_json, "csv": _write_row}[form]
    if form == "csv":
        show(_csv_line(COLUMNS))
    failed: list[tuple[Path, str]] = []
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(files))
        for done, (file, answer) in enumerate(_answers(engine, question, files), start=1):
            if isinstance(answer, str):
                failed.append((file, answer))
            write(file, answer)
            bar.update(task, completed=done)
            if bar.disable and (done % _group(engine) == 0 or done == len(files)):
                note(f"{done} of {len(files)} pictures")
    if failed:
        note(f"{len(failed)} of {len(files)} pictures failed:")
        for file, why in failed:
            note(f"  {file}: {why}")
        raise typer.Exit(1)


def _answers(
    engine: Engine, question: Question, files: Sequence[Path]
) -> Iterator[tuple[Path, Completion | str]]:
    """Every file with its answer, or with why there is none."""
    size = _group(engine)
    for start in range(0, len(files), size):
        refused: dict[Path, str] = {}
        inputs = []
        for file in files[start : start + size]:
            try:
                inputs.append(
                    question.inputs(engine, [open_picture(file, question.policy)], [file])
                )
            except (ValueError, OSError) as error:
                refused[file] = str(error).removeprefix(f"{file}: ")
        answers = iter(engine.generate(inputs, question.params))
        for file in files[start : start + size]:
            if file in refused:
                yield file, refused[file]
                continue
            answer = next(answers)
            yield file, answer if answer.error is None else answer.error


def _group(engine: Engine) -> int:
    """Files that are opened and answered together."""
    return min(engine.max_num_seqs, MOST_OPEN)


def _write_text(file: Path, answer: Completion | str) -> None:
    if isinstance(answer, str):
        return
    text = plain_text(answer.text) if sys.stdout.isatty() else answer.text
    show(f"{file}: {text}\n")
    show_remarks(answer, str(file))


def _write_json(file: Path, answer: Completion | str) -> None:
    found = {"error": answer} if isinstance(answer, str) else answer_fields(answer)
    show(json.dumps({"picture": str(file), **found}, ensure_ascii=False) + "\n")


def _write_row(file: Path, answer: Completion | str) -> None:
    found: dict[str, Any] = {"error": answer} if isinstance(answer, str) else answer_fields(answer)
    if "boxes" in found:
        found["boxes"] = json.dumps(found["boxes"], ensure_ascii=False)
    show(_csv_line([str(file), *(found.get(column, "") for column in COLUMNS[1:])]))


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
