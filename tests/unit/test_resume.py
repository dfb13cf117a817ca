"""Which settings may change when a run goes on, and what is said of the others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from vl2.checkpoint.commit import write_step
from vl2.checkpoint.manifest import write_file
from vl2.data.sources import open_source
from vl2.overrides import override, to_mapping
from vl2.recipes.stages import RECIPES
from vl2.train import metrics
from vl2.train.config import TrainConfig
from vl2.train.origin import RunOrigin, find_origin, write_history
from vl2.train.resume import BY_CONTENT, MAY_CHANGE, check_kept, check_places, identity
from vl2.train.setup import plan, prepare

WORDS = ("lora.rank=4", "data.sources.0.rows=8", "optim.horizon=9", "balance.loss_weight=0.5")
CONFIG = override(RECIPES["debug_align"](), WORDS)


@pytest.fixture(scope="module")
def origin() -> RunOrigin:
    return find_origin(CONFIG)


def identity_of(config: TrainConfig, origin: RunOrigin) -> dict[str, Any]:
    return identity(config, origin, [open_source(source) for source in config.data.sources])


@pytest.fixture
def root(tmp_path: Path, origin: RunOrigin) -> Path:
    """A folder with the state of a run of `CONFIG`."""
    keep(tmp_path, identity_of(CONFIG, origin))
    return tmp_path


def keep(root: Path, known: dict[str, Any]) -> None:
    data = json.dumps({"fingerprint": known, "step": 3}).encode()
    write_step(root, 3, lambda folder: write_file(folder / "extra.json", data))


def flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {place: tree}
    return {k: v for n, t in tree.items() for k, v in flat(t, f"{place}.{n}".strip(".")).items()}


def other_values(config: TrainConfig) -> dict[str, Any]:
    """Every plain setting with a value that it does not have."""
    found = {}
    for name, value in flat(to_mapping(config)).items():
        if isinstance(value, bool):
            found[name] = not value
        elif isinstance(value, float):
            found[name] = value / 2 or 0.5
        elif isinstance(value, int):
            found[name] = value // 2 if value > 1 else value + 2
    return found


OTHER = other_values(CONFIG)


def changed(name: str, value: Any) -> TrainConfig:
    parts = name.split(".")
    if len(parts) == 1:
        return replace(CONFIG, **{name: value})
    section, key = parts
    beside = {"schedule": "constant"} if key == "decay" else {}  # it belongs to that one alone
    return replace(CONFIG, **{section: replace(getattr(CONFIG, section), **beside, **{key: value})})


def test_the_same_settings_go_on(root: Path, origin: RunOrigin):
    check_kept(root, identity_of(CONFIG, origin))
    check_kept(root / "none", {})


def test_fewer_steps_than_are_done_are_refused(root: Path, origin: RunOrigin):
    check_kept(root, identity_of(CONFIG, origin), steps=3)
    with pytest.raises(ValueError, match=r"steps is 2 but .* has done 3: give steps=3 or more"):
        check_kept(root, identity_of(CONFIG, origin), steps=2)


def test_a_finished_run_without_its_states_is_not_overwritten(tmp_path: Path):
    root, model = tmp_path / "checkpoints", tmp_path / "model"
    check_kept(root, {})  # neither states nor a model: a run that was stopped before its first one
    model.mkdir()
    write_history(model, ("sft",))
    for make in (lambda: None, root.mkdir):
        make()
        with pytest.raises(
            ValueError, match=r"holds no saved state, but .*model is the model of a"
        ):
            check_kept(root, {})
    keep(root, {})
    check_kept(root, {})


def test_adapters_of_a_finished_run_are_not_overwritten(tmp_path: Path):
    root, adapter = tmp_path / "checkpoints", tmp_path / "adapter"  # on a quantised base: no model
    adapter.mkdir()
    check_kept(root, {})
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter is the adapter of a finished run, which would"):
        check_kept(root, {})
    keep(root, {})
    check_kept(root, {})


FOLDERS = ("checkpoints", "model", "adapter", "index", "tensorboard")
FILES = ("config.yaml", "metrics.jsonl", "quarantine.jsonl", "tensors.json")


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_what_stands_in_the_way_of_a_run_is_told_before_it(
    tmp_path: Path, name: str, is_link: bool
):
    path, kind = tmp_path / name, "folder" if name in FOLDERS else "file"
    if is_link:
        path.symlink_to("gone")
    elif name in FOLDERS:
        path.touch()
    else:
        path.mkdir()
    for start in (prepare, plan):
        with pytest.raises(ValueError, match=rf"{name} is not a {kind}, as a run writes it: remov"):
            start(replace(CONFIG, out=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_run_left_is_not_in_the_way(tmp_path: Path):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    for name in FILES:
        (tmp_path / name).touch()
    check_places(tmp_path)
    check_places(tmp_path / "none")


def test_metrics_that_are_damaged_lose_only_these_lines(tmp_path: Path):
    whole = [json.dumps({"stage": "sft", "step": n}) for n in range(4)]
    damaged = [b"\xff\xfe{", b"[1]", b'{"stage": "sft", "st']
    (tmp_path / "m").write_bytes(b"\n".join([*(line.encode() for line in whole), *damaged]))
    metrics._cut_after(tmp_path / "m", "sft", 2)
    assert (tmp_path / "m").read_text().splitlines() == whole[:3]


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_may_change_or_is_refused_by_name(name: str, root: Path, origin: RunOrigin):
    known = identity_of(changed(name, OTHER[name]), origin)
    if any(fnmatchcase(name, pattern) for pattern in MAY_CHANGE):
        check_kept(root, known)
        return
    was = flat(to_mapping(CONFIG))[name]
    told = re.escape(f"{name} was {was!r}, is {OTHER[name]!r};")
    with pytest.raises(ValueError, match=told) as caught:
        check_kept(root, known)
    assert "\n" not in str(caught.value)


def test_what_may_change_is_no_longer_than_this():
    free = {n for n in OTHER if any(fnmatchcase(n, pattern) for pattern in MAY_CHANGE)}
    fixed = set(OTHER) - free
    assert fixed == {
        *("seed", "data.seed", "data.sequence_length", "data.batch_size", "data.packing"),
        *("data.balance_tiles", "data.isolate_documents", "data.mask_prompt"),
        *("optim.eps", "optim.weight_decay", "optim.clip", "compute.autocast"),
        *("balance.loss_weight", "balance.bias_step"),
        *("lora.rank", "lora.alpha", "lora.expert_share"),
    }


@pytest.mark.parametrize("pattern", MAY_CHANGE + BY_CONTENT)
def test_every_pattern_is_of_a_setting(pattern: str):
    names = {*flat(to_mapping(CONFIG)), "data.sources.0.image_root", "data.sources.0.path"}
    assert any(fnmatchcase(name, pattern) for name in names)


def test_files_may_move_but_not_change(tmp_path: Path, origin: RunOrigin):
    rows = [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.json").write_text(json.dumps(rows))

    def known(folder: str) -> dict[str, Any]:
        path = tmp_path / folder / "rows.json"
        return identity_of(override(CONFIG, [f"data.sources=[{{path: {path}}}]"]), origin)

    root = tmp_path / "run"
    keep(root, known("a"))
    check_kept(root, known("b"))
    (tmp_path / "b" / "rows.json").write_text(json.dumps(rows * 2))
    with pytest.raises(ValueError, match=r"path was '.*a/rows.json', is '.*b/rows.json', with ano"):
        check_kept(root, known("b"))
