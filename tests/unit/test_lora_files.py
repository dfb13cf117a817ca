"""Adapters on the disk: read back bit for bit, read by peft, refused when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.layout import table
from vl2.checkpoint.lora_files import load_lora, read_adapter_config, save_lora
from vl2.config import VL2Config
from vl2.model.lora import lora_layers
from vl2.model.vl2 import VL2Model
from vl2.train.lora import TARGETS, LoraConfig, apply_lora, merge_lora
from vl2.train.routing_profile import profile_routing, save_profile

PREFIX = "base_model.model."
EXPERT = "language.model.layers.1.mlp.experts.3.up_proj"


def small_model(**language) -> VL2Model:
    config = VL2Config.nano()
    changes = {"num_hidden_layers": 2, "vocab_size": 64, **language}
    config = replace(
        config,
        language_config=replace(config.language_config, **changes),
        vision_config=replace(config.vision_config, layers=1),
    )
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(3))
    return model.eval()


def adapted(**settings) -> VL2Model:
    """A model whose adapters are all random, as after training."""
    model = small_model()
    apply_lora(model, LoraConfig(rank=4, alpha=6.0, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.05)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_lora(adapted(), tmp_path / "adapters", base_model="nano")
    return tmp_path / "adapters"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("targets", [("attention",), tuple(TARGETS)])
def test_saved_and_loaded_adapters_have_the_same_bits(targets: tuple[str, ...], tmp_path: Path):
    model = adapted(targets=targets)
    save_lora(model, tmp_path, base_model="nano")
    other = small_model()
    names = load_lora(other, tmp_path)
    assert same(other.state_dict(), model.state_dict())
    assert names == [name for name, p in other.named_parameters() if p.requires_grad]
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    ids = torch.randint(12, 60, (1, 8))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)
    config = read_adapter_config(tmp_path)
    assert (config.rank, config.alpha, config.base_model) == (4, 6.0, "nano")


def test_chosen_experts_are_stored_alone_and_come_back(tmp_path: Path):
    profile = profile_routing(small_model(), [{"input_ids": torch.randint(12, 60, (2, 20))}])
    save_profile(profile, tmp_path / "profile.json")
    model = adapted(experts=str(tmp_path / "profile.json"), expert_share=0.2)
    save_lora(model, tmp_path / "adapters", base_model="nano")
    keys = [
        k for k in load_file(tmp_path / "adapters/adapter_model.safetensors") if "experts." in k
    ]
    assert len({key.split(".")[8] for key in keys if ".mlp.experts." in key}) == 3
    other = small_model()
    load_lora(other, tmp_path / "adapters")
    assert same(other.state_dict(), model.state_dict())


def released_tree(state: dict[str, Tensor]) -> nn.Module:
    """Linear layers under the released names, each expert its own, with nothing else around."""
    tree = nn.Module()
    for key, slot in table(state):
        values = slot.of(state)
        path, _, kind = key.rpartition(".")
        if kind != "weight" or values.ndim != 2:
            continue
        place = tree
        for name in path.split(".")[:-1]:
            if name not in dict(place.named_children()):
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        linear = nn.Linear(*reversed(values.shape), bias=False)
        linear.weight = nn.Parameter(values.clone())
        place.add_module(path.split(".")[-1], linear)
    return tree


@pytest.mark.filterwarnings("ignore")  # of peft and what it imports
def test_peft_reads_the_files_and_merges_to_the_same_weights(tmp_path: Path):
    import peft

    model = adapted(targets=tuple(TARGETS))
    save_lora(model, tmp_path, base_model="nano")
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 6.0, "nano")
    tree = released_tree(small_model().state_dict())
    theirs = peft.PeftModel.from_pretrained(tree, str(tmp_path))
    files = load_file(tmp_path / "adapter_model.safetensors")
    read = peft.get_peft_model_state_dict(theirs)
    assert same(read, files)
    merged = theirs.merge_and_unload().state_dict()
    base = released_tree(small_model().state_dict()).state_dict()
    merge_lora(model)
    ours = released_tree(model.state_dict()).state_dict()
    assert set(merged) == set(ours)
    changed = [key for key in ours if not torch.equal(ours[key], base[key])]
    assert len(changed) == len(files) // 2
    for key, weight in ours.items():
        torch.testing.assert_close(merged[key], weight, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_adapters_that_peft_wrote_are_read(tmp_path: Path):
    """Of single matrices of an expert too: the others of it stay as they are."""
    import peft

    base = small_model()
    tree = released_tree(base.state_dict())
    wanted = [EXPERT, "language.model.layers.0.self_attn.kv_b_proj", "language.lm_head"]
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=wanted, init_lora_weights=False)
    theirs = peft.get_peft_model(tree, settings)
    theirs.save_pretrained(str(tmp_path))
    load_lora(base, tmp_path)
    merge_lora(base)
    merged = theirs.merge_and_unload().state_dict()
    before = small_model().state_dict()
    ours = released_tree(base.state_dict()).state_dict()
    old = released_tree(before).state_dict()
    assert {k.removesuffix(".weight") for k in ours if not torch.equal(ours[k], old[k])} == {
        *wanted
    }
    for key, weight in ours.items():
        torch.testing.assert_close(merged[key], weight, atol=1e-6, rtol=0)


def test_a_new_save_replaces_the_old_one(saved: Path):
    model = adapted(targets=("dense",))
    save_lora(model, saved, base_model="other")
    assert sorted(file.name for file in saved.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    other = small_model()
    load_lora(other, saved)
    assert same(other.state_dict(), model.state_dict())


def test_there_must_be_adapters_to_save_and_none_to_load(saved: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_lora(small_model(), tmp_path / "new", base_model="nano")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="has adapters already"):
        load_lora(adapted(), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 256}, "the adapters are of another model"),
        ({"moe_intermediate_size": 64}, "the adapters are of another model"),
        ({"n_routed_experts": 8}, "is not an adapter of a linear layer of this model"),
        ({"num_hidden_layers": 1}, "is not an adapter of a linear layer of this model"),
    ],
)
def test_adapters_of_another_model_are_refused_before_anything_changes(
    change: dict, message: str, saved: Path
):
    other = small_model(**change)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    refused(other, saved, message)
    assert same(other.state_dict(), before)


def refused(model: VL2Model, folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lora(model, folder)
    assert "\n" not in str(caught.value)
    assert lora_layers(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]

DAMAGE: dict[str, tuple[Change, str]] = {
    "one_factor": (
        lambda t: {k: v for k, v in t.items() if k != f"{PREFIX}{EXPERT}.lora_B.weight"},
        "only one of .*up_proj's two factors",
    ),
    "prefix": (
        lambda t: {k.removeprefix("base_model."): v for k, v in t.items()},
        r"not named as peft names adapters: its keys begin with 'base_model\.model\.'",
    ),
    "named": (
        lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()},
        r"not named as peft names adapters: .*take '\.default' out of the keys",
    ),
    "compiled": (
        lambda t: {k.replace("language.", "_orig_mod.language."): v for k, v in t.items()},
        r"of the model that it wraps, or take '_orig_mod\.' out of the keys",
    ),
    "parallel": (
        lambda t: {f"module.{k}": v for k, v in t.items()},
        r"of the model that it wraps, or take 'module\.' out of the keys",
    ),
    "whole": (
        lambda t: {**t, f"{PREFIX}language.lm_head.weight": torch.zeros(4, 4)},
        "lm_head.weight' in .* is a whole tensor, which cannot be loaded",
    ),
    "saved_module": (
        lambda t: {**t, f"{PREFIX}language.lm_head.modules_to_save.weight": torch.zeros(4, 4)},
        "is a whole tensor, which cannot be loaded",
    ),
    "expert": (
        lambda t: {k.replace("experts.3.", "experts.03."): v for k, v in t.items()},
        "not an adapter of a linear layer",
    ),
    "norm": (
        lambda t: {**t, f"{PREFIX}language.model.norm.lora_A.weight": torch.zeros(4, 128)},
        "not an adapter of a linear layer",
    ),
    "router": (
        lambda t: {
            **t,
            f"{PREFIX}language.model.layers.1.mlp.gate.lora_A.weight": torch.zeros(4, 128),
        },
        "not an adapter of a linear layer",
    ),
    "magnitude": (
        lambda t: {**t, f"{PREFIX}{EXPERT}.lora_magnitude_vector": torch.zeros(96)},
        "not an adapter of a linear layer",
    ),
    "rank": (
        lambda t: {**t, f"{PREFIX}{EXPERT}.lora_A.weight": torch.zeros(5, 128)},
        r"has factors \[5, 128\] and \[96, 4\].*r = 4 expect \[4, 128\] and \[96, 4\]",
    ),
    "empty": (lambda t: {}, "holds no adapters"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_files_that_do_not_fit_are_refused(case: str, saved: Path):
    change, message = DAMAGE[case]
    file = saved / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    refused(small_model(), saved, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "does not describe LoRA"),
        ({"use_dora": True}, "sets use_dora to True: only plain LoRA"),
        ({"use_rslora": True}, "sets use_rslora"),
        ({"rank_pattern": {"q_proj": 16}}, "sets rank_pattern"),
        ({"bias": "all"}, "sets bias to 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"sets modules_to_save to \['lm_head'\]: whole trained"),
        ({"target_parameters": ["mlp.experts"]}, "sets target_parameters to .* whole trained"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa'"),
        ({"r": "8"}, "r = '8'"),
        ({"r": True}, "r = True"),
        ({"r": 8}, "r = 8 expect"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
    ],
)
def test_settings_that_are_not_plain_lora_are_refused(change: dict, message: str, saved: Path):
    file = saved / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    refused(small_model(), saved, message)


def test_missing_and_cut_files_are_refused(saved: Path, tmp_path: Path):
    refused(small_model(), tmp_path / "nowhere", "cannot be read")
    weights = saved / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    refused(small_model(), saved, "cut short|ends? at")
    weights.unlink()
    refused(small_model(), saved, "cannot be read")
    (saved / "adapter_model.bin").write_bytes(b"PK")
    refused(
        small_model(), saved, r"holds only pickled adapters \(adapter_model\.bin\).*safetensors"
    )
    (saved / "adapter_config.json").write_text("{")
    refused(small_model(), saved, "is no JSON")
