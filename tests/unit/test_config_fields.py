"""Fields of config.json in other words, harmless ones, and ones that would change numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.config_data import inside, refusal
from transformers import DeepseekV3Config

from vl2.config import RopeScaling, VL2Config

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "mscale": 0.7}
LATER = {"rope_type": "yarn", **{k: v for k, v in YARN.items() if k != "type"}}
PLAIN = {"rope_type": "default", "rope_theta": 5e5}


def file(**language: Any) -> dict[str, Any]:
    """Base's config.json with other language fields; None takes a field out."""
    data = json.loads(json.dumps(VL2Config.base().to_dict()))
    data["language_config"] |= language
    for name in ("rope_theta", "rope_scaling"):
        if name not in language:
            del data["language_config"][name]
    return data


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": YARN},
        {"rope_theta": 5e5, "rope_scaling": LATER},
        {"rope_scaling": {**YARN, "rope_theta": 5e5, "rope_type": "yarn"}},
        {"rope_parameters": {**LATER, "rope_theta": 5e5}},
        {
            "rope_parameters": {
                **LATER,
                "rope_theta": 5e5,
                "truncate": True,
                "attention_factor": None,
            }
        },
        {"rope_parameters": {"full_attention": {**LATER, "rope_theta": 5e5}}},
        {"rope_parameters": {k: {**LATER, "rope_theta": 5e5} for k in ("full", "sliding")}},
        {"rope_scaling": YARN, "rope_parameters": {**LATER, "rope_theta": 5e5}},
    ],
)
def test_one_rope_in_every_form_of_file(rope: dict[str, Any]):
    config = VL2Config.from_dict(file(**rope))
    language = config.language_config
    assert language.rope_theta == 5e5
    assert language.rope_scaling is not None
    assert language.rope_scaling.factor == 4
    assert language.rope_scaling.original_max_position_embeddings == 1024
    assert language.rope_scaling.mscale == 0.7
    assert VL2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": PLAIN},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"full_attention": PLAIN}},
        {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": {}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {**PLAIN, "partial_rotary_factor": 1.0}},
    ],
)
def test_a_rope_that_is_not_scaled(rope: dict[str, Any]):
    language = VL2Config.from_dict(file(**rope)).language_config
    assert (language.rope_theta, language.rope_scaling) == (5e5, None)


def test_a_silent_context_length_is_the_model_s_in_later_files():
    later = {k: v for k, v in LATER.items() if not k.startswith("original")}
    read = VL2Config.from_dict(file(rope_parameters=later, max_position_embeddings=9000))
    assert read.language_config.rope_scaling == RopeScaling(
        factor=4, original_max_position_embeddings=9000, mscale=0.7
    )


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        *(
            ({name: {key: kind, "factor": 2.0}}, [name, key, repr(kind), "'yarn'"])
            for name in ("rope_scaling", "rope_parameters")
            for key in ("type", "rope_type")
            for kind in ("linear", "dynamic", "llama3", "longrope", "mrope", "proportional", 7)
        ),
        ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling has no type"]),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 4.0}}, ["rope_parameters has no type"]),
        ({"rope_scaling": {**YARN, "rope_type": "linear"}}, ["'yarn'", "'linear'"]),
        ({"rope_scaling": {"type": "default", "factor": 4.0}}, ["factor is 4.0", "'default'"]),
        ({"rope_scaling": {"type": "yarn"}}, ["has no factor"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling is 'yarn'", "object"]),
        ({"rope_scaling": {**YARN, "attention_factor": 1.3}}, ["attention_factor is 1.3"]),
        ({"rope_scaling": {**YARN, "truncate": False}}, ["truncate is False"]),
        ({"rope_scaling": {**YARN, "short_factor": [1.0]}}, ["short_factor"]),
        ({"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_theta": 1e4, "rope_parameters": PLAIN}, ["500000.0", "rope_theta is 10000.0"]),
        ({"rope_scaling": YARN, "rope_parameters": {**LATER, "factor": 8.0}}, ["must be equal"]),
        ({"rope_scaling": YARN, "rope_parameters": PLAIN}, ["must be equal"]),
        (
            {
                "rope_parameters": {
                    "full_attention": PLAIN,
                    "sliding_attention": {**PLAIN, "rope_theta": 1e4},
                }
            },
            ["differs between kinds of layers", "sliding_attention"],
        ),
        ({"rope_parameters": {"full_attention": PLAIN, "factor": 2.0}}, ["differs between"]),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, ["factor is 0.5"]),
        ({"rope_scaling": {**YARN, "beta_fast": 1}}, ["beta_fast is 1"]),
    ],
)
def test_other_ropes_are_refused_by_name(rope: dict[str, Any], words: list[str]):
    message = refusal(file(**rope))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("language_config", {"sliding_window": 4096}),
        ("language_config", {"attn_logit_softcapping": 50.0}),
        ("language_config", {"use_qk_norm": True}),
        ("language_config", {"logit_scale": 0.5}),
        ("language_config", {"mlp_bias": True}),
        ("language_config", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("language_config", {"position_embedding_type": "alibi"}),
        ("language_config", {"partial_rotary_factor": 0.5}),
        ("language_config", {"rope_interleave": False}),
        ("language_config", {"head_dim": 128}),
        ("language_config", {"qk_head_dim": 128}),
        ("language_config", {"num_local_experts": 8}),
        ("language_config", {"num_experts_per_token": 3}),
        (
            "language_config",
            {"rope_parameters": {"rope_type": "default", "mrope_interleaved": True}},
        ),
        ("language_config", {"never_heard_of": {"a": 1}}),
        ("language_config", {"quantization_config": {"quant_method": "fp8"}}),
        ("language_config", {"hidden_act": "gelu"}),
        ("language_config", {"attention_bias": True}),
        ("language_config", {"attention_dropout": 0.1}),
        ("language_config", {"tie_word_embeddings": True}),
        ("language_config", {"scoring_func": "tanh"}),
        ("language_config", {"topk_method": "random"}),
        ("language_config", {"model_type": "llama"}),
        ("vision_config", {"layer_norm_eps": 1e-5}),
        ("vision_config", {"hidden_act": "quick_gelu"}),
        ("vision_config", {"qkv_bias": False}),
        ("vision_config", {"cls_token": True}),
        ("vision_config", {"no_embed_class": True}),
        ("vision_config", {"patch_bias": False}),
        ("projector_config", {"bias": False}),
        ("projector_config", {"mlp_bias": False}),
        ("vision_config", {"hidden_size": 768}),
        ("vision_config", {"select_layer": -2}),
        ("vision_config", {"ignore_head": False}),
        ("vision_config", {"global_pool": "avg"}),
        ("vision_config", {"num_classes": 10}),
        ("vision_config", {"class_token": True}),
        ("vision_config", {"model_type": "siglip_vision_model"}),
        ("projector_config", {"token_pooling": True}),
        ("projector_config", {"projector_type": "linear"}),
        ("projector_config", {"model_type": "other"}),
        ("projector_config", {"hidden_act": "relu"}),
        ("", {"quantization": {"bits": 8}}),
        ("", {"quantization_config": {"quant_method": "awq"}}),
        ("", {"rope_theta": 5e5}),
        ("", {"tie_word_embeddings": True}),
        ("", {"vision_feature_layer": -2}),
        ("", {"global_view_pos": "middle"}),
        ("", {"dtype": "float32"}),
    ],
)
def test_what_would_change_numbers_is_refused_by_name(section: str, fields: dict[str, Any]):
    (name,) = fields
    assert name in refusal(inside(section, **fields))


HARMLESS = {
    "": {
        "auto_map": {"AutoModel": "x.Y"},
        "transformers_version": "5.23.0",
        "_name_or_path": "somewhere",
        "note": "made by hand",
        "hidden_size": 2560,
        "image_token_id": 128815,
        "bos_token_id": 5,
        "tie_word_embeddings": False,
    },
    "language_config": {
        "use_cache": True,
        "pretraining_tp": 1,
        "ep_size": 1,
        "lm_head": True,
        "rm_head": False,
        "temperature": 1.0,
        "id2label": {"0": "LABEL_0"},
        "pad_token_id": 2,
        "head_dim": 64,
        "qk_head_dim": 192,
        "rope_interleave": True,
        "sliding_window": None,
        "mlp_bias": False,
        "attn_dropout": 0.0,
        "layer_types": ["full_attention"] * 30,
        "torch_dtype": "bfloat16",
        "n_future_heads": 0,
    },
    "vision_config": {"hidden_size": 1152, "layer_norm_eps": 1e-6, "drop_path": 0.0},
    "projector_config": {"torch_dtype": "bfloat16", "mlp_bias": True},
}


def test_what_changes_nothing_is_kept_and_written_back():
    data = json.loads(json.dumps(VL2Config.base().to_dict()))
    for section, fields in HARMLESS.items():
        (data[section] if section else data).update(fields)
    config = VL2Config.from_dict(data)
    assert json.loads(json.dumps(config.to_dict())) == data
    assert config.language_config.extra == HARMLESS["language_config"]


EVERY_CONFIG = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "do_sample": False,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "transformers_version": "4.38.2",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
"""What transformers 4.38 writes of every configuration inside of another."""


def test_files_that_transformers_wrote_again_are_read():
    data = json.loads(json.dumps(VL2Config.base().to_dict()))
    for section in ("language_config", "vision_config", "projector_config"):
        data[section] |= EVERY_CONFIG
        if section != "language_config":
            data[section]["tie_word_embeddings"] = True  # it has no words
    assert json.loads(json.dumps(VL2Config.from_dict(data).to_dict())) == data
    later = DeepseekV3Config(**inside("language_config")["language_config"]).to_dict()
    language = VL2Config.from_dict({**data, "language_config": later}).language_config
    assert (language.topk_method, language.kv_lora_rank) == ("noaux_tc", 512)


def test_later_words_for_the_same():
    data = inside(
        "language_config", eos_token_id=[1, 2], bos_token_id=None, num_key_value_heads=None
    )
    del data["torch_dtype"]
    config = VL2Config.from_dict({**data, "dtype": "float16"})
    assert config.torch_dtype == "float16"
    assert "dtype" not in config.to_dict()
    assert config.language_config.eos_token_id == (1, 2)
    assert config.language_config.num_key_value_heads == 32


def test_a_v3_section_means_what_its_class_means():
    """transformers' DeepseekV3Config has no words for the routing that it always does."""
    silent = ("topk_method", "scoring_func", "norm_topk_prob", "n_group", "topk_group")
    data = inside("language_config", model_type="deepseek_v3")
    data["language_config"] = {k: v for k, v in data["language_config"].items() if k not in silent}
    language = VL2Config.from_dict(data).language_config
    assert (language.topk_method, language.scoring_func) == ("noaux_tc", "sigmoid")
    assert (language.norm_topk_prob, language.n_group, language.topk_group) == (True, 8, 4)


@pytest.mark.parametrize(
    "text",
    ['{"a": ' + "1" * 5000 + "}", "[" * 10**5, '{"language_config": {"hidden_size": 1e999}}'],
)
def test_files_that_no_parser_likes_are_one_line(tmp_path: Any, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        VL2Config.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_read_over(tmp_path: Any):
    text = json.dumps(VL2Config.base().to_dict())
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert VL2Config.from_pretrained(tmp_path) == VL2Config.base()
