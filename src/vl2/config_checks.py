"""Which values of a configuration a model can be built from: ranges, and numbers that must fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDTH = (1, 2**20)
_INNER = (1, 2**22)
_LAYERS = (1, 1000)
_FACTOR = (1e-6, 1e6)

RANGES: dict[str, Mapping[str, tuple[float, float]]] = {
    "vision_config": {
        "image_size": (1, 2**14),
        "patch_size": (1, 2**10),
        "width": _WIDTH,
        "layers": _LAYERS,
        "heads": _WIDTH,
        "mlp_ratio": (1e-3, 64),
        "num_recomputing_layers": (0, 1000),
    },
    "sam": {
        "image_size": (1, 2**14),
        "patch_size": (1, 2**10),
        "width": _WIDTH,
        "layers": _LAYERS,
        "heads": _WIDTH,
        "mlp_ratio": (1e-3, 64),
        "window_size": (0, 2**10),
        "neck_channels": _WIDTH,
    },
    "projector_config": {
        "input_dim": _WIDTH,
        "n_embed": _WIDTH,
        "depth": (1, 100),
        "mlp_ratio": (1, 64),
        "downsample_ratio": (1, 64),
    },
    "rope_scaling": {
        "factor": (1, 2**20),
        "original_max_position_embeddings": (1, 2**24),
        "beta_fast": _FACTOR,
        "beta_slow": _FACTOR,
        "mscale": (0, 1e3),
        "mscale_all_dim": (0, 1e3),
    },
    "language_config": {
        "vocab_size": (1, 2**24),
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "moe_intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": (1, 2**14),
        "num_key_value_heads": (1, 2**14),
        "n_shared_experts": (0, 1024),
        "n_routed_experts": (1, 2**16),
        "num_experts_per_tok": (1, 2**16),
        "moe_layer_freq": (1, 1000),
        "first_k_dense_replace": (0, 2**16),
        "n_group": (1, 2**16),
        "topk_group": (1, 2**16),
        "routed_scaling_factor": _FACTOR,
        "aux_loss_alpha": (0, 1e3),
        "kv_lora_rank": _WIDTH,
        "q_lora_rank": _WIDTH,
        "qk_rope_head_dim": (0, 2**14),
        "qk_nope_head_dim": (0, 2**14),
        "v_head_dim": (0, 2**14),
        "max_position_embeddings": (1, 2**24),
        "initializer_range": (0, 10),
        "rms_norm_eps": (1e-12, 1),
        "rope_theta": (1.001, 1e12),
    },
}
"""Section -> field -> least and greatest value.

The upper ends lie far above any model, and low enough that no product of them overflows where the
sizes of tensors are counted.
"""

MAX_CANVAS = 2**26
"""Most pixels of a canvas that pictures are brought to: 455 tiles of 384 x 384."""


def check_ranges(section: str, config: Any) -> None:
    """Refuse a number outside of `RANGES`; what is None or has no range passes.

    Raises:
        ValueError: the field with its value and its range.
    """
    for name, (low, high) in RANGES[section].items():
        value = getattr(config, name)
        if value is None:
            continue
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise ValueError(
                f"{section}.{name} is {_short(value)}: expected a number from {low:,} to {high:,}"
            )


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that is none of the allowed ones.

    Raises:
        ValueError: the field with its value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(
            f"{name} is {_short(value)}: expected {' or '.join(map(repr, allowed))}, "
            "nothing else is implemented"
        )


def multiple(name: str, value: int, of: str, unit: int) -> None:
    """Refuse a value that is no positive multiple of `unit`, the value of the field `of`.

    Raises:
        ValueError: both fields with their values.
    """
    if unit < 1 or value < 1 or value % unit:
        raise ValueError(f"{name} is {value}: expected a positive multiple of {of} = {unit}")


def equal(name: str, value: int, other: str, wanted: int) -> None:
    """Refuse two fields that differ.

    Raises:
        ValueError: both fields with their values.
    """
    if value != wanted:
        raise ValueError(f"{name} is {value} but {other} is {wanted}: they must be equal")


def check_tiles(name: str, image_size: int, patch_size: int) -> None:
    """Refuse patches that are larger than a tile.

    Raises:
        ValueError: both sizes.
    """
    if patch_size > image_size:
        raise ValueError(
            f"{name}.patch_size is {patch_size} but image_size is {image_size}: "
            "expected at least one patch along a side"
        )


def check_attention(c: Any) -> None:
    """Refuse widths of heads that the attention of a language section cannot use.

    Raises:
        ValueError: the field with its value and what is expected.
    """
    if not c.use_mla:
        multiple(
            "language_config.hidden_size",
            c.hidden_size,
            "num_attention_heads",
            c.num_attention_heads,
        )
        multiple(
            "language_config.num_attention_heads",
            c.num_attention_heads,
            "num_key_value_heads",
            c.num_key_value_heads,
        )
    elif c.kv_lora_rank is None:
        raise ValueError("language_config.kv_lora_rank is null but use_mla is true: give a rank")
    elif min(c.qk_nope_head_dim, c.v_head_dim) < 1:
        raise ValueError(
            f"language_config.qk_nope_head_dim is {c.qk_nope_head_dim} and v_head_dim is "
            f"{c.v_head_dim}: expected at least 1 each where use_mla is true"
        )
    if c.rope_dim < 2 or c.rope_dim % 2:
        name = "qk_rope_head_dim" if c.use_mla else "hidden_size / num_attention_heads"
        raise ValueError(f"language_config.{name} is {c.rope_dim}: expected an even number above 0")


def check_experts(c: Any) -> None:
    """Refuse routing that a language section cannot do.

    Raises:
        ValueError: the field with its value and what is expected.
    """
    experts, top_k = c.n_routed_experts, c.num_experts_per_tok
    if experts is None:
        return
    if top_k is None or not 1 <= top_k <= experts:
        raise ValueError(
            f"language_config.num_experts_per_tok is {top_k}: "
            f"expected 1..{experts} (n_routed_experts)"
        )
    if c.topk_method != "greedy":
        multiple("language_config.n_routed_experts", experts, "n_group", c.n_group or 0)
        if not 1 <= (c.topk_group or 0) <= (c.n_group or 0):
            raise ValueError(
                f"language_config.topk_group is {c.topk_group}: expected 1..{c.n_group} (n_group)"
            )
        reach = experts // c.n_group * c.topk_group
        if top_k > reach:
            raise ValueError(
                f"language_config.num_experts_per_tok is {top_k}: expected 1..{reach}, the experts "
                f"of {c.topk_group} (topk_group) of {c.n_group} groups (n_group)"
            )


def check_resolutions(canvases: Any) -> None:
    """Refuse candidate resolutions that are no pairs of sizes.

    Raises:
        ValueError: none is given, or the first bad one.
    """
    if not canvases:
        raise ValueError("candidate_resolutions is empty: give (width, height) pairs")
    for canvas in canvases:
        fits = isinstance(canvas, list | tuple) and [type(side) for side in canvas] == [int, int]
        if not fits or min(canvas) < 1 or canvas[0] * canvas[1] > MAX_CANVAS:
            raise ValueError(
                f"candidate_resolutions holds {_short(canvas)}: expected (width, height), positive "
                f"numbers of pixels whose product is at most {MAX_CANVAS:,}"
            )


def _short(value: object) -> str:
    return f"{value!r:.80}"
