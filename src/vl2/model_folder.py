"""Where a model is: the embedded one by its name, a local folder, or a hub id."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from vl2.folders import expand, names_something
from vl2.logs import get_logger
from vl2.presets import RELEASED

log = get_logger(__name__)

EMBEDDED = "nano"
"""Name of the model inside the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_DESCRIPTION = ["*.json"]
_WEIGHTS = ["*.json", "*.safetensors"]


def resolve(path: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model.

    Args:
        path: "nano", "tiny", "small" or "base", a local folder ("./tiny" for one of these names),
            or a hub id "organisation/name". What is on the hub is fetched into its own cache, only
            JSON and safetensors of it; `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are respected,
            and a cached copy serves when the hub is out of reach.
        weights: False fetches the description of a hub model without its weights.

    Raises:
        ValueError: nothing is there, or the hub does not give it.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"model is {path!r:.80}: expected {EMBEDDED}, a folder or a hub id as text"
        )
    name = str(path)
    if not name:
        raise ValueError(
            "the model's name is empty: give a folder, a hub id (organisation/name), "
            f"{EMBEDDED}, {', '.join(RELEASED)}"
        )
    if name == EMBEDDED:
        return embedded_folder()
    if path in RELEASED:
        return _fetch(RELEASED[name], _WEIGHTS if weights else _DESCRIPTION)
    folder = expand(path)
    if names_something(folder):
        if folder.is_dir():
            return folder
        raise ValueError(f"{name} is a file: give the folder that holds config.json")
    if isinstance(path, str) and _HUB_ID.fullmatch(path):
        return _fetch(path, _WEIGHTS if weights else _DESCRIPTION)
    raise ValueError(
        f"no model at {' '.join(name.split()):.300}: {_alike(name)}give a folder, a hub id "
        f"(organisation/name), {EMBEDDED}, {', '.join(RELEASED)}"
    )


def embedded_folder() -> Path:
    """Folder of the model inside the package.

    Raises:
        ValueError: this installation came without it.
    """
    folder = _assets()
    if not has_embedded():
        raise ValueError(
            f"the embedded model is not in this installation ({folder}): reinstall vl2"
        )
    return folder


def has_embedded() -> bool:
    """Whether this installation carries the embedded model."""
    return (_assets() / "config.json").is_file()


def no_model(folder: Path) -> str:
    """Why a folder without config.json is no model, and what to give instead, in one line."""
    if not folder.is_dir():
        return f"no folder {folder}: give a model folder"
    names = sorted(file.name for file in folder.iterdir())
    inner = [name for name in names if (folder / name / "config.json").is_file()]
    state = next((f for f in (folder, folder.parent.parent) if (f / "checkpoints").is_dir()), None)
    if not names:
        return f"{folder} is empty: give a model folder"
    if state is not None and (state / "config.yaml").is_file():
        if (state / "model" / "config.json").is_file():
            return f"{folder} is a training run: give its model folder, {state / 'model'}"
        return (
            f"{folder} is a training run that has not written a model yet: resume the run, or "
            f"write its newest state with `vl2 convert {state} FOLDER` and give that folder"
        )
    if inner:
        return f"no config.json in {folder}: give a model folder, such as {folder / inner[0]}"
    if "adapter_config.json" in names:
        return f"{folder} holds adapters, not a model: give the folder of their base model"
    if any(name.endswith(".gguf") for name in names):
        return (
            f"{folder} holds GGUF files, which are not supported: give one with safetensors files"
        )
    return f"no config.json in {folder}: give a model folder"


def _assets() -> Path:
    return Path(str(resources.files("vl2") / "assets" / EMBEDDED))


def _alike(name: str) -> str:
    """The model that a name is nearly that of, as a question."""
    plain = name.strip().strip("/").lower().removeprefix("https://huggingface.co/")
    names = {EMBEDDED: EMBEDDED, **{key: key for key in RELEASED}}
    names |= {
        part: hub_id for hub_id in RELEASED.values() for part in (hub_id, hub_id.split("/")[1])
    }
    found = get_close_matches(plain, names, n=1, cutoff=0.8)
    return f"did you mean {names[found[0]]}? " if found and names[found[0]] != name else ""


def _fetch(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a local model does not wait for it

    log.info("looking for %s in the hub's cache and on the hub", hub_id)
    try:
        # Folders inside a repository (other formats, demos) are never part of the model.
        found = snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:  # each transport has its own errors, with texts of many lines
        log.info("%s cannot be fetched", hub_id, exc_info=True)
        raise ValueError(
            f"no model at {hub_id}: there is no such folder, and {_hub_says(error)}; "
            f"{_alike(hub_id)}check the name and the network, or give a local folder"
        ) from None
    return Path(found)


def _hub_says(error: Exception) -> str:
    """Why the hub does not give a model, in a few words."""
    from huggingface_hub import constants, errors  # noqa: PLC0415 - see `_fetch`

    match error:
        case errors.GatedRepoError():
            return "the Hub gives it only to those whom its authors let in (set HF_TOKEN)"
        case errors.RepositoryNotFoundError():
            return "the Hub has none of this name, or a private one (set HF_TOKEN)"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() if (
            constants.HF_HUB_OFFLINE
        ):
            return "HF_HUB_OFFLINE keeps from asking the Hub"
        case errors.LocalEntryNotFoundError():
            return "the Hub cannot be reached"
        case _:
            return f"the Hub did not give it ({type(error).__name__})"
