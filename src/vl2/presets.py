"""The released configurations and the embedded one, as data in the config.json form.

Only what differs from the defaults of the official configuration class stands here, as in the
released files.
"""

from __future__ import annotations

from typing import Any

_GRIDS = (
    *((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6)),
    *((6, 1), (2, 3), (3, 2), (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1)),
    (3, 3),
)
RELEASED_RESOLUTIONS = tuple((wide * 384, high * 384) for wide, high in _GRIDS)
"""The 23 canvases (width, height) of the released models; their order decides exact ties."""

_RELEASED: dict[str, Any] = {
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "max_position_embeddings": 4096,
}
_NOAUX: dict[str, Any] = {
    **_RELEASED,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}
_V3_TOKENS: dict[str, Any] = {"vocab_size": 129280, "bos_token_id": 0, "eos_token_id": 1}

TINY: dict[str, Any] = {
    "projector_config": {"n_embed": 1280},
    "language_config": {
        **_RELEASED,
        **_V3_TOKENS,
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "moe_intermediate_size": 896,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "num_key_value_heads": 10,
        "n_routed_experts": 64,
        "use_mla": False,
        "kv_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "v_head_dim": 0,
    },
}
SMALL: dict[str, Any] = {
    "projector_config": {"n_embed": 2048},
    "language_config": {
        **_RELEASED,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
    },
}
BASE: dict[str, Any] = {
    "projector_config": {"n_embed": 2560},
    "language_config": {
        **_NOAUX,
        **_V3_TOKENS,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "n_routed_experts": 72,
    },
}
NANO: dict[str, Any] = {
    "candidate_resolutions": [[112, 112], [112, 224], [224, 112], [224, 224]],
    "vision_config": {
        "model_name": "nano_vit_patch14_112",
        "image_size": 112,
        "width": 128,
        "layers": 6,
        "heads": 4,
        "mlp_ratio": 3.0,
    },
    "projector_config": {"input_dim": 128, "n_embed": 128},
    "language_config": {
        **_NOAUX,
        **_V3_TOKENS,
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "initializer_range": 0.05,
    },
}


_DEBUG: dict[str, Any] = {
    "candidate_resolutions": [[56, 56], [56, 112], [112, 56], [112, 112]],
    "vision_config": {
        "model_name": "debug_vit_patch14_56",
        "image_size": 56,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
    },
    "projector_config": {"input_dim": 32, "n_embed": 64},
}
_DEBUG_LANGUAGE: dict[str, Any] = {
    "vocab_size": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "initializer_range": 0.05,
}
_DEBUG_LATENT: dict[str, Any] = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
DEBUG_TINY: dict[str, Any] = {
    **_DEBUG,
    "language_config": {**TINY["language_config"], **_DEBUG_LANGUAGE},
}
DEBUG_SMALL: dict[str, Any] = {
    **_DEBUG,
    "language_config": {**SMALL["language_config"], **_DEBUG_LANGUAGE, **_DEBUG_LATENT},
}
DEBUG_BASE: dict[str, Any] = {
    **_DEBUG,
    "language_config": {**BASE["language_config"], **_DEBUG_LANGUAGE, **_DEBUG_LATENT},
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "nano": NANO,
    "debug_tiny": DEBUG_TINY,
    "debug_small": DEBUG_SMALL,
    "debug_base": DEBUG_BASE,
}
"""Every named configuration. The debug ones have the released mechanisms at a size for tests and
speak with the embedded model's tokenizer."""

RELEASED = {
    "tiny": "deepseek-ai/deepseek-vl2-tiny",
    "small": "deepseek-ai/deepseek-vl2-small",
    "base": "deepseek-ai/deepseek-vl2",
}
"""Hub ids of the released sizes."""


def preset_of(model: str) -> str | None:
    """The preset that a name means, itself or as the hub id of a released size; None: neither."""
    hub_ids = {hub_id: name for name, hub_id in RELEASED.items()}
    return model if model in PRESETS else hub_ids.get(model)
