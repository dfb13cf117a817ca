"""What one token or tile costs, counted from the model: bytes of weights, multiplications.

Counted are matrix products, two operations per weight and input. Norms, softmax, rotary positions
and routing are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from vl2.checkpoint.count import Shapes
from vl2.checkpoint.layout import is_stack
from vl2.config import LanguageConfig, VL2Config

LOOKED_UP = "language.model.embed_tokens.weight"
HEAD = "language.lm_head.weight"


def weight_bytes_read(state: Mapping[str, Tensor], config: LanguageConfig, tokens: int = 1) -> int:
    """Bytes of decoder weights that `tokens` tokens together meet, the output head included.

    Each token meets k of the E experts. Of many tokens that choose evenly, an expert is met with
    probability 1 - (1 - k / E) ** tokens; for one token that is k / E.

    Args:
        state: of a model in any form, its keys those of the checkpoint; meta tensors do.
        config: says how many experts a token meets.
        tokens: in one pass.
    """
    k, experts = config.num_experts_per_tok or 0, config.n_routed_experts or 1
    met = 1 - (1 - k / experts) ** tokens
    read = 0.0
    for key, tensor in state.items():
        if key.startswith("language.") and key != LOOKED_UP:
            read += tensor.nbytes * (met if ".experts." in key else 1)
    return int(read)


def text_flops(shapes: Shapes, config: LanguageConfig, tokens: int, past: int = 0) -> float:
    """Operations of `tokens` new tokens after `past` cached ones; only the last meets the head.

    Args:
        shapes: of the model in floats.
        config: of its decoder.
        tokens: new ones, of one conversation.
        past: cached ones.
    """
    k, experts = config.num_experts_per_tok or 0, config.n_routed_experts or 1
    per_token, head = 0.0, 2.0 * math.prod(shapes[HEAD])
    for key, shape in shapes.items():
        if key.startswith("language.model.") and key != LOOKED_UP and len(shape) > 1:
            per_token += 2 * math.prod(shape) * (k / experts if is_stack(key) else 1)
    value = config.v_head_dim if config.use_mla else config.head_dim
    pair = 2 * config.num_attention_heads * (config.head_dim + value) * config.num_hidden_layers
    pairs = tokens * past + tokens * (tokens + 1) / 2
    return tokens * per_token + pairs * pair + head


def tile_bytes_read(state: Mapping[str, Tensor]) -> int:
    """Bytes of the tower's and the adaptor's weights; the pool head runs for no tile."""
    keys = [key for key in state if key.startswith(("vision.", "projector."))]
    return sum(state[key].nbytes for key in keys if ".attn_pool." not in key)


def tile_flops(shapes: Shapes, config: VL2Config) -> float:
    """Operations of one tile through the tower and the adaptor; the pool head runs for none."""
    vision = config.vision_config
    patches, tokens = vision.patches_per_side**2, config.tokens_per_side**2
    total = 4.0 * patches**2 * vision.width * vision.layers
    for key, shape in shapes.items():
        if len(shape) < 2 or key == "vision.pos_embed" or ".attn_pool." in key:
            continue
        rows = {"vision": patches, "projector": tokens}.get(key.split(".")[0], 0)
        total += 2.0 * math.prod(shape) * rows
    return total
