"""What a model is and costs, counted from its config: parameters, bytes, cache, tokens per picture.

Every count comes from the names and shapes of the model on the meta device, not from formulas that
could drift from the code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vl2 import geometry
from vl2.checkpoint.layout import is_stack
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import LanguageConfig, VL2Config
from vl2.model.quantized import KEPT_FLOAT
from vl2.ops.int4 import INT4_GROUPS, INT4_ROWS, int4_group

INT4_GROUP = INT4_GROUPS[0]
"""Weights along a row that share one int4 scale and zero point, in most matrices."""
INT8_ROW_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How weights are held: matrices in one form, all else in `rest` bytes.

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


WEIGHT_FORMS = (
    Scheme(name="float32", weight_bytes=4, rest=4, loadable=True),
    Scheme(name="bfloat16", weight_bytes=2, rest=2, loadable=True),
    Scheme(name="int8", weight_bytes=1, rest=2, row_bytes=INT8_ROW_BYTES, loadable=True),
    Scheme(name="float8", weight_bytes=1, rest=2, row_bytes=INT8_ROW_BYTES, loadable=True),
    Scheme(name="int4", weight_bytes=0.5, rest=2, group_bytes=4, loadable=True),
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
    """Shapes of a model that is built without memory; in floats, however it is stored."""
    state = build_skeleton(replace(config, quantization_config=None)).state_dict()
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

    A matrix [out, in] of a linear layer or an expert takes

        int8    out * in + out * row_bytes; float8 the same
        int4    out64 * (in / 2 + in / group * group_bytes)

    that is, in int8 one byte per weight and a float32 scale per output row, in int4 half a byte per
    weight and a bfloat16 scale and zero point per group of 128, 64 or 32 along the row, with rows
    padded to a multiple of 64. With int4 the vision side and rows that no group divides are int8.
    Everything else (input embedding, router, norms, biases, convolutions, MLA's kv_b_proj) takes
    `rest` bytes per number, and the router's correction bias always four.
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


def _bytes(key: str, shape: tuple[int, ...], scheme: Scheme) -> int:
    numbers = math.prod(shape)
    if key.endswith("e_score_correction_bias"):
        return 4 * numbers
    if not (scheme.row_bytes or scheme.group_bytes) or not _is_quantised(key, shape):
        return scheme.rest * numbers
    *_, out, width = shape
    matrices, group = numbers // (out * width), int4_group(width)
    if scheme.row_bytes or group is None or not key.startswith("language."):
        return numbers + matrices * out * INT8_ROW_BYTES
    rows = matrices * -(-out // INT4_ROWS) * INT4_ROWS
    return rows * width // 2 + rows * (width // group) * scheme.group_bytes


def _is_quantised(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the matrix of a linear layer that is held in less, or stacked experts."""
    *_, module, field = ("", *key.split("."))
    linear = field == "weight" and len(shape) == 2
    return is_stack(key) or (linear and module not in ("embed_tokens", "gate", *KEPT_FLOAT))
