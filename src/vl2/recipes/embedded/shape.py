"""The shape of the embedded model: Base's mechanisms at about 20 million parameters.

Tiles of 320 pixels with patches of 16 have as many patches and tokens as tiles of 280 with patches
of 14, so they cost the same, and a grid of 3 x 3 covers 960 pixels instead of 840.
"""

from __future__ import annotations

from typing import Any

from vl2.config import VL2Config
from vl2.presets import BASE, RELEASED_RESOLUTIONS

TILE = 320
PATCH = 16

SHAPE: dict[str, Any] = {
    "candidate_resolutions": [
        [wide // 384 * TILE, high // 384 * TILE] for wide, high in RELEASED_RESOLUTIONS
    ],
    "vision_config": {
        "model_name": "nano_vit_patch16_320",
        "image_size": TILE,
        "patch_size": PATCH,
        "width": 256,
        "layers": 8,
        "heads": 2,  # wide heads: on a CPU most of attention's time goes into softmax, head by head
        "mlp_ratio": 4.0,
        "global_pool": "",
    },
    "projector_config": {"input_dim": 256, "n_embed": 256},
    "language_config": {
        **BASE["language_config"],
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "initializer_range": 0.03,
    },
}


def embedded() -> VL2Config:
    """The configuration of the embedded model."""
    return VL2Config.from_dict(SHAPE)
