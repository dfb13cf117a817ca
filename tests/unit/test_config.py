import json
import logging
from dataclasses import replace

import pytest

from vl2.config import RopeScaling, SamConfig, VisionConfig, VL2Config

PRESETS = {name: getattr(VL2Config, name) for name in ("tiny", "small", "base", "nano")}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name):
    config = PRESETS[name]()
    assert VL2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_omitted_fields_take_the_reference_defaults():
    """Small's released file omits the vocabulary size and the token ids."""
    config = VL2Config.from_dict({"language_config": {"hidden_size": 2048, "q_lora_rank": None}})
    language = config.language_config
    assert (language.vocab_size, language.bos_token_id, language.eos_token_id) == (
        102400,
        100000,
        100001,
    )
    assert (language.kv_lora_rank, language.qk_nope_head_dim, language.rope_theta) == (
        512,
        128,
        10000.0,
    )
    assert config.candidate_resolutions[0] == (384, 384)
    assert len(config.candidate_resolutions) == 23


def test_unknown_fields_are_kept_written_back_and_reported(caplog):
    data = VL2Config.tiny().to_dict()
    data["language_config"]["rm_head"] = False
    data["auto_map"] = {"AutoModel": "x.Y"}
    with caplog.at_level(logging.INFO, logger="vl2.config"):
        config = VL2Config.from_dict(data)
    assert "auto_map" in caplog.text
    assert "language_config.rm_head" in caplog.text
    written = config.to_dict()
    assert written["auto_map"] == {"AutoModel": "x.Y"}
    assert written["language_config"]["rm_head"] is False


def test_saved_file_reads_back(tmp_path):
    config = replace(VL2Config.base(), architectures=("DeepseekVLV2ForCausalLM",))
    config.save(tmp_path)
    assert VL2Config.from_pretrained(tmp_path) == config
    assert VL2Config.from_pretrained(tmp_path / "config.json") == config


def _language(**changes):
    return {"language_config": {**VL2Config.base().to_dict()["language_config"], **changes}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tile_tag": "1D"}, ["tile_tag", "'1D'", "'2D'"]),
        ({"model_type": "llava"}, ["model_type", "llava"]),
        ({"language_config": 3}, ["language_config", "object"]),
        ({"language_config": {"hidden_size": "big"}}, ["hidden_size", "'big'", "int"]),
        ({"language_config": {"use_mla": 1}}, ["use_mla", "bool"]),
        ({"candidate_resolutions": [[384, 100]]}, ["(384, 100)", "384"]),
        ({"projector_config": {"n_embed": 7}}, ["n_embed", "7", "hidden_size"]),
        ({"vision_config": {"tower": "clip"}}, ["tower", "'clip'", "hybrid"]),
        ({"vision_config": {"tower": "hybrid"}}, ["hybrid", "sam"]),
        (_language(topk_method="gready"), ["topk_method", "gready", "greedy"]),
        (_language(num_experts_per_tok=99), ["num_experts_per_tok", "99", "72"]),
        (_language(n_group=5), ["n_routed_experts", "n_group"]),
        (_language(kv_lora_rank=None), ["kv_lora_rank", "use_mla"]),
        (_language(rope_scaling={"type": "linear"}), ["rope_scaling", "linear", "yarn"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(data, words):
    with pytest.raises(ValueError, match=r"\S") as caught:
        VL2Config.from_dict(data)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_file_that_is_no_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        VL2Config.from_pretrained(tmp_path)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give a model folder"):
        VL2Config.from_pretrained(tmp_path)


def test_sections_for_context_extension_and_hybrid_round_trip():
    base = VL2Config.base()
    config = replace(
        base,
        vision_config=VisionConfig(tower="hybrid", sam=SamConfig()),
        language_config=replace(base.language_config, rope_scaling=RopeScaling(factor=4.0)),
    )
    assert VL2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
