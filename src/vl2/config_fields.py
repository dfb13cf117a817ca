"""Fields of config.json that no dataclass has: read in other words, kept, or refused by name.

Later files say the same in other words (`rope_parameters`, `dtype`) or say it twice (`head_dim`).
Others carry what tools and generation need, which is kept. All else might change what the model
computes: where it says anything, it is refused, because to ignore it would give wrong numbers.
Sources: `DeepseekV2Config`, `DeepseekV3Config`, `PreTrainedConfig` and the rope parameters of
transformers 4.38 to 5.23; the configuration classes of the official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOTES = (
    # Notes of tools, and how a model is run or stored.
    "architectures auto_map transformers_version torch_dtype dtype name_or_path model_name",
    "attn_implementation use_cache use_bfloat16 torchscript gradient_checkpointing pretraining_tp",
    "ep_size finetuned lm_head rm_head num_nextn_predict_layers num_mtp_layers unsloth_fixed",
    # Training alone: starting values and losses that are not computed here.
    "initializer_range initializer_factor std router_aux_loss_coef",
    # What transformers writes of every model.
    "output_attentions output_hidden_states output_router_logits output_scores return_dict",
    "return_dict_in_generate use_return_dict id2label label2id num_labels problem_type",
    "is_encoder_decoder is_decoder chunk_size_feed_forward tie_encoder_decoder tf_legacy_loss",
    "task_specific_params finetuning_task tokenizer_class prefix remove_invalid_values",
    # Generation.
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups",
    "num_return_sequences diversity_penalty temperature top_k top_p min_p typical_p",
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size",
    "bad_words_ids suppress_tokens begin_suppress_tokens exponential_decay_length_penalty",
    # Tokens of pictures and of the loss: the tokenizer decides.
    "ignore_index num_image_tokens image_seq_length",
)
HARMLESS = frozenset(" ".join(_NOTES).split())
"""Fields that do not change what a model computes, or not what this one computes."""

_HARMLESS_ENDS = ("_token_id", "_token_index", "_token", "_version", "_path", "_class")

_NO_WORDS: dict[str, tuple[object, ...]] = {"tie_word_embeddings": (True, False)}
_BIASES = ("bias", "use_bias", "qkv_bias", "attention_bias", "mlp_bias", "proj_bias", "patch_bias")
_ONLY: dict[str, dict[str, tuple[object, ...]]] = {
    "projector_config": {**_NO_WORDS, **dict.fromkeys(_BIASES, (True,))},
    "vision_config": {
        **_NO_WORDS,
        **dict.fromkeys(_BIASES, (True,)),
        **dict.fromkeys(("layer_norm_eps", "norm_eps"), (1e-6,)),
        **dict.fromkeys(("hidden_act", "act_layer"), ("gelu_pytorch_tanh", "gelu_tanh")),
        **dict.fromkeys(("num_channels", "in_chans", "in_channels"), (3,)),
        "select_layer": (-1,),
    },
    "language_config": {"partial_rotary_factor": (1, None)},
    "rope_scaling": {"truncate": (True, None), "partial_rotary_factor": (1, None)},
}
"""Section -> field -> values that say what is computed here."""

_SAME = {
    "vision_config": {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    },
    "language_config": {
        "num_experts": "n_routed_experts",
        "num_local_experts": "n_routed_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "rope_interleave": "use_mla",
    },
}
"""Section -> field -> the released field that must have the same value."""

_WIDTHS = ("head_dim", "qk_head_dim")
"""Fields of a language section that `check_widths` compares."""

_V3: dict[str, Any] = {
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
}
"""What `model_type` "deepseek_v3" means where a file is silent."""

_ROPE = "language_config.rope_parameters"


def released_words(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with released names for what has another name in it.

    Raises:
        ValueError: two fields that contradict each other, or a rope that is not implemented.
    """
    result = dict(data)
    if result.get("dtype") is not None:
        stated = result.pop("dtype")
        _agree("dtype", stated, "torch_dtype", result.setdefault("torch_dtype", stated))
    language = result.get("language_config")
    if isinstance(language, Mapping):
        language = dict(language)
        if language.get("model_type") == "deepseek_v3":
            language = {**_V3, **language}
        if language.get("num_key_value_heads", 0) is None and "num_attention_heads" in language:
            language["num_key_value_heads"] = language["num_attention_heads"]
        result["language_config"] = _with_rope(language)
    return result


def check_unknown(section: str, extra: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse fields that no dataclass has unless they change nothing.

    Args:
        section: dotted name of the section; "" is the file itself.
        extra: its fields that no dataclass has.
        known: the values of those that it has; of the file itself the language section's, which
            some tools repeat there.

    Raises:
        ValueError: the first such field, with its value.
    """
    kind = section.rpartition(".")[2]
    for name, value in extra.items():
        place = f"{section}.{name}" if section else name
        allowed = _ONLY.get(kind, {}).get(name)
        same = _SAME.get(kind, {})
        twin = same.get(name, name if name in known else None)
        if value is None or name in _WIDTHS or (_is_note(name, value) and name not in same):
            continue
        if twin is not None:
            _agree(place, value, f"{section or 'language_config'}.{twin}", known[twin])
        elif allowed is not None:
            if value not in allowed:
                raise ValueError(
                    f"config.json: {place} is {value!r:.80}: expected {allowed[0]!r}, nothing else "
                    "is implemented"
                )
        elif not _is_off(section, name, value):
            raise ValueError(
                f"config.json: {place} is {value!r:.80}, which vl2 does not know and which may "
                "change what the model computes: take the field out if it does not"
            )


def check_widths(extra: Mapping[str, Any], head_dim: int, rope_dim: int) -> None:
    """Refuse widths of heads that differ from what the released fields give.

    Args:
        extra: fields of a language section that the dataclass does not have.
        head_dim: width of a query head.
        rope_dim: width that is rotated, which transformers calls `head_dim` of MLA.

    Raises:
        ValueError: a width that differs.
    """
    for name, wanted in zip(_WIDTHS, ((rope_dim, head_dim), (head_dim,)), strict=True):
        value = extra.get(name)
        if value is not None and value not in wanted:
            raise ValueError(
                f"config.json: language_config.{name} is {value!r:.80}: expected "
                f"{' or '.join(map(str, wanted))}, as the other widths give it"
            )


def _is_note(name: str, value: Any) -> bool:
    if name in HARMLESS or name.startswith("_"):
        return True
    return value is not True and name.endswith(_HARMLESS_ENDS)  # cls_token: true is a switch


def _is_off(section: str, name: str, value: Any) -> bool:
    """Whether a value switches nothing on; beside the sections, texts are labels of the file."""
    if name == "layer_types" and isinstance(value, list):
        return all(kind == "full_attention" for kind in value)
    return value in (False, 0, "", [], {}) or (not section and isinstance(value, str))


def _agree(name: str, value: Any, other: str, wanted: Any) -> None:
    if value != wanted:
        raise ValueError(
            f"config.json: {name} is {value!r:.80} but {other} is {wanted!r:.80}: "
            "they must be equal; take one of them out"
        )


def _with_rope(language: dict[str, Any]) -> dict[str, Any]:
    """A language section whose rope is said by `rope_theta` and `rope_scaling` alone."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in ("rope_scaling", "rope_parameters"):
        stated = language.pop(name, None)
        if stated in (None, {}):
            continue
        place = f"language_config.{name}"
        stated = _for_every_layer(place, stated)
        theta = stated.pop("rope_theta", None)
        if theta is not None:
            stated_theta = language.setdefault("rope_theta", theta)
            _agree(f"{place}.rope_theta", theta, "language_config.rope_theta", stated_theta)
        found[name] = _yarn(place, stated, language)
    scalings = list(found.values())
    if len(scalings) == 2:
        _agree(_ROPE, scalings[1], "language_config.rope_scaling", scalings[0])
    return {**language, "rope_scaling": scalings[0] if scalings else None}


def _for_every_layer(place: str, stated: Any) -> dict[str, Any]:
    """The one rope of all layers, also where it is given for each kind of layer."""
    if not isinstance(stated, Mapping):
        raise ValueError(f"config.json: {place} is {stated!r:.80}: expected an object")
    kinds = {k: v for k, v in stated.items() if isinstance(v, Mapping)}
    if not kinds:
        return dict(stated)
    if len(kinds) < len(stated):
        name, value = next(iter(kinds.items()))
        raise ValueError(
            f"config.json: {place}.{name} is {value!r:.80}: expected a number or a word, or "
            f"nothing else in {place}, where it differs between kinds of layers"
        )
    first, *others = kinds.values()
    if any(other != first for other in others):
        raise ValueError(
            f"config.json: {place} differs between kinds of layers ({', '.join(stated)}): "
            "expected one rope for all layers"
        )
    return dict(first)


def _yarn(place: str, stated: dict[str, Any], language: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of YaRN, or None for a rope that is not scaled."""
    named = {k: v for k, v in stated.items() if k in ("type", "rope_type") and v is not None}
    if not named and stated.keys() <= {"type", "rope_type", "partial_rotary_factor"}:
        named = {"type": "default"}
    kinds = list(named.values())
    if not kinds or kinds[0] not in ("default", "yarn") or kinds != kinds[:1] * len(kinds):
        said = " and ".join(f"{k} {v!r:.80}" for k, v in named.items()) or "no type"
        raise ValueError(
            f"config.json: {place} has {said}: expected type 'yarn' or 'default', no other scaling "
            "is implemented"
        )
    kind = kinds[0]
    rest = {k: v for k, v in stated.items() if k not in ("type", "rope_type")}
    if kind == "default":
        scaled = next((k for k, v in rest.items() if not _unscaled(k, v)), None)
        if scaled is not None:
            raise ValueError(
                f"config.json: {place}.{scaled} is {rest[scaled]!r:.80} but the type is 'default', "
                "which scales nothing: give the type 'yarn' or take the field out"
            )
        return None
    if rest.get("factor") is None:
        raise ValueError(f"config.json: {place} has no factor: YaRN needs one")
    if place == _ROPE and rest.get("original_max_position_embeddings") is None:
        # As transformers reads such a file; the released form has a default of its own.
        rest["original_max_position_embeddings"] = language.get("max_position_embeddings", 2048)
    return {"type": "yarn", **{k: v for k, v in rest.items() if v is not None}}


def _unscaled(name: str, value: Any) -> bool:
    return (
        value is None
        or (value == 1 and value is not True)
        or name == "original_max_position_embeddings"
    )
