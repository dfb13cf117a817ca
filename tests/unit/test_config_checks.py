"""Numbers that no model can be built from: ranges, and numbers that do not fit each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.config_data import inside, refusal

from vl2.config import VL2Config
from vl2.config_checks import RANGES

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "mscale": 0.7}
PATHS = {
    "vision_config": ("vision_config",),
    "projector_config": ("projector_config",),
    "language_config": ("language_config",),
    "rope_scaling": ("language_config", "rope_scaling"),
    "sam": ("vision_config", "sam"),
}
NUMBERS = [(section, name) for section, ranges in RANGES.items() for name in ranges]


def whole() -> dict[str, Any]:
    """A config with every section, as a file has it."""
    data = inside("language_config", rope_scaling=dict(YARN))
    data["vision_config"] |= {"tower": "hybrid", "sam": {}}
    return data


@given(
    st.sampled_from(NUMBERS),
    st.one_of(
        st.sampled_from([-1, -(2**63), 10**30, 10**400, 1e308, -0.5, float("nan"), float("inf")]),
        st.sampled_from(["7", "", True, [], [1], {}]),
        st.integers(max_value=-1),
        st.integers(min_value=2**40),
    ),
)
def test_an_impossible_number_is_one_line_with_its_name(place: tuple[str, str], value: Any):
    section, name = place
    data = json.loads(json.dumps(whole()))
    target = data
    for key in PATHS[section]:
        target = target[key]
    target[name] = value
    message = refusal(data)
    assert name in message
    assert "expected" in message or "must be equal" in message
    assert len(message) < 400


ODD = [None, True, -1, 0, 7, 0.5, 2**63, float("nan"), "", "x", [], [1], [[1, 2]], {}, {"a": 1}]


@given(st.data())
def test_any_value_anywhere_is_read_or_refused_in_one_line(data: st.DataObject):
    config = json.loads(json.dumps(whole()))
    target = config
    for key in data.draw(st.sampled_from([(), *PATHS.values()])):
        target = target[key]
    names = ["image_size", "global_attn_indexes", *sorted(target)]  # sam says nothing itself
    target[data.draw(st.sampled_from(names))] = data.draw(st.sampled_from(ODD))
    read = said(config)
    if isinstance(read, str):
        assert "\n" not in read
        assert len(read) < 500
    else:
        assert VL2Config.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def said(config: dict[str, Any]) -> VL2Config | str:
    try:
        return VL2Config.from_dict(config)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_zero_is_possible_only_where_its_range_says_so(section: str, name: str):
    data = whole()
    target = data
    for key in PATHS[section]:
        target = target[key]
    target[name] = 0
    low, _ = RANGES[section][name]
    if low > 0:
        assert f"{name} is 0" in refusal(data)
    elif name not in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"):
        VL2Config.from_dict(data)
    else:
        assert name in refusal(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (inside("language_config", use_mla=False, num_attention_heads=7), ["multiple", "7"]),
        (inside("language_config", use_mla=False, num_key_value_heads=5), ["num_key_value_heads"]),
        (inside("language_config", qk_rope_head_dim=63), ["qk_rope_head_dim is 63", "even"]),
        (inside("language_config", n_group=72, topk_group=2), ["expected 1..2", "topk_group"]),
        (inside("vision_config", heads=7), ["vision_config.width", "heads = 7"]),
        (inside("vision_config", patch_size=385), ["patch_size is 385", "384"]),
        (inside("", language_config=None), ["language_config is None", "an object"]),
        (inside("", architectures=[1]), ["architectures is (1,)"]),
        (inside("language_config", eos_token_id=["</s>"]), ["eos_token_id"]),
        (
            inside("vision_config", tower="hybrid", sam={"global_attn_indexes": [None]}),
            ["global_attn_indexes is (None,)", "whole numbers"],
        ),
        (
            inside("vision_config", tower="hybrid", sam={"downsample_channels": ["x"]}),
            ["downsample_channels is ('x',)", "whole numbers"],
        ),
        (
            inside("vision_config", tower="hybrid", sam={"downsample_channels": [512, -1]}),
            ["downsample_channels holds -1"],
        ),
        (inside("", candidate_resolutions=[]), ["candidate_resolutions is empty"]),
        (inside("", candidate_resolutions=None), ["is None: expected a list of [width, height]"]),
        (inside("", candidate_resolutions=5), ["is 5: expected a list of [width, height]"]),
        (inside("", candidate_resolutions="[1," * 999), ["expected a list of [width, height]"]),
        (inside("", candidate_resolutions={"a": 1}), ["expected a list of [width, height]"]),
        (inside("", candidate_resolutions=[384, 384]), ["candidate_resolutions holds 384"]),
        (inside("", candidate_resolutions=[[384]]), ["candidate_resolutions holds [384]"]),
        (inside("", candidate_resolutions=[[384, -384]]), ["[384, -384]"]),
        (inside("", candidate_resolutions=[[384.0, 384]]), ["[384.0, 384]"]),
        (inside("", candidate_resolutions=[[384 * 999, 384 * 999]]), ["at most 67,108,864"]),
    ],
)
def test_numbers_that_do_not_fit_each_other(data: dict[str, Any], words: list[str]):
    message = refusal(data)
    assert all(word in message for word in words), message
