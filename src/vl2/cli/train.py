"""`vl2 train`: run one stage of training, or say what it would do."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2.checkpoint.sizes import format_bytes
from vl2.cli.terminal import note
from vl2.failure import WorkError
from vl2.folders import check_file, expand, names_something

if TYPE_CHECKING:
    from vl2.train.config import TrainConfig


PROFILE_STEPS = 20
"""Batches that a routing profile is taken from, at most."""


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file of a run.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as optim.learning_rate=1e-4.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings and estimates without training.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="Write which experts the first steps' data uses, for lora.experts."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a model: one stage of a recipe, with any setting overridden.

    Rerun the same command to resume a run. Ctrl-C or SIGTERM stops it after the current step and
    saves its state (exit code 75). The trained model is written to RUN/model.
    """
    from vl2.logs import log_to_stderr
    from vl2.overrides import override
    from vl2.train.routing_profile import save_profile
    from vl2.train.setup import look_at_data, plan, run
    from vl2.train.setup import profile as profile_run
    from vl2.train.trainer import STOPPED, TrainingStopped

    rank = int(os.environ.get("RANK", "0"))
    log_to_stderr(logging.INFO if rank == 0 else logging.WARNING)
    with _one_line_per_node():
        config = override(find_recipe(recipe), settings or [])
    if dry_run:
        found = {**plan(config), "data": look_at_data(config)}
        _show_plan(config, found, as_json=as_json)
        return
    if profile is not None:
        check_file(profile, "--profile")
        save_profile(profile_run(config, min(config.steps, PROFILE_STEPS)), profile)
        print(profile)
        return
    try:
        with _one_line_per_run(rank):
            folder = run(config)
    except TrainingStopped as stopped:
        if rank == 0:
            note(str(stopped))
        raise typer.Exit(STOPPED) from None
    if rank == 0:
        print(json.dumps({"model": str(folder)}) if as_json else folder)


@contextmanager
def _one_line_per_node() -> Iterator[None]:
    """Before the ranks know each other: what is wrong with a command, the node's first one says."""
    try:
        yield
    except ValueError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise typer.Exit(2) from None
        raise


@contextmanager
def _one_line_per_run(rank: int) -> Iterator[None]:
    """What is wrong on all ranks, the main one says; what is wrong on one says which it is."""
    from vl2.checkpoint.peers import PeerError
    from vl2.parallel.mesh import SharedError, is_lost_connection

    try:
        yield
    except (SharedError, PeerError):
        if rank:
            raise typer.Exit(2) from None
        raise
    except (ValueError, WorkError) as error:
        if rank:
            kind = WorkError if isinstance(error, WorkError) else ValueError
            raise kind(f"rank {rank}: {error}") from None
        raise
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ConnectionError(
            f"rank {rank} lost another rank: see the message of that rank"
        ) from None


def find_recipe(name: str) -> TrainConfig:
    """A recipe by its name, or the settings in a YAML file.

    Raises:
        ValueError: there is no such recipe or file.
    """
    from vl2.overrides import read_yaml
    from vl2.recipes.stages import RECIPES
    from vl2.train.config import TrainConfig
    from vl2.train.origin import SETTINGS

    if name in RECIPES:
        return RECIPES[name]()
    path = expand(name)
    if names_something(path):
        if path.is_dir() and (path / SETTINGS).is_file():
            path = path / SETTINGS
        if path.is_file():
            return read_yaml(path, TrainConfig)
        raise ValueError(
            f"{name} is a folder without {SETTINGS}: give a recipe, a YAML file or a run's folder; "
            "a model to start from is init.model=FOLDER"
        )
    raise ValueError(f"no recipe and no file {name!r}: recipes are {', '.join(RECIPES)}")


def _show_plan(config: TrainConfig, found: dict[str, Any], *, as_json: bool) -> None:
    from vl2.overrides import to_mapping, to_yaml

    if as_json:
        print(json.dumps({"config": to_mapping(config), **found}, indent=2))
        return
    print(to_yaml(config))
    for name, rows in found["data"].items():
        print(f"# data {name}: " + ", ".join(f"{k} {v:,}" for k, v in rows.items()))
    counts = found["parameters"]
    print(f"# trained {counts['trained']:,}, frozen {counts['frozen']:,}")
    for kind, parts in found["parts"].items():
        print(f"#   {kind}: " + (", ".join(f"{k} {v:,}" for k, v in parts.items()) or "nothing"))
    memory = {k: format_bytes(v) for k, v in found["memory_bytes"].items()}
    print("# memory, estimated: " + ", ".join(f"{k} {v}" for k, v in memory.items()))
    print(
        f"# {found['tokens_per_step']:,} tokens and {found['flops_per_step']:.3g} FLOPs per step, "
        f"{found['tokens_of_the_run']:,} tokens in all"
    )
