"""What a resumed run must have in common with its saved states: everything but `MAY_CHANGE`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vl2.checkpoint.commit import newest_state
from vl2.checkpoint.dcp import read_extra
from vl2.checkpoint.lora_files import CONFIG
from vl2.data.sources import Source
from vl2.folders import check_folder
from vl2.overrides import to_mapping
from vl2.processing.processor import Processor
from vl2.train.config import InitConfig, TrainConfig
from vl2.train.origin import (
    ADAPTER,
    CHECKPOINTS,
    EXPORTED,
    HISTORY,
    SETTINGS,
    RunOrigin,
    weights_digest,
)

MAY_CHANGE = (
    *("name", "out", "steps", "log_every", "tensorboard"),
    *("guard.*", "checkpoint.*", "parallel.*"),
    *("compute.device", "compute.compile", "compute.recompute*", "compute.threads"),
    "compute.deterministic",
    *("optim.learning_rate", "optim.vision_scale", "optim.schedule"),
    *("optim.warmup", "optim.horizon", "optim.decay", "optim.floor"),
    *("data.micro_batch", "data.workers", "data.prefetch", "data.max_bad*", "data.bad_rate_window"),
    "data.sources.*.image_root",
)
"""Settings that may differ when a run resumes. Every other setting decides the numbers."""

BY_CONTENT = ("init.model", "init.preset", "init.tokenizer", "lora.experts", "data.sources.*.path")
"""Settings that name a file or a model, which may move: what they name must stay."""

ROWS = "rows of data.sources"
LATER = (ROWS, "init.model", "init.preset")
"""Contents that are known when rows are counted, and when weights are fetched."""

PLACES = {
    **dict.fromkeys((CHECKPOINTS, EXPORTED, ADAPTER, "index", "tensorboard"), "folder"),
    **dict.fromkeys((SETTINGS, "metrics.jsonl", "quarantine.jsonl", "tensors.json"), "file"),
}
"""What a run writes into its folder."""

SHOWN = 6
"""Differences that a refusal names."""


def identity(config: TrainConfig, origin: RunOrigin, sources: Sequence[Source]) -> dict[str, Any]:
    """What decides the numbers: settings, and contents of files as far as they are there."""
    settings = {n: value for n, value in _flat(to_mapping(config)) if not _is_free(n)}
    names = {f"data.sources.{n}.name": source.name for n, source in enumerate(sources)}
    given = config.init.tokenizer or config.init.model
    found = {**settings, **names, "init.tokenizer": content(given, _saved(origin.processor))}
    for number, (each, source) in enumerate(zip(config.data.sources, sources, strict=True)):
        found[f"data.sources.{number}.path"] = content(each.path, [source.fingerprint()])
    if config.lora is not None and (path := config.lora.experts) is not None:
        found["lora.experts"] = content(path, [Path(path).read_text(encoding="utf-8")])
    return {**found, **start_identity(config.init, origin)}


def start_identity(init: InitConfig, origin: RunOrigin) -> dict[str, Any]:
    """What identifies the model that a run starts from; empty while its weights are not fetched."""
    if origin.folder is not None and not any(origin.folder.glob("*.safetensors")):
        return {}
    name = "init.preset" if init.model is None else "init.model"
    told = [json.dumps(origin.config.to_dict(), sort_keys=True), weights_digest(origin)]
    return {name: content(init.preset or init.model, told)}


def content(shown: str | None, parts: Iterable[str]) -> dict[str, Any]:
    """Something that is compared by its content, and shown by the name under which it was given."""
    return {"given": shown, "sha256": hashlib.sha256(json.dumps([*parts]).encode()).hexdigest()}


def check_kept(root: Path, known: Mapping[str, Any], *, steps: int | None = None) -> None:
    """Refuse a run that cannot resume from the states below `root`. Nothing is written or locked.

    Raises:
        ValueError: see `check_same`, more than `steps` are done already, or the states of a run
            that has finished are gone.
        CheckpointError: there are states, and all are damaged.
    """
    if (found := newest_state(root)) is not None:
        check_same(found, known)
        if steps is not None and (done := read_extra(found)["step"]) > steps:
            raise ValueError(
                f"steps is {steps} but {root} holds a run that has done {done}: give steps={done} "
                "or more, or begin another run (out=FOLDER)"
            )
        return
    for left in (root.parent / EXPORTED / HISTORY, root.parent / ADAPTER / CONFIG):
        if left.is_file():
            raise ValueError(
                f"{root} holds no saved state, but {left.parent} is the {left.parent.name} of a "
                "finished run, which would start again at step 0 and overwrite it: restore the "
                f"states, or begin another run (out=FOLDER, or remove {root.parent})"
            )


def check_places(folder: Path) -> None:
    """Refuse a run folder in which something stands in the way of what a run writes.

    Raises:
        ValueError: a folder in the place of a file, a file in that of a folder, or a dead link.
    """
    check_folder(folder, "out")
    for name, kind in PLACES.items():
        path = folder / name
        fits = path.is_dir() if kind == "folder" else path.is_file()
        if not fits and os.path.lexists(path):
            raise ValueError(
                f"{path} is not a {kind}, as a run writes it: remove it, or begin another run "
                "(out=FOLDER)"
            )


def check_same(found: Path, known: Mapping[str, Any]) -> None:
    """Refuse to resume from a saved step of another run, before anything is touched.

    Args:
        found: the step.
        known: of this run; what is known later is compared as far as it is there.

    Raises:
        ValueError: what differs, by name and with both values.
    """
    kept = read_extra(found)["fingerprint"]
    names = [*known, *(name for name in kept if name not in known and name not in LATER)]
    told = [text for n in names if (text := _difference(n, kept.get(n), known.get(n)))]
    if not told:
        return
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    raise ValueError(
        f"{found.parent} holds a run with other settings: {'; '.join(told[:SHOWN])}{more}; "
        "resume with the settings that it was started with, or start another run (out=FOLDER)"
    )


def _difference(name: str, kept: Any, now: Any) -> str:
    was, given = (v["given"] if _is_content(v) else v for v in (kept, now))
    if _is_content(kept) and _is_content(now):
        if kept["sha256"] == now["sha256"]:
            return ""
        return f"{name} was {was!r}, is {given!r}, with another content"
    return "" if kept == now else f"{name} was {was!r}, is {given!r}"


def _is_content(value: Any) -> bool:
    return isinstance(value, dict)


def _is_free(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in MAY_CHANGE + BY_CONTENT)


def _flat(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name; a list of plain values is one."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, list) and any(isinstance(part, dict) for part in tree):
        parts = enumerate(tree)
    else:
        yield place, tree
        return
    for key, value in parts:
        yield from _flat(value, f"{place}.{key}" if place else str(key))


def _saved(processor: Processor) -> list[str]:
    """Tokenizer and settings as they are saved."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return [file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir())]
