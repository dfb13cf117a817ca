"""What a model is and costs, counted from its config: parameters, bytes, cache, tokens per picture.

Every count comes from the names and shapes of the model on the meta device, not from formulas that
could drift from the code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vl2 import geometry
from vl2.checkpoint.layout import is_stack
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import LanguageConfig, VL2Config

INT4_GROUP = 128
"""Weights along a row that share one int4 scale and zero point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How weights are held: the language model's matrices in one form, all else in `rest` bytes.

    `row_bytes` and `group_bytes` are what scales add per output row and per group of a row;
    `loadable` says whether `load_model` offers the form in this version.
    """

    name: str
    weight_bytes: float
    rest: int
    row_bytes: int = 0
    group_bytes: int = 0
    loadable: bool = False

    @property
    def statement(self) -> str:
        """Bytes per weight in words, scales included."""
        if self.group_bytes:
            per_weight = self.weight_bytes + self.group_bytes / INT4_GROUP
            return f"{per_weight:g} with scales, rest {self.rest}"
        if self.row_bytes:
            return f"{self.weight_bytes:g} + {self.row_bytes}/row, rest {self.rest}"
        return f"{self.weight_bytes:g}"


SCHEMES = (
    Scheme(name="float32", weight_bytes=4, rest=4, loadable=True),
    Scheme(name="bfloat16", weight_bytes=2, rest=2, loadable=True),
    Scheme(name="int8", weight_bytes=1, rest=2, row_bytes=4),
    Scheme(name="int4", weight_bytes=0.5, rest=2, group_bytes=4),
)
"""Forms that weights can be held in, largest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCount:
    """Numbers stored in a checkpoint, and how many of them one text token meets.

    `language_active` counts the decoder with `num_experts_per_tok` of the routed experts and the
    output head, not the input embedding: the paper's 0.57, 2.4 and 4.1 billion (section 1, table
    2). `active` adds the vision tower without its unused pool head, and the adaptor.
    """

    total: int
    vision: int
    vision_head: int
    projector: int
    language: int
    language_active: int
    tensors: int

    @property
    def active(self) -> int:
        """Parameters that run for a token of a prompt with pictures."""
        return self.language_active + self.vision - self.vision_head + self.projector


@dataclass(frozen=True, kw_only=True, slots=True)
class GridTokens:
    """Image tokens of one tile grid."""

    wide: int
    high: int
    tokens: int


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a model by our key, routed experts stacked."""


def model_shapes(config: VL2Config) -> Shapes:
    """Shapes of a model that is built without memory."""
    state = build_skeleton(config).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def count_parameters(config: VL2Config, shapes: Shapes) -> ParameterCount:
    """Parameters by part; `shapes` as of `model_shapes(config)`."""
    count: Counter[str] = Counter()
    routed, tensors = 0, 0
    for key, shape in shapes.items():
        numbers = math.prod(shape)
        count[_part(key)] += numbers
        routed += numbers if is_stack(key) else 0
        tensors += shape[0] if is_stack(key) else 1
    language = config.language_config
    embedding = language.vocab_size * language.hidden_size
    idle = 0
    if language.n_routed_experts and language.num_experts_per_tok:
        idle = routed * (language.n_routed_experts - language.num_experts_per_tok)
        idle //= language.n_routed_experts
    return ParameterCount(
        total=count.total(),
        vision=count["vision"] + count["vision_head"],
        vision_head=count["vision_head"],
        projector=count["projector"],
        language=count["language"],
        language_active=count["language"] - embedding - idle,
        tensors=tensors,
    )


def weight_bytes(shapes: Shapes, scheme: Scheme) -> int:
    """Bytes of all weights under a scheme.

    A matrix [out, in] of the language model's attention, MLPs and experts takes

        out * in * weight_bytes + out * row_bytes + out * ceil(in / 128) * group_bytes

    that is, in int8 one byte per weight and a float32 scale per output row, in int4 half a byte per
    weight and a bfloat16 scale and zero point per group of 128 along the row. Everything else
    (input embedding, output head, router, norms, vision tower, adaptor) takes `rest` bytes per
    number, and the router's correction bias always four.
    """
    return sum(_bytes(key, shape, scheme) for key, shape in shapes.items())


def kv_bytes_per_token(config: LanguageConfig, itemsize: int) -> int:
    """Cache bytes of one token over all layers, `itemsize` each: MLA's latent or MHA's heads."""
    return config.cache_width * config.num_hidden_layers * itemsize


def grid_tokens(config: VL2Config) -> list[GridTokens]:
    """Image tokens of every tile grid that the config offers, in its order."""
    grids = [
        geometry.grid_of(canvas, config.vision_config.image_size)
        for canvas in config.candidate_resolutions
    ]
    side = config.tokens_per_side
    return [
        GridTokens(wide=g.wide, high=g.high, tokens=geometry.image_tokens(side, g)) for g in grids
    ]


def _part(key: str) -> str:
    if ".attn_pool." in key:
        return "vision_head"
    first = key.split(".")[0].split("_")[0]
    # The bare newline and separator vectors belong to the adaptor's output.
    return first if first in ("vision", "language", "projector") else "special"


def _is_quantised(key: str, shape: tuple[int, ...]) -> bool:
    inside = ".self_attn." in key or ".mlp." in key
    return key.startswith("language.") and inside and len(shape) > 1 and ".gate." not in key


def _bytes(key: str, shape: tuple[int, ...], scheme: Scheme) -> int:
    numbers = math.prod(shape)
    if key.endswith("e_score_correction_bias"):
        return 4 * numbers
    if not _is_quantised(key, shape):
        return scheme.rest * numbers
    rows, groups = numbers // shape[-1], -(-shape[-1] // INT4_GROUP)
    scales = rows * scheme.row_bytes + rows * groups * scheme.group_bytes
    return math.ceil(numbers * scheme.weight_bytes) + scales
