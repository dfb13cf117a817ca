"""What callers may choose: ranges that are refused in one line, and forms of which one is given."""

import json
import math

import numpy as np
import pytest
import torch

from vl2.engine.config import EngineConfig, SamplingParams, StructuredOutputsParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("max_tokens", None),
        ("max_tokens", 2**63),
        ("max_tokens", 10**4000),
        ("max_tokens", "x" * 10**6),
        ("temperature", np.ones((3, 3))),
        ("stop", np.ones((3, 3))),
        ("min_tokens", -1),
        ("min_tokens", 513),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.0),
        ("min_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "1"),
        ("repetition_guard", True),
        ("stop", [""]),
        ("stop", [5]),
        ("stop", 5),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "1"),
        ("stop_token_ids", [True]),
        ("ignore_eos", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("n", 0),
        ("n", 9),
        ("n", 1.0),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("structured_outputs", {"regex": "a"}),
        ("max_tokens", np.float32(5)),
        ("max_tokens", np.bool_(True)),
        ("max_tokens", np.int64(0)),
        ("max_tokens", torch.tensor(5)),
        ("max_tokens", np.array([5])),
        ("temperature", torch.tensor(0.5)),
        ("temperature", torch.tensor([0.5])),
        ("temperature", np.float32("nan")),
        ("temperature", np.bool_(True)),
        ("stop_token_ids", [torch.tensor(5)]),
        ("stop_token_ids", torch.tensor([5])),
    ],
)
def test_bad_sampling_parameters_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "expected" in str(caught.value)


def test_good_sampling_parameters_are_taken():
    params = SamplingParams(stop="###", stop_token_ids=[5], top_p=1, temperature=1, seed=0)
    assert params.stop == ("###",)
    assert params.stop_token_ids == (5,)
    SamplingParams(n=8, logprobs=20, min_tokens=512, presence_penalty=-2, frequency_penalty=2)


WHOLE = ("max_tokens", "min_tokens", "top_k", "seed", "n", "logprobs")
REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16, np.intp])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_numpy_become_pythons(name: str, kind: type):
    value = getattr(SamplingParams(**{name: kind(5)}), name)
    assert (type(value), value) == (int, 5)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, np.int64])
@pytest.mark.parametrize("name", REAL)
def test_numbers_of_numpy_become_pythons(name: str, kind: type):
    value = getattr(SamplingParams(**{name: kind(1)}), name)
    assert (type(value), value) == (int if kind is np.int64 else float, 1)


def test_numbers_of_numpy_in_other_settings_become_pythons():
    config = EngineConfig(max_num_seqs=np.int64(3), vision_cache_gib=np.float32(0.5))
    assert repr(config) == repr(EngineConfig(max_num_seqs=3, vision_cache_gib=0.5))
    params = SamplingParams(stop_token_ids=[np.int64(5), 6])
    assert json.dumps(params.stop_token_ids) == "[5, 6]"


def test_a_form_cannot_be_asked_to_ignore_its_end():
    with pytest.raises(ValueError, match=r"^ignore_eos is True: expected False"):
        SamplingParams(ignore_eos=True, structured_outputs=StructuredOutputsParams(regex="a"))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"regex": "a", "json": {}},
        {"choice": ["a"], "grounding": True},
        {"grounding": False},
        {"json": 5},
        {"json": True},
        {"regex": ["a"]},
        {"choice": []},
        {"choice": "ab"},
        {"choice": ["a", 1]},
        {"choice": ["a", ""]},
        {"grounding": "yes"},
    ],
)
def test_exactly_one_form_of_the_right_type_is_given(given):
    with pytest.raises(ValueError, match="expected") as caught:
        StructuredOutputsParams(**given)
    assert "\n" not in str(caught.value)


def test_good_forms_are_taken():
    assert StructuredOutputsParams(choice=["yes", "no"]).choice == ("yes", "no")
    for given in ({"json": {}}, {"json": "{}"}, {"regex": ""}, {"grounding": True}):
        StructuredOutputsParams(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", -1),
        ("max_model_len", 1),
        ("block_size", 0),
        ("block_size", 16.0),
        ("num_blocks", 0),
        ("enable_prefix_caching", 1),
        ("vision_cache_gib", -0.5),
        ("vision_cache_gib", math.nan),
        ("max_tiles_per_batch", 0),
        ("speculative_tokens", -1),
        ("prompt_lookup", 0),
    ],
)
def test_bad_engine_sizes_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*: expected") as caught:
        EngineConfig(**{name: value})
    assert "\n" not in str(caught.value)


def test_good_engine_sizes_are_taken():
    EngineConfig(vision_cache_gib=0, speculative_tokens=0, num_blocks=1, max_model_len=2)
